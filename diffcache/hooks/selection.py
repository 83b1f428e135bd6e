"""Which tokens a pass computes, and where they stand in the tensors that flow through a unit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import inverse
from .streams import version


@dataclass(frozen=True)
class Place:
    """Where the tokens are in a tensor.

    Attributes:
        axis: the axis along which they stand.
        offset: of the first token; text may come before them.
        length: of the axis; text may come after them.
    """

    axis: int
    offset: int
    length: int


class Selection:
    """The tokens of one pass: for any ``count`` the first of one ranking.

    Args:
        ranking: shape ``[tokens]``, all tokens, the most urgent first.
        ranked: whether rows that are computed stand in the order of the ranking, so that fewer are the first of more
            (layout C); else they stand in ascending order (layout B).
        counts: of which the first tokens will be asked for. Between two of them the order of the ranking does not
            matter, and ascending rows are read in memory order.
    """

    def __init__(self, ranking: Tensor, ranked: bool = False, counts: Iterable[int] = ()) -> None:
        self.tokens, self.ranked = len(ranking), ranked
        self.ranking = _ascending(ranking, counts) if ranked else ranking
        self._rows: dict[tuple[int, ...], Tensor] = {}
        self._inverse: dict[int, Tensor] = {}
        self._order: Tensor | None = None
        self._taken: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def rows(self, count: int, offset: int = 0, length: int | None = None) -> Tensor:
        """Positions that are computed in a sequence of ``length`` with the tokens from ``offset`` on.

        What is no token (text) is computed always.

        Returns:
            ``[length - tokens + count]``, ascending, or the tokens among them in the order of the ranking.
        """
        length = self.tokens if length is None else length
        key = count, offset, length
        if key not in self._rows:
            first = self.ranking[:count]
            chosen = (first if self.ranked else first.sort().values) + offset
            before, behind = self._range(0, offset), self._range(offset + self.tokens, length)
            self._rows[key] = torch.cat([before, chosen, behind]) if length > self.tokens else chosen
        return self._rows[key]

    @property
    def order(self) -> Tensor:
        """The ranking as kernels take it: ``[1, tokens]``, int32."""
        if self._order is None:
            self._order = self.ranking[None].int()
        return self._order

    def inverse(self, count: int) -> Tensor:
        """Place of each token among ``rows(count)``, -1 for the others; ``[1, tokens]``, int32."""
        if count not in self._inverse:
            self._inverse[count] = inverse(self.rows(count)[None], self.tokens)
        return self._inverse[count]

    def take(self, tensor: Tensor, place: Place, count: int, packed: int = 0) -> Tensor:
        """The rows of a tensor that are computed; of one that holds just these, itself.

        Args:
            tensor: with all rows, those of the first ``count`` or those of the first ``packed`` tokens.
            place: where the tokens are in the complete tensor.
            count: how many are wanted.
            packed: a larger number that the tensor may be packed to.

        Raises:
            Unfit: it is of another length.
        """
        size, others = tensor.shape[place.axis], place.length - self.tokens
        if size == place.length:
            return tensor.index_select(place.axis, self.rows(count, place.offset, place.length))
        if size == others + count:
            return tensor
        if size == others + packed:
            return self.narrower(tensor, place, count, packed)
        raise Unfit(f"a tensor has {size} rows, {place.length} were expected")

    def narrower(self, tensor: Tensor, place: Place, count: int, packed: int) -> Tensor:
        """The rows of the first ``count`` tokens of a tensor that holds those of the first ``packed``.

        In rank order, and with no text behind them, a plain slice.
        """
        others = place.length - self.tokens
        if self.ranked and place.offset == others:
            return tensor.narrow(place.axis, 0, others + count)
        return tensor.index_select(place.axis, self._among(count, packed, place))

    def take_again(self, tensor: Tensor, place: Place, count: int) -> Tensor:
        """:meth:`take` of a tensor that comes again in this pass (rotary tables): its rows are taken once."""
        if tensor.is_inference():  # torch does not tell whether it was written to since
            return self.take(tensor, place, count)
        key = id(tensor), version(tensor), place.axis, place.offset, count
        if key not in self._taken:  # the tensor is held so that no other gets its number
            self._taken[key] = tensor, self.take(tensor, place, count)
        return self._taken[key][1]

    def _among(self, count: int, packed: int, place: Place) -> Tensor:
        """Where the rows of the first ``count`` tokens are among those of the first ``packed``."""
        key = count, packed, place.offset, place.length
        if key not in self._rows:
            if self.ranked:  # text behind the tokens comes after them
                begin, end = place.offset + count, place.offset + packed
                behind = self._range(end, end + place.length - place.offset - self.tokens)
                self._rows[key] = torch.cat([self._range(0, begin), behind])
            else:
                few, more = (self.rows(c, place.offset, place.length) for c in (count, packed))
                self._rows[key] = torch.searchsorted(more, few)
        return self._rows[key]

    def put(self, target: Tensor, place: Place, rows: Tensor, count: int) -> None:
        """Write computed rows to where they stand in ``target``, in place."""
        target.index_copy_(place.axis, self.rows(count, place.offset, place.length), rows.to(target.dtype))

    def _range(self, start: int, end: int) -> Tensor:
        return torch.arange(start, end, device=self.ranking.device)


def in_order(stream: Tensor) -> Selection:
    """The tokens of a hidden stream ``[batch, tokens, width]``, not ranked."""
    return Selection(torch.arange(stream.shape[1], device=stream.device))


def _ascending(ranking: Tensor, counts: Iterable[int]) -> Tensor:
    """The ranking, ascending from each count to the next."""
    ends = sorted({count for count in counts if 0 < count < len(ranking)})
    if not ends:
        return ranking
    ranges = zip([0, *ends], [*ends, len(ranking)], strict=True)
    return torch.cat([ranking[start:end].sort().values for start, end in ranges])


class Unfit(Exception):
    """A unit cannot be run on some of its rows."""


def marked(tensor: Tensor, tokens: int) -> Place | None:
    """Where the first and the last token are in a tensor in which these two, and nothing else, are NaN.

    Reads the device; asked while a model is learned.
    """
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.dim() < 2:
        return None
    lines = tensor.isnan()
    if not bool(lines.any()):
        return None
    for axis in range(tensor.dim()):
        others = [i for i in range(tensor.dim()) if i != axis]
        found = lines.amax(others).nonzero().flatten().tolist()
        if len(found) == 2 and found[1] - found[0] == tokens - 1:
            return Place(axis, found[0], tensor.shape[axis])
    raise Unfit("a value of one token depends on other tokens")


def sized(tensor: Tensor, known: list[Place]) -> Place | None:
    """Where the tokens are in a tensor that goes along with them (rotary tables, times), told by its sizes.

    Never along the last axis: there are features, or the keys of a mask.
    """
    for place in known:
        axes = [axis for axis, size in enumerate(tensor.shape[:-1]) if size == place.length]
        if axes:
            return Place(axes[0], place.offset, place.length)
    return None
