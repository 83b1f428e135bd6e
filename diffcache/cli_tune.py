"""``diffcache tune``: the setting of a method that reaches a target, as a file that ``--method`` takes."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from .cli_calibrate import read_seeds
from .cli_options import Asked, Model, Settings, Steps, asks
from .cli_stopping import load_torch
from .errors import ConfigError

EPILOG = (
    "Examples:\n\n"
    "  diffcache tune --model tiny-dit --target 'psnr>=35'\n\n"
    "  diffcache tune --model tiny-wan --method taylorseer --target 'speedup>=2' --out out/taylorseer.yaml\n\n"
    "  diffcache sample --model tiny-wan --method out/taylorseer.yaml --compare"
)


@asks
def tune(
    asked: Asked,
    target: Annotated[str, typer.Option(help="psnr>=NUMBER (dB against dense) or speedup>=NUMBER (denoiser).")],
    model: Model = "tiny-world",
    method: Annotated[str, typer.Option(help="Method to tune, with fixed fields: worldcache:max_skip=6.")] = "auto",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File to write (.yaml).", show_default="out/<model>-<method>.yaml"),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of the search.")] = "1000,1001,1002",
    verify: Annotated[str, typer.Option(help="Other seeds, on which the setting is verified.")] = "2000,2001,2002,2003",
    steps: Steps = None,
    settings: Settings = None,
) -> None:
    """Search the one knob of a method for a target, verify it on other seeds, and write the setting.

    psnr>=30: the fastest setting with which all seeds of the search are that close to dense; nine in ten of the other
    seeds must confirm it. speedup>=2: the most faithful setting that is so fast. Exit code 1 if they do not.
    """
    from .media.request import check_model, short_name
    from .media.terminal import StepProgress, console, say, summarise
    from .media.writing import check_target

    search, others = read_seeds(seeds), read_seeds(verify)
    if set(search) & set(others):
        raise ConfigError(f"verify: '{verify}' holds seeds of the search ({seeds}), must be other ones")
    check_model(model)
    request = asked.request(steps)
    name = f"{short_name(model)}-{method.partition(':')[0]}.yaml"
    path = check_target(out or Path("out") / name, (".yaml", ".yml"))
    load_torch()  # not before everything light is checked
    from .learn.tuning import Target, Tuner
    from .media.session import calls_of, open_session

    wanted = Target.read(target)
    session = open_session(model, method, settings or [], request, asked.dtype, asked.device)
    with StepProgress(console()) as progress:
        tuner = Tuner(session.pipe, session.config, calls_of(session, [*search, *others]), progress)
        found = tuner.tune(wanted, search, others)
    path.parent.mkdir(parents=True, exist_ok=True)
    found.config.save(path)
    knob = tuner.knob.field
    facts = [(knob, str(getattr(found.config, knob))), ("search", str(found.search)), ("verified", str(found.verified))]
    summarise(f"{session.name} · {session.config.method} · {target}", [*facts, ("written to", str(path))])
    if not found.reached:
        say(f"not reached on the other seeds: {target}; more seeds of the search (--seeds) make it safer")
        raise typer.Exit(1)
    words = ["diffcache", "sample", "--model", session.model, "--method", str(path), *asked.words]
    say(f"use it: {shlex.join([*words, '--steps', str(session.call.steps), '--compare'])}")
