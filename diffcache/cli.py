"""The command line: ``diffcache sample | report | calibrate | tune | methods | models | info | doctor``.

Exit codes: 0 done, 1 failed although the arguments were right, 2 wrong arguments, 130 interrupted; an error is one line
on stderr. Everything heavy is imported inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
from collections import namedtuple
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from . import __version__
from .cli_calibrate import EPILOG, calibrate
from .cli_info import add_to
from .cli_options import (
    LANGUAGE,
    Asked,
    Debug,
    Decoding,
    Model,
    Settings,
    Steps,
    asks,
    refuse_pictures,
    refuse_texts,
    state,
)
from .cli_report import EPILOG as REPORT_EPILOG
from .cli_report import report
from .cli_stopping import NOTHING, StoppedError, load_torch
from .cli_tune import EPILOG as TUNE_EPILOG
from .cli_tune import tune
from .errors import ConfigError, ScheduleFileError, UnsupportedModelError

if TYPE_CHECKING:
    from .media.session import Session

Facts = list[tuple[str, str]]
#: exit code after Ctrl-C
STOPPED = 130

app = typer.Typer(
    name="diffcache",
    help="Diffusion models sample faster when what barely changes is predicted instead of computed.",
    epilog="Try first:\n\n  diffcache sample --compare\n\nEvery command explains itself: diffcache sample --help",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        print(f"diffcache {__version__}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
    debug: Debug = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command(
    epilog="Examples:\n\n"
    "  diffcache sample --compare\n\n"
    "  diffcache sample --model tiny-world --actions F8L8R8 --out out/walk.gif\n\n"
    "  diffcache sample --model tiny-wan --prompt 'turns left' --method interval:interval=4 --out out/turn.mp4\n\n"
    "  diffcache sample --method worldcache --set computed=0.25 --set max_skip=6 --steps 50 --compare\n\n"
    "  diffcache sample --model wan2.1 --prompt 'a cat surfing' --device cuda --out out/cat.mp4\n\n"
    "  diffcache sample --model tiny-llada --method fast-dllm:dual --compare\n\n"
    "  diffcache sample --model tiny-llada --prompts problems.jsonl --out out/answers.jsonl"
)
@asks
def sample(
    asked: Asked,
    decoding: Decoding,
    model: Model = "tiny-world",
    method: Annotated[
        str | None,
        typer.Option(
            help="Name with optional preset or fields, worldcache:computed=0.25, or a .yaml/.json file.",
            show_default="worldcache; freecache for language models",
        ),
    ] = None,
    steps: Steps = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    settings: Settings = None,
    schedule: Annotated[
        Path | None, typer.Option(help="Calibrated methods: the file that diffcache calibrate wrote.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="File to write: .png, .gif or .mp4; of language models .txt or .json, with --prompts .jsonl.",
            show_default="out/<model>.png",
        ),
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Frames per second of .gif and .mp4.", show_default="8")] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Dense and accelerated of one seed side by side, timed in turn.")
    ] = False,
    repeats: Annotated[int, typer.Option(help="With --compare: timed runs of each side; medians are shown.")] = 2,
    problem: Annotated[
        int | None, typer.Option(help="Number of a held-out problem, as the prompt.", rich_help_panel=LANGUAGE)
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="File of prompts, one a line of .txt or .jsonl, all answered.", rich_help_panel=LANGUAGE),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="With --prompts: go on with the answers in --out.", rich_help_panel=LANGUAGE),
    ] = False,
) -> None:
    """Sample a model with a method: write a picture or a video, or show the text of a language model as it unmasks.

    With --compare one seed is sampled densely and with the method, and the picture shows both side by side.

    It also shows the measured speed-ups, PSNR and SSIM, and which steps were computed and which predicted.

    Of language models: both texts, tokens/s, forwards, rows, memory, whether the answers agree and are right.
    """
    from .zoo import is_language_model

    if not 1 <= repeats <= 1000:
        raise ConfigError(f"repeats: {repeats} is out of range, must be from 1 to 1000")
    if is_language_model(model):
        from .cli_text import METHOD, TextSample, sample_text

        refuse_pictures(model, fps=fps, schedule=schedule)
        chosen = METHOD if method is None else method
        wanted = (model, chosen, settings or [], steps, seed, problem, prompts, out, compare, repeats, resume)
        sample_text(TextSample(*wanted), asked, decoding)
        return
    from .media.request import check_model, short_name
    from .media.terminal import say, summarise
    from .media.writing import check_target

    fps = 8.0 if fps is None else fps
    if not 1 <= fps <= 1000:
        raise ConfigError(f"fps: {fps} is out of range, must be from 1 to 1000")
    check_model(model)
    refuse_texts(model, **decoding.options, problem=problem, prompts=prompts, resume=resume)
    request = asked.request(steps, seed)
    target = check_target(out or Path("out") / f"{short_name(model)}.png")
    load_torch()  # not before everything light is checked
    from .media.session import commands_for, open_session

    chosen = "worldcache" if method is None else method
    if schedule is not None:
        _check_calibrated(chosen)
    settings = [*(settings or []), *([f"schedule={json.dumps(str(schedule))}"] if schedule else [])]
    session = open_session(model, chosen, settings, request, asked.dtype, asked.device)
    for note in session.call.notes:
        say(note)
    with commands_for(model, steps):
        facts = _compare(session, target, fps, repeats) if compare else _sample(session, target, fps)
    summarise(session.headline, [*facts, ("written to", str(target))])


def _check_calibrated(method: str) -> None:
    """Raises ConfigError where a method is known to take no schedule file."""
    from .methods import list_methods
    from .methods.describe import needs_calibration

    known, name = list_methods("denoiser"), method.partition(":")[0]
    if name in known and not needs_calibration(known[name]):
        able = ", ".join(n for n, config in known.items() if needs_calibration(config))
        raise ConfigError(f"schedule: {name} takes no schedule file; methods that do: {able}")


def _sample(session: Session, target: Path, fps: float) -> Facts:
    from .media import brighten_depth, clip_frames, film_sheet, write
    from .media.runs import run_once
    from .media.terminal import StepProgress, console

    with StepProgress(console()) as progress:
        run = run_once(session.pipe, session.call, session.request.seed, session.config, progress)
    still = target.suffix.lower() == ".png"
    (clip,) = brighten_depth([run.clip])
    write(target, [film_sheet(clip, session.headline)] if still else clip_frames(clip), fps)
    return [("time", f"{run.seconds:.2f} s, {run.denoiser_seconds:.2f} s of it in the denoiser"), *run.facts()]


def _compare(session: Session, target: Path, fps: float, repeats: int) -> Facts:
    from .media import comparison_frames, comparison_sheet, write
    from .media.comparison import compose, psnr_text
    from .media.runs import run_pair
    from .media.terminal import StepProgress, console

    with StepProgress(console()) as progress:
        pair = run_pair(session.pipe, session.call, session.request.seed, session.config, progress, repeats)
    comparison = compose(session, pair, repeats)
    still = target.suffix.lower() == ".png"
    write(target, [comparison_sheet(comparison)] if still else comparison_frames(comparison), fps)
    times = "{:.2f}x faster: {:.2f} s dense, {:.2f} s {}"
    return [
        ("denoiser", times.format(pair.denoiser_speedup, *pair.denoiser, session.config.method)),
        ("whole pipeline", times.format(pair.pipeline_speedup, *pair.pipeline, session.config.method)),
        ("against dense", f"PSNR {psnr_text(pair.fidelity.psnr)}, SSIM {pair.fidelity.ssim:.4f}"),
        *pair.fast.facts(),
    ]


app.command(epilog=REPORT_EPILOG)(report)
app.command(epilog=EPILOG)(calibrate)
app.command(epilog=TUNE_EPILOG)(tune)
add_to(app)


# -- errors ------------------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong arguments, 130 interrupted."""
    try:
        code = _run(arguments)
    except BrokenPipeError:  # the reader (head, less) has seen enough
        _no_reader()
        code = 0
    except StoppedError as stopped:
        code = _stop(str(stopped))
    except KeyboardInterrupt:
        code = _stop(NOTHING)
    except Exception as error:
        if type(error).__name__ == "Abort":  # what older ones make of it
            sys.exit(_stop(NOTHING))
        if state["debug"]:
            raise
        code, text = _explain(error, sys.argv[1:] if arguments is None else arguments)
        print(f"error: {text}", file=sys.stderr)
    sys.exit(code)


def _stop(text: str) -> int:
    # An interruption while Python runs text leaves a mark by which python -m would end by a signal, not by a code. The
    # next text that runs, as in the making of a named tuple, removes it.
    namedtuple("Nothing", ())
    print(f"interrupted: {text}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # Ctrl-C has ended the reader as well
        _no_reader()
    return STOPPED


def _no_reader() -> None:
    """What is still to be printed goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: list[str] | None) -> int:
    _quiet()
    code = app(args=arguments, prog_name="diffcache", standalone_mode=False)
    if code == STOPPED:  # what typer makes of Ctrl-C
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _quiet() -> None:
    """Libraries keep their notices and bars for themselves: stderr is for our one line."""
    import logging
    import warnings

    warnings.simplefilter("ignore")
    for name in ("diffusers", "transformers", "huggingface_hub", "accelerate", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def _explain(error: Exception, arguments: list[str]) -> tuple[int, str]:
    """Exit code and one line for an error."""
    message = " ".join(str(error).split())
    if hasattr(error, "format_message"):
        return 2, _usage(error, arguments)
    if isinstance(error, ScheduleFileError) and message.endswith(("damaged", "not a schedule of diffcache")):
        return 2, f"{message}; must be a file that diffcache calibrate wrote"
    if isinstance(error, (ConfigError, ScheduleFileError, UnsupportedModelError)):
        return 2, message
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0].replace("_", "-")
        return (
            1,
            f"the package {package} is not installed: pip install {package} (diffcache doctor shows what is missing)",
        )
    if type(error).__name__ == "ModelNotAvailableError":
        return 1, message
    if isinstance(error, MemoryError) or "out of memory" in message.lower() or "can't allocate" in message.lower():
        return 1, "out of memory: ask for less (--height, --width, --frames) or try --dtype bfloat16"
    return 1, f"{type(error).__name__}: {message[:200]} (--debug shows where)"


def _usage(error: Any, arguments: list[str]) -> str:
    """The parser's own errors; it leaves out the value that it could not read."""
    options = getattr(getattr(error, "param", None), "opts", ())
    pairs = zip(arguments, [*arguments[1:], None], strict=True)
    value = next((after for before, after in pairs if before in options and after is not None), None)
    if value is None or not getattr(error, "message", ""):
        return " ".join(error.format_message().split())
    return f"{error.param.name}: '{value}' is not right: {' '.join(error.message.split())}"


if __name__ == "__main__":
    main()
