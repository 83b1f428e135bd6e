"""What a branch holds between its computed steps, and the two things that every kind of it must tell."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moment:
    """A step as a cache sees it.

    Attributes:
        step: index in the segment.
        time: the same on the recipe's axis.
        ahead: of a computed step, the time of each of the steps that might be predicted next.
        error: of a computed step, whether the schedule wants the error of the prediction for it.
    """

    step: int
    time: float
    ahead: Sequence[float] = ()
    error: bool = False


class Cache(ABC):
    """Cached values of one branch.

    Attributes:
        pending: what the host reads at the end of a computed step, ``[n drifts, n alarms, 1 error]`` for the n steps
            ahead, or None.
    """

    pending: Tensor | None = None

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether a prediction is possible."""

    @abstractmethod
    def held(self) -> Iterable[Tensor]:
        """Every tensor that is kept for a later step; the plan that waits to be read is not counted."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        tensors = {id(t): t for t in self.held()}
        return sum(t.numel() * t.element_size() for t in tensors.values())

    @abstractmethod
    def forget(self) -> None:
        """Drop everything."""


def report(drift: Tensor, alarm: Tensor, error: Tensor | None) -> Tensor:
    """:attr:`Cache.pending` from its parts, all on one device."""
    measured = drift.new_full((1,), math.nan) if error is None else error.reshape(1)
    return torch.cat([drift, alarm, measured])
