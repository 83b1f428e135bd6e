"""Which positions a forward computes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """Positions of a sequence: a span, or an index; the span is what most plans need and costs no gather.

    Attributes:
        start, stop: the span ``[start, stop)``; of an index they bound nothing.
        index: ``[T]`` for all samples or ``[B, T]`` for each, or None. Samples with fewer rows repeat one of theirs:
            the same position computed twice gives the same keys, so nothing has to be masked.
    """

    start: int = 0
    stop: int = 0
    index: Tensor | None = None

    @property
    def count(self) -> int:
        """Rows of each sample."""
        return self.stop - self.start if self.index is None else self.index.shape[-1]

    def positions(self, device: torch.device) -> Tensor:
        """``[1, T]`` or ``[B, T]``, int64."""
        if self.index is None:
            return torch.arange(self.start, self.stop, device=device)[None]
        return self.index if self.index.dim() == 2 else self.index[None]

    def take(self, values: Tensor) -> Tensor:
        """These rows of ``[B, N, ...]``."""
        if self.index is None:
            return values[:, self.start : self.stop]
        if self.index.dim() == 1:
            return values.index_select(1, self.index)
        return values.gather(1, _spread(self.index, values, 1))

    def put(self, values: Tensor, new: Tensor, axis: int = 1) -> None:
        """Write ``new`` to these rows of ``values``, in place; positions lie along ``axis``."""
        if self.index is None:
            values.narrow(axis, self.start, self.count).copy_(new)
        elif self.index.dim() == 1:
            values.index_copy_(axis, self.index, new)
        else:
            values.scatter_(axis, _spread(self.index, new, axis), new)

    def within(self, other: Rows) -> Rows:
        """Where these rows lie among the rows of ``other``, which holds them all; ``other`` ascends."""
        if other.index is None:
            if self.index is None:
                return Rows(self.start - other.start, self.stop - other.start)
            return Rows(index=self.index - other.start)
        wanted = self.positions(other.index.device)
        if other.index.dim() == 1 and wanted.shape[0] == 1:
            return Rows(index=torch.searchsorted(other.index, wanted[0].contiguous()))
        batch = max(wanted.shape[0], other.positions(wanted.device).shape[0])
        table = other.positions(wanted.device).expand(batch, -1).contiguous()
        return Rows(index=torch.searchsorted(table, wanted.expand(batch, -1).contiguous()))

    def shifted(self, by: int) -> Rows:
        """Each position moved by ``by``."""
        if self.index is None:
            return Rows(self.start + by, self.stop + by)
        return Rows(index=self.index + by)


def _spread(index: Tensor, like: Tensor, axis: int) -> Tensor:
    """``[B, T]`` as an index along ``axis`` of a tensor ``[B, ..., T, ...]``."""
    shape = [1] * like.dim()
    shape[0], shape[axis] = index.shape
    sizes = list(like.shape)
    sizes[axis] = index.shape[1]
    return index.view(shape).expand(sizes)


def picked(mask: Tensor, count: int, extra: Tensor | None = None) -> Rows:
    """The first ``count`` True positions of each row of ``mask`` ``[B, N]``, ascending.

    A sample with fewer repeats its last one; one with none takes ``extra`` ``[B]`` (position 0 by default).
    """
    order = torch.where(mask, torch.arange(mask.shape[1], device=mask.device), mask.shape[1])
    index = order.sort(dim=1).values[:, :count]
    last = torch.where(mask, order, -1).amax(1)
    last = torch.where(last < 0, torch.zeros_like(last) if extra is None else extra, last)
    index = torch.where(index == mask.shape[1], last[:, None], index)
    return Rows(index=index[0] if mask.shape[0] == 1 else index)
