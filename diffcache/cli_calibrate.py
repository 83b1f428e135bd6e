"""``diffcache calibrate``: measure what a method needs to know about a model, and write it to a schedule file."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_options import Debug
from .errors import ConfigError, ScheduleFileError, UnsupportedModelError

if TYPE_CHECKING:
    from .learn import Calibration
    from .media.session import Session
    from .schedules.calibration import Expert

SUFFIX = ".safetensors"
EPILOG = (
    "Examples:\n\n"
    "  diffcache calibrate --model tiny-wan --method magcache --out tiny-wan.safetensors\n\n"
    "  diffcache sample --model tiny-wan --method magcache --schedule tiny-wan.safetensors --compare\n\n"
    "  diffcache calibrate --model tiny-wan --method teacache --seeds 0,1,2 --steps 30 --out drift.safetensors"
)


def calibrate(
    method: Annotated[str, typer.Option(help="magcache or teacache.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="Zoo name (see: diffcache models), folder of a pipeline, or hub id.")
    ] = "tiny-world",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help=f"File to write ({SUFFIX}).", show_default=f"out/<model>-<method>{SUFFIX}"),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of the dense runs, one each: 0,1,2.")] = "0",
    steps: Annotated[int | None, typer.Option(help="Denoising steps; the schedule holds for that number only.")] = None,
    degree: Annotated[int, typer.Option(help="teacache: highest degree of the polynomial.")] = 4,
    prompt: Annotated[str | None, typer.Option(help="What to show; a class number for class-to-image models.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What not to show.")] = None,
    actions: Annotated[str | None, typer.Option(help="World models: an action string, F8L4.")] = None,
    image: Annotated[Path | None, typer.Option(help="Start picture of image-to-video and world models.")] = None,
    clip: Annotated[int | None, typer.Option(help="World models: number of the recorded clip to start from.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Scale of classifier-free guidance.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    frames: Annotated[int | None, typer.Option(help="Video frames.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps … By default the fastest one.")] = None,
    debug: Debug = False,
) -> None:
    """Run a model densely and measure what a method needs to know about it.

    magcache: how the size of the residual over all blocks changes at each step. teacache: a polynomial from the
    change of the first block's modulated input to that of the output, with how well it fits.

    The file holds for this model, method, sampler and number of steps; with others it is refused.
    """
    from .media.request import Request, check_model, short_name
    from .media.terminal import StepProgress, console, say, summarise

    wanted = read_seeds(seeds)
    check_model(model)
    fields = (prompt, negative_prompt, actions, image, clip, steps, wanted[0], guidance, height, width, frames)
    request = Request(*fields)
    target = _check_target(out or Path("out") / f"{short_name(model)}-{method}{SUFFIX}")
    from .learn import calibrate as measure  # loads torch: not before everything light is checked
    from .learn import check_settings, write_calibration
    from .media.session import open_session

    check_settings(method, degree)
    session = open_session(model, method, [], request, dtype, device)
    for note in session.call.notes:
        say(note)
    with StepProgress(console()) as progress:
        runs = [_run(session, seed) for seed in wanted]
        found = measure(session.pipe, method, runs, progress=progress, degree=degree)
    write_calibration(found, target)
    summarise(f"{session.name} · {method} · {found.steps} steps · {found.sampler}", _facts(found))
    say(f"written to {target}\nuse it: {_use(model, method, target, request, found)}")


def read_seeds(text: str) -> list[int]:
    """``"0,1,2"`` as numbers; raises ConfigError where it does not read."""
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"\d+", part) and int(part) < 2**63 for part in parts):
        raise ConfigError(f"seeds: '{text}' is not a list of seeds, must be whole numbers >= 0 with commas: 0,1,2")
    if len(set(parts)) < len(parts):
        raise ConfigError(f"seeds: '{text}' names a seed twice, must be different ones")
    return [int(part) for part in parts]


def _check_target(path: Path) -> Path:
    if path.suffix != SUFFIX:
        raise ConfigError(f"out: '{path}' has the suffix '{path.suffix}', must end in {SUFFIX}")
    if path.is_dir():
        raise ConfigError(f"out: '{path}' is a folder, must be a file name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"out: '{path}' cannot be written ({error.strerror}), must be in a folder that can be"
        ) from error
    return path


def _run(session: Session, seed: int) -> Any:
    """One dense run of the session's call."""
    import torch

    def run(pipe: Any) -> None:
        try:
            pipe(**session.call.arguments, generator=torch.Generator("cpu").manual_seed(seed))
        except (ConfigError, ScheduleFileError, UnsupportedModelError):
            raise
        except ValueError as error:
            # A pipeline answers ValueError to sizes and texts that it cannot take.
            raise ConfigError(f"{type(pipe).__name__}: {error}") from error

    return run


def _facts(found: Calibration) -> list[tuple[str, str]]:
    describe = {"magcache": _about_ratios, "teacache": _about_fit}[found.method]
    several = len(found.experts) > 1
    facts = [
        (f"{name} {key}" if several else key, text) for name, e in found.experts.items() for key, text in describe(e)
    ]
    return [("dense runs", str(found.runs)), *facts]


def _about_ratios(expert: Expert) -> list[tuple[str, str]]:
    q = expert.quality
    return [
        ("branches", ", ".join(expert.branches)),
        ("ratios", f"{q['low']:.4f} to {q['high']:.4f}, at most {q['spread']:.4f} between the runs"),
    ]


def _about_fit(expert: Expert) -> list[tuple[str, str]]:
    from .learn import POOR

    q = expert.quality
    facts = [
        ("polynomial", f"degree {q['degree']:.0f} through {q['points']:.0f} points"),
        ("fit", f"R² {q['r2']:.2f}, off by {q['error']:.3f} where the output changes by {q['mean']:.3f} on average"),
    ]
    if q["r2"] >= POOR:
        return facts
    return [
        *facts,
        ("poor fit", "the first block says little about the output here: prefer magcache, or compare first"),
    ]


def _use(model: str, method: str, target: Path, request: Any, found: Calibration) -> str:
    words = ["diffcache", "sample", "--model", model, "--method", method, "--schedule", str(target)]
    words += ["--prompt", request.prompt] if request.prompt else []
    return shlex.join([*words, "--steps", str(found.steps), "--compare"])
