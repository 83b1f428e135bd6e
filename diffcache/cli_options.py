"""Options that several commands have."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from .errors import ConfigError

if TYPE_CHECKING:
    from .media.request import Request

state = {"debug": False}


def _debug(value: bool) -> None:
    state["debug"] = state["debug"] or value


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", callback=_debug)]

Model = Annotated[
    str, typer.Option("--model", "-m", help="Zoo name (see: diffcache models), folder of a pipeline, or hub id.")
]
Prompt = Annotated[
    str | None,
    typer.Option(help="What to show; a class number for class-to-image models. Language models: what to answer."),
]
NegativePrompt = Annotated[str | None, typer.Option(help="What not to show.")]
Image = Annotated[Path | None, typer.Option(help="Start picture of image-to-video and world models.")]
Clip = Annotated[int | None, typer.Option(help="World models: number of the recorded clip to start from.")]
Guidance = Annotated[float | None, typer.Option(help="Scale of classifier-free guidance.")]
Pixels = Annotated[int | None, typer.Option(help="Pixels.")]
Frames = Annotated[int | None, typer.Option(help="Video frames.")]
Dtype = Annotated[str | None, typer.Option(help="float32, float16 or bfloat16.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps … By default the fastest one.")]
Actions = Annotated[
    str | None,
    typer.Option(help="World models: F forward, B back, L/R turn, A/D step left/right, N nothing, with counts: F8L4."),
]
Steps = Annotated[int | None, typer.Option(help="Denoising steps.", show_default="the model's")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A field of the method; may be repeated (diffcache methods)."),
]

LANGUAGE = "Language models"
GenLength = Annotated[
    int | None, typer.Option(help="New tokens.", rich_help_panel=LANGUAGE, show_default="the model's")
]
BlockLength = Annotated[
    int | None,
    typer.Option(help="Tokens of a block, of bidirectional models.", rich_help_panel=LANGUAGE, show_default="32"),
]
DecoderName = Annotated[
    str | None,
    typer.Option(
        help="Which tokens hold: threshold:threshold=0.8, topk, factor, entropy or edit, each with temperature=.",
        rich_help_panel=LANGUAGE,
        show_default="threshold",
    ),
]
Raw = Annotated[
    bool,
    typer.Option("--raw", help="Give the prompt as it is, not as a turn of a chat.", rich_help_panel=LANGUAGE),
]


@dataclass(frozen=True)
class Asked:
    """The options that say what of a model is sampled, and where; None leaves it to the model."""

    prompt: Prompt = None
    negative_prompt: NegativePrompt = None
    actions: Actions = None
    image: Image = None
    clip: Clip = None
    guidance: Guidance = None
    height: Pixels = None
    width: Pixels = None
    frames: Frames = None
    dtype: Dtype = None
    device: Device = None

    @property
    def content(self) -> dict[str, Any]:
        """Without where it runs."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("dtype", "device")}

    @property
    def words(self) -> list[str]:
        """As they were given, for a command that does the same again."""
        given = {f.name.replace("_", "-"): getattr(self, f.name) for f in fields(self)}
        return [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]

    def request(self, steps: int | None, seed: int = 0) -> Request:
        """As a request; raises ConfigError where a number is out of range."""
        from .media.request import Request

        return Request(steps=steps, seed=seed, **self.content)


@dataclass(frozen=True)
class Decoding:
    """The options that say how a diffusion language model decodes; None leaves it to the model."""

    gen_length: GenLength = None
    block_length: BlockLength = None
    decoder: DecoderName = None
    raw: Raw = False

    @property
    def options(self) -> dict[str, Any]:
        """By name, as given or not."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


PICTURES = ("prompt", "negative-prompt", "actions", "image", "guidance", "height", "width", "frames", "steps")
TEXTS = ("prompt", "steps", "guidance", *(f.name.replace("_", "-") for f in fields(Decoding)))


def refuse_pictures(model: str, **given: Any) -> None:
    """Raises ConfigError where an option that only pictures have was given for a language model."""
    _refuse(given, f"{model} is a language model (it takes {', '.join(TEXTS)})")


def refuse_texts(model: str, **given: Any) -> None:
    """Raises ConfigError where an option that only language models have was given for a model of pictures."""
    _refuse(given, f"{model} is not a language model (of these it may take {', '.join(PICTURES)})")


def refuse_without_method(**given: Any) -> None:
    """Raises ConfigError where something was given that an estimate alone asks for, and no method to estimate."""
    _refuse(given, "it is for an estimate of memory: give --method, too")


def _refuse(given: dict[str, Any], why: str) -> None:
    for name, value in given.items():
        if value is not None and value is not False:
            shown = str(value) if isinstance(value, Path) else value
            raise ConfigError(f"{name}: {shown!r} cannot be used, {why}")


def asks(command: Callable[..., None]) -> Callable[..., None]:
    """A command with ``--debug`` and the options of its arguments that are dataclasses, behind its own options."""
    own, kind = inspect.signature(command, eval_str=True).parameters, inspect.Parameter.KEYWORD_ONLY
    bundles = {name: p.annotation for name, p in own.items() if is_dataclass(p.annotation)}
    options = [p.replace(kind=kind) for name, p in own.items() if name not in bundles]
    for bundle in bundles.values():
        hints = get_type_hints(bundle, include_extras=True)
        options += [
            inspect.Parameter(f.name, kind, default=f.default, annotation=hints[f.name]) for f in fields(bundle)
        ]
    options.append(inspect.Parameter("debug", kind, default=False, annotation=Debug))

    @wraps(command)
    def run(debug: bool, **given: Any) -> None:
        taken = {
            name: bundle(**{f.name: given.pop(f.name) for f in fields(bundle)}) for name, bundle in bundles.items()
        }
        command(**given, **taken)

    run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    run.__annotations__ = {option.name: option.annotation for option in options}
    return run
