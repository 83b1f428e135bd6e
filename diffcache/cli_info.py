"""What can be used where, and why not: ``diffcache methods | models | info | doctor``."""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_options import (
    BlockLength,
    Debug,
    Dtype,
    Frames,
    GenLength,
    Guidance,
    Image,
    Pixels,
    Prompt,
    Settings,
    refuse_pictures,
    refuse_texts,
    refuse_without_method,
)
from .cli_stopping import load_torch
from .errors import ConfigError, unknown

if TYPE_CHECKING:
    from .media.facts import Subject

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))


def _listed(find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``find`` returns; plugins that cannot be loaded are named on stderr."""
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        found = find()
    for note in dict.fromkeys(str(note.message) for note in notes if issubclass(note.category, UserWarning)):
        print(f"warning: {' '.join(note.split())}", file=sys.stderr)
    return found


METHODS_EPILOG = "Examples:\n\n  diffcache methods\n\n  diffcache methods worldcache\n\n  diffcache methods --json"


def methods(
    name: Annotated[str | None, typer.Argument(help="Explain the fields of one method.")] = None, as_json: Json = False
) -> None:
    """List the methods: what each does, where, whether it needs a calibration, and its memory.

    With a name: its fields with defaults and meanings, and its presets. A field is set by --set FIELD=VALUE.
    """
    load_torch()
    from .media.facts import describe_method
    from .media.terminal import say, tabulate
    from .methods import list_methods

    known = _listed(list_methods)
    if name is not None and name not in known:
        raise ConfigError(unknown("method", name, known))
    facts = {n: describe_method(c) for n, c in known.items() if name in (None, n)}
    if as_json:
        _print_json(facts if name is None else facts[name])
    elif name is None:
        columns = ("method", "what it does", "site", "calibration", "memory of one branch", "presets")
        tabulate(columns, [_row(n, f) for n, f in facts.items()])
        say("numel counts numbers, element_size is that of the dtype in which values rest (cache_dtype).")
        say("Fields of a method: diffcache methods NAME. Bytes, for a model: diffcache info MODEL --method NAME")
    else:
        _explain(name, facts[name])


def _row(name: str, facts: dict[str, Any]) -> tuple[str, ...]:
    formula = re.split(r", where|;", facts["memory"])[0]  # the rest stands in the method's own page
    presets = ", ".join(facts["presets"]) or "none"
    return name, facts["summary"], facts["site"], facts["calibration"], formula, presets


def _explain(name: str, facts: dict[str, Any]) -> None:
    from .media.terminal import say, tabulate

    say(f"{name}: {facts['summary']}\n\n{facts['text']}\n")
    rows = [(field, json.dumps(f["default"]), f["meaning"]) for field, f in facts["fields"].items()]
    tabulate(("field", "default", "meaning"), rows)
    for preset, values in facts["presets"].items():
        say(f"Preset {name}:{preset}: " + ", ".join(f"{k}={v}" for k, v in values.items()))
    model = "--model tiny-llada " if facts["kind"] == "language" else ""
    say(f"Try: diffcache sample {model}--method {name} --compare")


def models(as_json: Json = False) -> None:
    """List the models known by name, and whether they are here. The embedded ones need no network."""
    from dataclasses import asdict

    load_torch()
    from .media.facts import presence
    from .media.terminal import tabulate
    from .zoo import list_language_models, list_models

    known = {**_listed(list_models), **list_language_models()}
    here = {name: presence(entry) for name, entry in known.items()}
    if as_json:
        _print_json({n: {**asdict(e), "task": e.task, "here": here[n]} for n, e in known.items()})
        return
    rows = [
        (e.name, "embedded" if e.embedded else e.source, e.task, e.description, here[e.name]) for e in known.values()
    ]
    tabulate(("model", "source", "task", "what it is", "here"), rows)


INFO_EPILOG = (
    "Examples:\n\n  diffcache info tiny-wan\n\n  diffcache info tiny-wan --method taylorseer --frames 9\n\n"
    "  diffcache info wan2.1 --method worldcache:cache_dtype=float16 --height 480 --width 832 --json\n\n"
    "  diffcache info tiny-llada --method elastic --gen-length 512"
)


def info(
    model: Annotated[str, typer.Argument(help="Zoo name (see: diffcache models), folder of a pipeline, or hub id.")],
    method: Annotated[
        str | None, typer.Option(help="Estimate what this method would hold: a name with fields, or a file.")
    ] = None,
    settings: Settings = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    height: Pixels = None,
    width: Pixels = None,
    frames: Frames = None,
    prompt: Prompt = None,
    image: Image = None,
    guidance: Guidance = None,
    gen_length: GenLength = None,
    block_length: BlockLength = None,
    dtype: Dtype = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show a model's anatomy, which methods work on it and why others do not, and the command that samples it.

    With --method: how much memory that would hold, before anything is computed. Nothing is downloaded.

    Of a calibrated method also what its table says: plans, which steps are computed, whether levels helped.
    """
    from .zoo import is_language_model

    lengths = {"gen_length": gen_length, "block_length": block_length}
    if is_language_model(model):
        refuse_pictures(model, height=height, width=width, frames=frames, image=image, guidance=guidance, steps=steps)
        _info_text(model, method, settings or [], prompt, lengths, dtype, as_json)
        return
    from .media.request import Request, check_model

    entry = check_model(model)
    refuse_texts(model, **lengths)
    load_torch()
    from .media.facts import Subject

    request = Request(prompt, None, None, image, None, steps, 0, guidance, height, width, frames)
    if method is None:
        refuse_without_method(**request.options(), set=settings or None)
    subject = Subject(model, entry, request, dtype)
    if method is not None:
        _info_method(subject, method, settings or [], as_json)
    elif as_json:
        _print_json(subject.to_dict())
    else:
        _show(subject)


def _info_method(subject: Subject, method: str, settings: list[str], as_json: bool) -> None:
    """What a method would hold, and what was measured for it."""
    from .cli_tables import find_table, no_table
    from .media.session import method_config
    from .media.terminal import say, summarise

    estimate = subject.estimate(method, settings)
    config = method_config(method, settings, subject.entry)
    table = find_table(subject, config)
    if as_json:
        _print_json({**subject.to_dict(estimate), "table": table and table.to_dict()})
        return
    _show_estimate(subject, estimate, config)
    if table is not None:
        summarise(f"\n{table.title}", table.facts())
        if table.decisions():
            say("Decisions: F computes a step, p some of its tokens, c predicts it. What a guard adds comes on top.")
    elif lacking := no_table(subject, config):
        say(f"\n{lacking}")


def _info_text(
    model: str,
    method: str | None,
    settings: list[str],
    prompt: str | None,
    lengths: dict[str, int | None],
    dtype: str | None,
    as_json: bool,
) -> None:
    from .media.terminal import say, summarise, tabulate
    from .sizes import size_text

    load_torch()
    from .text.facts import TextSubject
    from .text.request import TextRequest

    request = TextRequest(**lengths)
    if method is None:
        refuse_without_method(**lengths, prompt=prompt, set=settings or None)
    subject = TextSubject(model, request, dtype)
    held = None if method is None else subject.estimate(method, settings, prompt)
    if as_json:
        _print_json(subject.to_dict(held))
        return
    if held is not None:
        title = f"{subject.name} · {held['method']}"
        weights = size_text(held["weights"])
        facts = [("weights", weights), ("tokens", str(held["tokens"])), ("held", size_text(held["bytes"]))]
        summarise(title, [*facts, ("of its weights", f"{held['bytes'] / held['weights']:.1%}")])
        say("By the method's formula, of one sequence; stats() has the real figures after a run.")
        return
    summarise(subject.name, subject.facts())
    if subject.missing:
        say(f"\nAnatomy and methods cannot be told: {subject.missing}")
        return
    anatomy = subject.anatomy()
    tabulate(tuple(anatomy), [tuple(anatomy.values())])
    tabulate(("method", "here", "why not"), subject.methods())
    say(f"Memory of a method: diffcache info {subject.name} --method elastic")


def _show(subject: Subject) -> None:
    from .media.terminal import say, summarise, tabulate

    summarise(subject.name, subject.facts())
    if subject.missing:
        say(f"\nAnatomy and methods cannot be told: {subject.missing}")
        return
    rows = [(a["expert"], a["class"], a["size"], a["blocks"], a["sites"], a["units"]) for a in subject.anatomy()]
    tabulate(("denoiser", "class", "weights", "blocks", "sites", "units"), rows)
    tabulate(("method", "here", "why not, or what it needs"), subject.methods())
    say(f"Memory of a method: diffcache info {subject.name} --method worldcache")


def _show_estimate(subject: Subject, estimate: Any, config: Any) -> None:
    from .media.terminal import say, summarise, tabulate
    from .sizes import read_size, size_text

    summarise(f"{subject.name} · {estimate.method}", [("denoiser", size_text(estimate.denoiser_bytes))])
    rows = [
        (b.expert, b.branch, *_sizes(b.cached_bytes, b.device_bytes, estimate.denoiser_bytes))
        for b in estimate.branches
    ]
    total = _sizes(estimate.cached_bytes, estimate.device_bytes, estimate.denoiser_bytes)
    tabulate(("denoiser", "branch", "cached", "on its device", "of its weights"), [*rows, ("total", "", *total)])
    say("Exact savings come on top; stats() has the real figures after a run. memory= limits what is on the device.")
    budget = read_size(getattr(config, "memory", None))
    if budget is not None and budget < estimate.device_bytes:
        say(f"A run with memory={config.memory} is refused: it is less than {size_text(estimate.device_bytes)}.")


def _sizes(cached: int, device: int, denoiser: int) -> tuple[str, str, str]:
    from .sizes import size_text

    return size_text(cached), size_text(device), f"{100 * cached / denoiser:.2g}%"


def doctor(
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Compile the GPU kernels for four targets instead; no GPU is needed.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check the installation: versions, devices, extras, and whether the embedded weights load.

    What is missing comes with the command that gets it. Exit code 1 only if something needed is broken.
    """
    load_torch()
    if kernels:
        from .kernels.aot import compile_all, show

        raise typer.Exit(show(compile_all(dtypes=["bfloat16"], thickest=True)))
    from dataclasses import asdict

    from . import __version__
    from .media.health import examine
    from .media.terminal import say, summarise

    checks = examine()
    healthy = all(check.state != "broken" for check in checks)
    if as_json:
        _print_json({"diffcache": __version__, "healthy": healthy, "checks": [asdict(check) for check in checks]})
    else:
        summarise(f"diffcache {__version__}", [(check.name, check.value) for check in checks])
        for state, title in (("broken", "Broken, needed:"), ("optional", "Not here, only some things need it:")):
            wrong = [check for check in checks if check.state == state and check.remedy]
            if wrong:
                say("\n".join([f"\n{title}", *(f"  {check.name}: {check.remedy}" for check in wrong)]))
    if not healthy:
        raise typer.Exit(1)


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(epilog=METHODS_EPILOG)(methods)
    app.command(epilog="Examples:\n\n  diffcache models\n\n  diffcache models --json")(models)
    app.command(epilog=INFO_EPILOG)(info)
    app.command(epilog="Examples:\n\n  diffcache doctor\n\n  diffcache doctor --json")(doctor)
