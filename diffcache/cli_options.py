"""Options that several commands have."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from .media.request import Request

state = {"debug": False}


def _debug(value: bool) -> None:
    state["debug"] = state["debug"] or value


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", callback=_debug)]

Model = Annotated[
    str, typer.Option("--model", "-m", help="Zoo name (see: diffcache models), folder of a pipeline, or hub id.")
]
Prompt = Annotated[str | None, typer.Option(help="What to show; a class number for class-to-image models.")]
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

    def request(self, steps: int | None, seed: int = 0) -> Request:
        """As a request; raises ConfigError where a number is out of range."""
        from .media.request import Request

        return Request(steps=steps, seed=seed, **self.content)


def asks(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the options of :class:`Asked`, which it gets as ``asked``, and ``--debug`` behind its own."""
    hints, own = get_type_hints(Asked, include_extras=True), inspect.signature(command, eval_str=True).parameters
    kind = inspect.Parameter.KEYWORD_ONLY
    options = [p.replace(kind=kind) for p in own.values() if p.name != "asked"]
    options += [inspect.Parameter(f.name, kind, default=f.default, annotation=hints[f.name]) for f in fields(Asked)]
    options.append(inspect.Parameter("debug", kind, default=False, annotation=Debug))

    @wraps(command)
    def run(debug: bool, **given: Any) -> None:
        asked = Asked(**{f.name: given.pop(f.name) for f in fields(Asked)})
        command(**given, asked=asked)

    run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    run.__annotations__ = {option.name: option.annotation for option in options}
    return run
