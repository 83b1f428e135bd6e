"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
