"""The ring buffer of computed values: the only large memory that a cached site holds."""

from __future__ import annotations

import torch
from torch import Tensor


class History:
    """The last ``depth`` computed values of one tensor, with the time of each.

    Memory: ``min(depth, pushes) * numel * element_size`` bytes, nothing else. Slots are written in place, so a
    caller may keep or change the tensor that it pushed.

    Args:
        depth: number of values kept (>= 1).
    """

    def __init__(self, depth: int) -> None:
        if depth < 1:
            raise ValueError(f"depth: {depth} is out of range, must be >= 1")
        self.depth = depth
        self._slots: list[Tensor] = []
        self._times: list[float] = []

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def values(self) -> list[Tensor]:
        """Stored values, newest first (no copy)."""
        return self._slots

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
        return sum(slot.numel() * slot.element_size() for slot in self._slots)

    def push(self, value: Tensor, time: float) -> None:
        """Store a copy of ``value`` at ``time``; the oldest value is overwritten once the ring is full."""
        full = len(self._slots) == self.depth
        slot = self._slots.pop() if full else torch.empty_like(value, memory_format=torch.contiguous_format)
        slot.copy_(value.detach())
        self._slots.insert(0, slot)
        self._times.insert(0, time)
        del self._times[self.depth :]

    def clear(self) -> None:
        """Free the memory."""
        self._slots.clear()
        self._times.clear()
