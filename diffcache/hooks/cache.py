"""What a branch holds between its computed steps, and what every kind of it must tell."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Coming:
    """What a computed step showed of the run that may follow it.

    Attributes:
        drifts: of the 1st, 2nd, ... predicted step.
        alarms: whether that prediction would not be finite, or would collapse.
        error: relative error that the prediction for the computed step would have had; NaN if there was none.
        suspects: for each history, whether an alarm is about it, sample by sample.
    """

    drifts: Sequence[float]
    alarms: Sequence[bool]
    error: float = math.nan
    suspects: Sequence[Sequence[bool]] = ()


class Outlook(ABC):
    """The coming run of one branch or of several, still on the device.

    Attributes:
        numbers: what the host has to read, one axis, fp32.
    """

    numbers: Tensor

    @abstractmethod
    def read(self, numbers: Sequence[float]) -> list[tuple[Cache, Coming]]:
        """``numbers`` on the host, made sense of for each branch's cache. Called once."""


class Cache(ABC):
    """Cached values of one branch.

    Attributes:
        pending: the coming run, while the host has not read it.
    """

    pending: Outlook | None = None

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether a prediction is possible."""

    @abstractmethod
    def held(self) -> Iterable[Tensor]:
        """Every tensor that is kept for a later step; an outlook that waits to be read is not counted."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        tensors = {id(t): t for t in self.held()}
        return sum(t.numel() * t.element_size() for t in tensors.values())

    @abstractmethod
    def forget(self) -> None:
        """Drop everything."""
