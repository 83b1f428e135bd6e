"""``diffcache calibrate``: measure what a method needs to know about a model, and write it to a schedule file."""

from __future__ import annotations

import re
import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from zlib import crc32

import typer

from .cli_options import Asked, Model, Settings, asks
from .cli_stopping import kept_calibration, load_torch, stoppable
from .errors import ConfigError

if TYPE_CHECKING:
    from .learn import Calibration
    from .media.session import Session

SUFFIX = ".safetensors"
#: of the file that holds what an interrupted calibration has measured
KEPT = ".partial"
EPILOG = (
    "Examples:\n\n"
    "  diffcache calibrate --model tiny-wan --method magcache --out tiny-wan.safetensors\n\n"
    "  diffcache sample --model tiny-wan --method magcache --schedule tiny-wan.safetensors --compare\n\n"
    "  diffcache calibrate --model tiny-wan --method auto --steps 30 --out auto.safetensors\n\n"
    "  diffcache calibrate --model tiny-wan --method teacache --seeds 0,1,2 --steps 30 --out drift.safetensors\n\n"
    "  diffcache calibrate --model tiny-dit --method diffsparse --budget 2x --out sparse.safetensors\n\n"
    "  diffcache calibrate --model tiny-wan --method auto --quick --out quick.safetensors\n\n"
    "  diffcache calibrate --model tiny-llada --method flashblock --out heads.safetensors"
)


@asks
def calibrate(
    asked: Asked,
    method: Annotated[
        str, typer.Option(help="A method that needs numbers: auto, diffsparse, flashblock, magcache or teacache.")
    ],
    model: Model = "tiny-world",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help=f"File to write ({SUFFIX}).", show_default=f"out/<model>-<method>{SUFFIX}"),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Seeds of the runs, one each: 0,1,2.", show_default="the method's")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; the schedule holds for that number only.")] = None,
    degree: Annotated[
        int | None, typer.Option(help="teacache: highest degree of the polynomial.", show_default="4")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="diffsparse: a share of the tokens (0.5), or measured here: a speed-up (2x) or the denoiser's time "
            "(350ms).",
            show_default="0.5",
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Measure less, in a fraction of the time. auto: fewer seeds and plans, no search of placements; "
            "diffsparse: the one-shot table, without learning. --seeds and --set have precedence.",
        ),
    ] = False,
    settings: Settings = None,
) -> None:
    """Run a model densely and measure what a method needs to know about it.

    magcache: how the size of the residual over all blocks changes at each step. teacache: a polynomial from the
    change of the first block's modulated input to that of the output, with how well it fits. auto: what spans of
    predicted steps do to the result, and from it plans for a range of speed-ups (--set speedups=[2,3,4]). diffsparse:
    which steps are computed, and which share of its tokens every module computes at each (--budget 2x: in half of the
    measured time). flashblock: which heads of a language model compute attention outside the block at which step;
    --seeds are then numbers of held-out problems (or --prompt), --steps those of a block that are told apart.

    What it costs, in dense generations: magcache and teacache one a seed; auto and diffsparse about 200,
    with --quick about 30 and 40 (docs/calibration.md). The other methods have no quick mode.

    The file holds for this model, method, sampler and number of steps; with others it is refused. A long calibration
    that was interrupted goes on where it was when the same command is given again.
    """
    from .media.request import check_model, short_name
    from .media.terminal import StepProgress, console, say, summarise
    from .media.writing import check_target

    wanted = None if seeds is None else read_seeds(seeds)
    if method == "flashblock":
        from .cli_calibrate_heads import calibrate_heads

        target = check_target(out or Path("out") / f"{short_name(model)}-{method}{SUFFIX}", (SUFFIX,))
        calibrate_heads(asked, model, target, wanted, steps, settings or [], quick, degree=degree, budget=budget)
        return
    check_model(model)
    request = asked.request(steps)
    target = check_target(out or Path("out") / f"{short_name(model)}-{method}{SUFFIX}", (SUFFIX,))
    load_torch()  # not before everything light is checked
    from .learn import describe, make_calibrator, write_calibration
    from .media.runs import generate
    from .media.session import calls_of, open_session, read_fields

    options = {} if degree is None else {"degree": degree}
    options |= {} if budget is None else read_fields([f"budget={budget}"])
    calibrator = make_calibrator(method, quick, **options, **read_fields(settings or []))
    if quick and not calibrator.quick:
        say(calibrator.no_quick)
    wanted = wanted or read_seeds((quick and calibrator.quick_seeds) or calibrator.seeds)
    kept = target.with_suffix(f".{_mark(model, method, settings, degree, budget, asked, steps, wanted, quick)}{KEPT}")
    with stoppable(partial(kept_calibration, kept)):
        session = open_session(model, method, [], request, asked.dtype, asked.device)
        for note in session.call.notes:
            say(note)
        with StepProgress(console()) as progress:
            calls = calls_of(session, wanted)
            runs = [partial(generate, arguments=call.arguments, seed=seed) for seed, call in calls.items()]
            found = calibrator.measure(session.pipe, runs, progress, kept)
        write_calibration(found, target)
    summarise(
        f"{session.name} · {method} · {found.steps} steps · {found.sampler}",
        [*describe(found), ("written to", str(target))],
    )
    say(f"use it: {_use(session, target, found, asked)}")


def _mark(*given: Any) -> str:
    """Tells apart what interrupted calibrations of one file name were about."""
    return f"{crc32(repr(given).encode()):08x}"


def read_seeds(text: str) -> list[int]:
    """``"0,1,2"`` as numbers; raises ConfigError where it does not read."""
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"\d+", part) and int(part) < 2**63 for part in parts):
        raise ConfigError(f"seeds: '{text}' is not a list of seeds, must be whole numbers >= 0 with commas: 0,1,2")
    if len(set(parts)) < len(parts):
        raise ConfigError(f"seeds: '{text}' names a seed twice, must be different ones")
    return [int(part) for part in parts]


def _use(session: Session, target: Path, found: Calibration, asked: Asked) -> str:
    words = ["diffcache", "sample", "--model", session.model, "--method", found.method, "--schedule", str(target)]
    # as asked for: samplers with two calls a step run more than that
    return shlex.join([*words, *asked.words, "--steps", str(session.call.steps), "--compare"])
