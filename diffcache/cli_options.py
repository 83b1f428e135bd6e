"""Options that every command has."""

from __future__ import annotations

from typing import Annotated

import typer

state = {"debug": False}


def _debug(value: bool) -> None:
    state["debug"] = state["debug"] or value


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", callback=_debug)]
