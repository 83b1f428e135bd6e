"""The text as it unmasks, on a terminal; elsewhere nothing is drawn."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import groupby
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from ..llm.state import SequenceState

MASK, OLD, NEW, OPEN = "\u2591", "", "bold green", "dim"


class Screen:
    """Draws answers under their titles while they are decoded. Use it as a context.

    Attributes:
        seconds: what drawing took since :meth:`watch`; it is no part of a generation's time.

    Args:
        out: where to draw; if it is no terminal, nothing is drawn and nothing is read of the device.
        tokenizer: of the model.
    """

    def __init__(self, out: Console, tokenizer: Any) -> None:
        self.console, self.tokenizer = out, tokenizer
        self.seconds = 0.0
        self._panels: dict[str, Text] = {}
        self._live: Live | None = None

    def __enter__(self) -> Screen:
        if self.console.is_terminal:
            # No thread of its own: drawing happens in `watch` alone, where it is timed and taken off.
            self._live = Live(console=self.console, auto_refresh=False, transient=True, vertical_overflow="crop")
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def watch(self, title: str) -> Callable[[SequenceState], None] | None:
        """For ``on_step`` of a generation; None where nothing is drawn."""
        self.seconds = 0.0
        live = self._live
        if live is None:
            return None

        def draw(state: SequenceState) -> None:
            began = time.perf_counter()
            self._panels[title] = canvas(state, self.tokenizer)
            live.update(Group(*(Panel(text, title=name) for name, text in self._panels.items())), refresh=True)
            self.seconds += time.perf_counter() - began

        return draw


def canvas(state: SequenceState, tokenizer: Any) -> Text:
    """The canvas of the first sequence: decoded tokens, those of this step marked, and a block for each mask."""
    first, last = state.prompt_length, int(state.end[0, 0])
    ids, decoded = state.ids[0, first:last].tolist(), state.decoded_at[0, first:last].tolist()
    masked = state.masked[0, first:last].tolist()
    styles = [OPEN if mask else NEW if at == state.step else OLD for mask, at in zip(masked, decoded, strict=True)]
    text = Text()
    for style, group in groupby(zip(ids, styles, strict=True), key=lambda pair: pair[1]):
        tokens = [token for token, _ in group]
        text.append(MASK * len(tokens) if style == OPEN else tokenizer.decode(tokens), style)
    return text
