"""``diffcache report``: methods, other packages' caches and the control, measured side by side on a model."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_options import LANGUAGE, Asked, Decoding, Model, Steps, asks, refuse_pictures, refuse_texts
from .cli_stopping import KeptReport, load_torch, stoppable
from .errors import ConfigError

if TYPE_CHECKING:
    from .report import Loss, Report

EPILOG = (
    "Examples:\n\n"
    "  diffcache report --model tiny-wan --out out/report\n\n"
    "  diffcache report --methods none,worldcache:computed=[8,12,16,24],taylorseer,diffusers:mag,cache-dit:dbcache\n\n"
    "  diffcache report --methods worldcache,fbcache --sweep --steps 50 --seeds 8\n\n"
    "  diffcache report --out out/report --resume\n\n"
    "  diffcache report --out out/now --baseline main/report.json --tolerance 0.05\n\n"
    "  diffcache report --model tiny-llada --methods freecache,fast-dllm:dual,elastic --problems 100"
)


@asks
def report(
    asked: Asked,
    decoding: Decoding,
    model: Model = "tiny-wan",
    methods: Annotated[
        str | None,
        typer.Option(
            help="Names with commas, each with settings: worldcache:max_skip=6. A list of values is a sweep: "
            "worldcache:computed=[8,12,16]. diffusers:NAME and cache-dit:NAME are those packages' own caches.",
            show_default="a set that shows diffcache beside its peers",
        ),
    ] = None,
    steps: Steps = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds; every row runs on each.", show_default="8")] = None,
    problems: Annotated[
        int | None,
        typer.Option(
            help="How many held-out problems, or prompts of --prompts.", show_default="60", rich_help_panel=LANGUAGE
        ),
    ] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Vary the one natural knob of each method.")] = False,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Text file, one prompt a line, taken in turn by seed. Language models: .txt or .jsonl."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="PATH", help="Folder to write.", show_default="out/report-<model>"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run in --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew where --out holds a report.")] = False,
    baseline: Annotated[
        Path | None, typer.Option(help="An older report.json: exit 1 when a method lost more than the tolerance.")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="With --baseline: share of a figure that may be lost.", show_default="0.05")
    ] = None,
) -> None:
    """Measure methods on a model and write report.json, report.html and pictures.

    Every row is compared with dense sampling of the same seed, and with the same sampler with fewer steps, which every
    cache must beat. What was measured is kept after each seed: --resume goes on after an interruption.

    Of language models: right answers, tokens/s, forwards, rows and memory on problems, beside vanilla and fewer steps.
    """
    from .media.request import short_name
    from .zoo import is_language_model

    against = _Against.of(baseline, tolerance)
    target = Path("out") / f"report-{short_name(model)}" if out is None else read_folder(out)
    shared = {"steps": steps, "out": target, "sweep": sweep, "prompts": prompts}
    shared |= {"resume": resume, "overwrite": overwrite}
    if is_language_model(model):
        others = {name: value for name, value in asked.content.items() if name not in ("prompt", "guidance")}
        refuse_pictures(model, **others, seeds=seeds)
        if asked.prompt is not None:
            raise ConfigError("prompt: one prompt is no measurement, must be a file of them: --prompts FILE")
        given = {**shared, **decoding.options, "guidance": asked.guidance, "problems": problems}
        _report_text(model, methods, given, asked, against)
        return
    refuse_texts(model, **decoding.options, problems=problems)
    _report_pictures(model, methods, {**shared, "seeds": 8 if seeds is None else seeds}, asked, against)


def read_folder(text: str) -> Path:
    """The folder of ``--out``; raises ConfigError where none is named."""
    if not text.strip():
        raise ConfigError(f"out: '{text}' names no folder, must be one to write the report to: out/report")
    return Path(text)


@dataclass(frozen=True)
class _Against:
    """An older report, and the share of a figure that may be lost against it."""

    baseline: Path | None
    tolerance: float

    @classmethod
    def of(cls, baseline: Path | None, tolerance: float | None) -> _Against:
        tolerance = 0.05 if tolerance is None else tolerance
        if not 0 < tolerance < 1:
            raise ConfigError(f"tolerance: {tolerance} is out of range, must be between 0 and 1, e.g. 0.05")
        return cls(baseline, tolerance)

    def load(self, *kind: type) -> Any:
        """The older report, None where none was asked for."""
        from .report import load_report

        return None if self.baseline is None else load_report(self.baseline, "baseline", *kind)

    def judge(self, lost: list[Loss]) -> None:
        """Says what methods lost; exit code 1 where one did."""
        from .media.terminal import say

        said = "\n".join(f"worse than the baseline: {loss}" for loss in lost)
        say(said or f"no loss beyond {self.tolerance:.0%}")
        if lost:
            raise typer.Exit(1)


def _report_pictures(model: str, methods: str | None, shared: dict[str, Any], asked: Asked, against: _Against) -> None:
    from .media.request import check_model
    from .media.terminal import StepProgress, console, say, summarise

    check_model(model)
    load_torch()
    from .report import losses, run

    before = against.load()
    options = {name: value for name, value in asked.content.items() if value is not None}
    place = {"dtype": asked.dtype, "device": asked.device}
    with stoppable(_kept(shared, "dense", "seed")), StepProgress(console()) as progress:
        found = run(model, methods, **shared, **options, **place, on_step=progress, say=say, command=_command())
    title = f"{found.model.name}, {found.settings.steps} steps, {len(found.dense)} seeds"
    summarise(title, _facts(found, shared["out"]))
    if before is not None:
        against.judge(losses(found, before, against.tolerance))


def _report_text(model: str, methods: str | None, shared: dict[str, Any], asked: Asked, against: _Against) -> None:
    from .media.terminal import StepProgress, console, say, summarise, tabulate

    load_torch()
    from .report.language import TextReport, run, text_losses
    from .report.language.table import COLUMNS, facts, rows

    before = against.load(TextReport)
    place = {"dtype": asked.dtype, "device": asked.device}
    with stoppable(_kept(shared, "asked", "prompt")), StepProgress(console(), "") as progress:
        found = run(model, methods, **shared, **place, on_prompt=progress, say=say, command=_command())
    tabulate(COLUMNS, rows(found))
    target = shared["out"]
    written = [("page", str(target / "report.html")), ("data", str(target / "report.json"))]
    summarise(f"{found.model.name}, {len(found.asked)} prompts", [*facts(found), *written])
    if before is not None:
        against.judge(text_losses(found, before, against.tolerance))


def _kept(shared: dict[str, Any], samples: str, unit: str) -> KeptReport:
    from .report.data import DATA

    return KeptReport(shared["out"] / DATA, samples, unit, shared["resume"], shared["overwrite"])


def _command() -> str:
    """The command as it was typed, without what only this run needed and without its folders."""
    import sys

    from .report.measuring import without_folders

    words = [word for word in sys.argv[1:] if word not in ("--resume", "--overwrite", "--debug")]
    return shlex.join(["diffcache", *map(without_folders, words)])


def _facts(found: Report, target: Path) -> list[tuple[str, str]]:
    from .report.summary import summarise

    summary = summarise(found)
    facts = [("verdict", text) for text in summary.verdict] + [("warning", text) for text in summary.warnings]
    facts += [("did not run", f"{row.name}: {row.failure}") for row in summary.failed]
    return [*facts, ("page", str(target / "report.html")), ("data", str(target / "report.json"))]
