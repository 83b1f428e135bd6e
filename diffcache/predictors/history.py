"""The ring buffer of computed values: the only large memory that a cached site holds."""

from __future__ import annotations

import torch
from torch import Tensor

from .resting import Home, Rest, home_of, waken


class History:
    """The last ``depth`` computed values of one tensor, with the time of each.

    Memory: ``min(depth, pushes) * numel * element_size`` bytes, nothing else. Slots are written in place, so a
    caller may keep or change the tensor that it pushed, unless it gave it away.

    Args:
        depth: number of values kept (>= 1).
        rest: how they rest; ``element_size`` is that of the dtype in which they do.

    Attributes:
        values: stored values as they rest, newest first (no copy).
        home: dtype and device of the values that are pushed.
    """

    def __init__(self, depth: int, rest: Rest | None = None) -> None:
        if depth < 1:
            raise ValueError(f"depth: {depth} is out of range, must be >= 1")
        self.depth, self.rest = depth, rest or Rest()
        self.home: Home | None = None
        self.values: list[Tensor] = []
        self._times: list[float] = []

    def __len__(self) -> int:
        return len(self.values)

    def newest(self, count: int | None = None) -> list[Tensor]:
        """The ``count`` newest values, all by default, on the device where they are used; no copy of one that rests
        there."""
        return [waken(slot, self.home.device) for slot in self.values[:count]]

    def blank(self) -> Tensor:
        """Memory for one value as it was pushed, not yet filled."""
        return torch.empty(self.values[0].shape, dtype=self.home.dtype, device=self.home.device)

    @property
    def times(self) -> list[float]:
        """Time of each stored value on the predictor's axis, newest first."""
        return self._times

    @property
    def gaps(self) -> list[float]:
        """``times[j] - times[j + 1]``: the distances d2, d1, ... between stored values, newest first."""
        return [a - b for a, b in zip(self._times, self._times[1:], strict=False)]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(slot.numel() * slot.element_size() for slot in self.values)

    def push(self, value: Tensor, time: float, given: bool = False) -> None:
        """Store a copy of ``value`` at ``time``; the oldest value is overwritten once the ring is full.

        Args:
            given: nobody else has the tensor: it is stored itself, unless it rests as something else.
        """
        full = len(self.values) == self.depth
        oldest = self.values.pop() if full else None
        if given and (self.rest.plain or not self.rest.moves(value)):
            slot = value.detach() if value.requires_grad else value
        else:
            slot = self.rest.room(value, torch.contiguous_format) if oldest is None else oldest
            self.rest.put(value, slot)
        home = self.home
        if home is None or home.dtype is not value.dtype or home.device != value.device:
            self.home = home_of(value)
        self.values.insert(0, slot)
        self._times.insert(0, time)
        del self._times[self.depth :]

    def clear(self) -> None:
        """Free the memory."""
        self.values.clear()
        self._times.clear()
