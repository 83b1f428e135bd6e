"""The hidden stream of a partial pass on its way through the blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import gather_norm, scatter_gather_norm, scatter_update
from .selection import Place, Selection
from .token_passes import Memory


@dataclass(frozen=True)
class Update:
    """What a module adds to the stream.

    Attributes:
        held: of the module.
        cache: its results, ``[B, tokens, D]``: those of stale tokens count.
        fresh: ``[B, count, D]``, of the first ``count`` tokens of the ranking, in the selection's order.
        gate: ``[B, 1, D]``.
    """

    held: Memory
    cache: Tensor
    fresh: Tensor
    gate: Tensor


class Stream:
    """The hidden stream under way in token order (layout B): complete for stale tokens, and the rows of the others.

    The last update waits for the norm that reads it, so that kernel F can do both in one pass.

    Args:
        whole: ``[B, length, D]``, ours to write to.
        place: where the tokens are in it.
        selection: the tokens of the pass.
    """

    def __init__(self, whole: Tensor, place: Place, selection: Selection) -> None:
        self.whole = self.face = whole
        self._place, self._selection = place, selection
        self.count = selection.tokens
        self.rows = whole
        self._pending: Update | None = None

    def narrow(self, count: int) -> None:
        """Go on with the first ``count`` tokens of the ranking."""
        if count != self.count:
            self.finish()
            self.rows = self._selection.take(self.whole, self._place, count)
            self.count = count

    @property
    def tokens(self) -> Tensor:
        """The tokens' rows in the complete stream."""
        return self.whole.narrow(self._place.axis, self._place.offset, self._selection.tokens)

    def hand_on(self, poison: bool) -> Tensor:
        """What the block returns as its stream; with ``poison`` rows that nobody may look at are NaN."""
        if poison and self.rows is not self.whole:
            rows = self._selection.rows(self.count, self._place.offset, self._place.length)
            self.whole.index_fill_(1, rows, torch.nan)
        return self.whole

    def finish(self) -> Tensor:
        """Write everything to its place: the complete stream is what it has to be."""
        self.flush()
        self.unpack()
        return self.whole

    def unpack(self) -> None:
        """Write the rows that are computed to their places."""
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
        """Fresh rows into the cache, and gate * cache onto the stream, before anything else reads either."""
        self.flush()
        self._pending = update

    def flush(self) -> None:
        """Kernel S, if an update waits."""
        update, self._pending = self._pending, None
        if update is not None:
            scatter_update(self.tokens, update.fresh, update.cache, gate=update.gate, **self._places(update))
            update.held.seal()

    def take(self, count: int) -> Tensor:
        """The first ``count`` tokens of the ranking, ``[B, count, D]``."""
        self.flush()
        return self.tokens.index_select(1, self._selection.rows(count))

    def normed(self, count: int, kind: str, eps: float, scale: Tensor, shift: Tensor, out: Tensor) -> None:
        """The same, normed and modulated, into ``out``: kernel F if an update waits, else G.

        Args:
            count: of tokens, >= 1.
            kind, eps: of the norm.
            scale, shift: ``[B, 1, D]``.
            out: ``[B, count, D]``.
        """
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
