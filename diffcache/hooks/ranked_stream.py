"""The hidden stream of a partial pass in rank order (layout C): what a module computes is a prefix of it.

The stream is put in rank order once, where it enters, and back into token order once, behind the last block. Caches,
keys and values stay in token order and are reached through the ranking. Rows that nobody asks for wait: what modules
add to them stays in the caches until a later module computes these tokens, or the stream ends, and is then added in
one pass (kernel A), in the order in which the modules ran.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels import accumulate, gather_norm, scatter_gather_norm, scatter_update
from .selection import Place, Selection
from .token_passes import Memory
from .token_stream import TokenStream, Update


class RankedStream(TokenStream):
    """In rank order; text rows stay where they are.

    Args:
        tensor: ``[B, length, D]`` in token order; not written to.
        place: where the tokens are in it.
        selection: the tokens of the pass, ranked.
    """

    def __init__(self, tensor: Tensor, place: Place, selection: Selection) -> None:
        super().__init__(selection.take(tensor, place, selection.tokens), place, selection)
        self._order = selection.order
        #: cache, gate and memory of every module that has run
        self._parts: list[tuple[Tensor, Tensor, Memory]] = []
        #: the last of them, while its fresh rows are not in its cache yet
        self._waiting: Update | None = None
        #: ends of ranges of rows, in order, each with the number of parts that it has been given
        self._levels: list[tuple[int, int]] = [(selection.tokens, 0)]

    def hand_on(self, poison: bool) -> Tensor:
        """What the block returns as its stream; with ``poison`` nobody but the next block can have any use for it."""
        if poison:
            self.face = self.whole.clone()
            self.face.narrow(1, self._place.offset, self._selection.tokens).fill_(torch.nan)
        return self.face

    def finish(self) -> Tensor:
        self.flush()
        self.unpack()
        out, start = torch.empty_like(self.whole), 0
        self._copy_text(out, self.whole)
        into = out.narrow(1, self._place.offset, self._selection.tokens)
        for end, given in self._levels:
            self._accumulate(start, end, given, len(self._parts), into)
            start = end
        self.whole = self.face = self.rows = out
        return out

    # -- rows for blocks that run on them --------------------------------------------------------------------------

    def narrow(self, count: int) -> None:
        if self.rows is self.whole:
            self.flush()
            self._settle(count, len(self._parts))
            self.rows = self._selection.narrower(self.whole, self._place, count, self._selection.tokens)
        elif count < self.count:
            self._put_back(count)
            self.rows = self._selection.narrower(self.rows, self._place, count, self.count)
        self.count = count

    def unpack(self) -> None:
        if self.rows is not self.whole:
            self._put_back(0)
            self._copy_text(self.whole, self.rows)
            self.rows, self.count = self.whole, self._selection.tokens

    def advance(self, updates: list[Update]) -> None:
        """A block has run on ``rows``: what its modules computed goes into the caches, and the other rows wait."""
        for update in updates:
            count = update.fresh.shape[1]
            update.cache.index_copy_(1, self._selection.rows(count), update.fresh.to(update.cache.dtype))
            update.held.seal()
            self._parts.append((update.cache, update.gate, update.held))
        self._mark(self.count, len(self._parts))

    def _put_back(self, start: int) -> None:
        """Tokens of ``rows`` from ``start`` on."""
        offset, size = self._place.offset + start, self.count - start
        self.whole.narrow(1, offset, size).copy_(self.rows.narrow(1, offset, size))

    def _copy_text(self, target: Tensor, source: Tensor) -> None:
        before, behind = self._place.offset, self._place.length - self._place.offset - self._selection.tokens
        if before:
            target.narrow(1, 0, before).copy_(source.narrow(1, 0, before))
        if behind:
            target[:, -behind:].copy_(source[:, -behind:])

    # -- under kernels S, G, F and A -------------------------------------------------------------------------------

    def add(self, update: Update) -> None:
        self.flush()
        self._parts.append((update.cache, update.gate, update.held))
        self._waiting = update if update.fresh.shape[1] else None

    def flush(self) -> None:
        update, self._waiting = self._waiting, None
        if update is None:
            return
        count = update.fresh.shape[1]
        self._settle(count, len(self._parts) - 1)
        rows, order = self.tokens.narrow(1, 0, count), self._order.narrow(1, 0, count)
        scatter_update(rows, update.fresh, update.cache, order, _narrow(update.gate, 0, count), ranked=True)
        self._landed(count)

    def take(self, count: int) -> Tensor:
        """The first ``count`` tokens of the ranking, ``[B, count, D]``; all of them in token order."""
        self.flush()
        self._settle(count, len(self._parts))
        if count == self._selection.tokens:
            return self.tokens.index_select(1, self._selection.inverse(count)[0])
        return self.tokens.narrow(1, 0, count)

    def normed(
        self, count: int, kind: str, eps: float, scale: Tensor | None, shift: Tensor | None, out: Tensor
    ) -> None:
        update, done = self._waiting, len(self._parts)
        inverse = self._selection.inverse(count) if count == self._selection.tokens else None
        reach = max(count, 0 if update is None else update.fresh.shape[1])
        scale, shift = (_narrow(t, 0, reach) for t in (scale, shift))
        norm = dict(scale=scale, shift=shift, eps=eps, kind=kind, out=out)
        if update is not None:
            self._settle(reach, done - 1)
        elif any(given != done - 1 for given in self._given(count)):
            self._settle(count, done)
            gather_norm(self.tokens.narrow(1, 0, count), inverse, **norm)
            return
        self._waiting = None
        order, (cache, gate, _) = self._order.narrow(1, 0, reach), self._parts[-1]
        fresh = cache[:, :0] if update is None else update.fresh
        if inverse is not None:
            norm["next_inverse"] = order
        follow = dict(ranked=True, next_index=count if inverse is None else inverse, **norm)
        scatter_gather_norm(self.tokens.narrow(1, 0, reach), fresh, cache, order, _narrow(gate, 0, reach), **follow)
        self._landed(reach)

    def _landed(self, count: int) -> None:
        """The last part is in its cache, and in the first ``count`` rows."""
        self._parts[-1][2].seal()
        self._mark(count, len(self._parts))

    def _given(self, count: int) -> list[int]:
        """How many parts each range of the first ``count`` rows has been given."""
        starts = [0, *(end for end, _ in self._levels)]
        return [given for start, (_, given) in zip(starts, self._levels, strict=False) if start < count]

    def _settle(self, count: int, parts: int) -> None:
        """Give the first ``count`` rows what is theirs of the first ``parts``."""
        start = 0
        for end, given in self._levels:
            self._accumulate(start, min(end, count), given, parts, None)
            start = end
        self._mark(count, parts)

    def _accumulate(self, start: int, end: int, first: int, last: int, into: Tensor | None) -> None:
        if start < end and (first < last or into is not None):
            rows, order = (t.narrow(1, start, end - start) for t in (self.tokens, self._order))
            parts = self._parts[first:last]
            gates = [_narrow(gate, start, end - start) for _, gate, _ in parts]
            accumulate(rows, [cache for cache, *_ in parts], gates, order, into)

    def _mark(self, count: int, parts: int) -> None:
        """The first ``count`` rows have been given ``parts``; ranges that are alike become one."""
        rest = [(end, given) for end, given in self._levels if end > count]
        while rest and rest[0][1] == parts:
            count, _ = rest.pop(0)
        self._levels = [(count, parts), *rest] if count else rest


def _narrow(modulation: Tensor | None, start: int, size: int) -> Tensor | None:
    """A modulation of some rows, in rank order; one that is the same for all tokens as it is."""
    each = modulation is not None and modulation.shape[1] > 1
    return modulation.narrow(1, start, size) if each else modulation
