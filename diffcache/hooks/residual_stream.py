"""The hidden stream of a partial pass in token order (layout B)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels import gather_norm, scatter_gather_norm, scatter_update
from .selection import Place, Selection
from .token_stream import TokenStream, Update


class Stream(TokenStream):
    """Complete for stale tokens, and the rows of the others."""

    def __init__(self, whole: Tensor, place: Place, selection: Selection) -> None:
        super().__init__(whole, place, selection)
        self._pending: Update | None = None

    def narrow(self, count: int) -> None:
        if count != self.count:
            self.finish()
            self.rows = self._selection.take(self.whole, self._place, count)
            self.count = count

    def hand_on(self, poison: bool) -> Tensor:
        if poison and self.rows is not self.whole:
            rows = self._selection.rows(self.count, self._place.offset, self._place.length)
            self.whole.index_fill_(1, rows, torch.nan)
        return self.whole

    def finish(self) -> Tensor:
        self.flush()
        self.unpack()
        return self.whole

    def unpack(self) -> None:
        if self.rows is not self.whole:
            self._selection.put(self.whole, self._place, self.rows, self.count)
            self.rows, self.count = self.whole, self._selection.tokens

    def advance(self, updates: list[Update]) -> None:
        """A block has run on the rows: kernel S once for each part of it."""
        for update in updates:
            self.add(update)
        self.flush()

    # -- the complete stream under kernels S, G and F --------------------------------------------------------------

    def add(self, update: Update) -> None:
        self.flush()
        self._pending = update

    def flush(self) -> None:
        update, self._pending = self._pending, None
        if update is not None:
            scatter_update(self.tokens, update.fresh, update.cache, gate=update.gate, **self._places(update))
            update.held.seal()

    def take(self, count: int) -> Tensor:
        self.flush()
        return self.tokens.index_select(1, self._selection.rows(count))

    def normed(
        self, count: int, kind: str, eps: float, scale: Tensor | None, shift: Tensor | None, out: Tensor
    ) -> None:
        norm = dict(scale=scale, shift=shift, eps=eps, kind=kind, out=out)
        rows, update, self._pending = self._selection.rows(count), self._pending, None
        if update is None:
            gather_norm(self.tokens, rows, **norm)
            return
        norm |= dict(next_index=rows, next_inverse=self._selection.inverse(count), **self._places(update))
        scatter_gather_norm(self.tokens, update.fresh, update.cache, gate=update.gate, **norm)
        update.held.seal()

    def _places(self, update: Update) -> dict[str, Tensor]:
        """Where the fresh rows of an update go."""
        count = update.fresh.shape[1]
        return {"index": self._selection.rows(count), "inverse": self._selection.inverse(count)}
