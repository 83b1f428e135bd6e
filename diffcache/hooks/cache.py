"""What a branch holds between its computed steps, and what every kind of it must tell."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..predictors import Rest
from ..predictors.resting import Home, home_of


class Moment(NamedTuple):
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


class Coming(NamedTuple):
    """What a computed step showed of the run that may follow it.

    Attributes:
        drifts: of the 1st, 2nd, ... predicted step.
        alarms: whether that prediction would not be finite, or would collapse.
        error: relative error that the prediction for the computed step would have had; NaN if there was none.
        suspects: for each history, whether an alarm is about it, sample by sample.
        strays: whether the prediction of the first alarm would be finite: it is the variance that would be wrong.
    """

    drifts: Sequence[float]
    alarms: Sequence[bool]
    error: float = math.nan
    suspects: Sequence[Sequence[bool]] = ()
    strays: bool = False


class Outlook(ABC):
    """The coming run of one branch or of several, still on the device.

    Attributes:
        numbers: what the host has to read, one axis, fp32.
    """

    numbers: Tensor

    @abstractmethod
    def read(self, numbers: Sequence[float]) -> list[tuple[Cache, Coming]]:
        """``numbers`` on the host, made sense of for each branch's cache. Called once."""


@dataclass(frozen=True)
class Holding:
    """Equal tensors that a branch holds once it is full.

    Attributes:
        numel: numbers in one of them.
        home: dtype and device that they come with.
        count: how many.
        rests: whether they rest as the recipe's :class:`~diffcache.predictors.Rest` says, or as they are.
    """

    numel: int
    home: Home
    count: int = 1
    rests: bool = True

    @staticmethod
    def like(value: Tensor, count: int = 1) -> Holding:
        """As ``value``, which is not at rest."""
        return Holding(value.numel(), home_of(value), count)

    @staticmethod
    def scalars(numel: int, device: torch.device) -> Holding:
        """fp32 numbers that stay where they are."""
        return Holding(numel, Home(torch.float32, device), rests=False)

    def nbytes(self, rest: Rest, device: bool = False) -> int:
        """Bytes in all; with ``device`` only where they lie on the device that they come from."""
        place = rest.place(self.home) if self.rests else self.home
        return 0 if device and place.device != self.home.device else self.count * self.numel * place.dtype.itemsize


class Cache(ABC):
    """Cached values of one branch.

    Attributes:
        pending: the coming run, while the host has not read it.
        grows: whether predicted steps add to what is held.
        branch: name of the branch.
    """

    pending: Outlook | None = None
    grows: bool = False
    _peak_bytes: int = 0
    branch: str = ""

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

    @property
    def peak_bytes(self) -> int:
        """Most that was held at any time. Computed steps only add to what is held, so it is not measured after each."""
        return max(self._peak_bytes, self.nbytes)

    def note_peak(self) -> None:
        """What is held now may become less."""
        self._peak_bytes = self.peak_bytes

    def drop(self) -> None:
        """Forget everything that was held in this trajectory, but not how much it was."""
        self.note_peak()
        self.forget()

    def holdings(self) -> Iterable[Holding]:
        """What will be held once enough steps are computed, as far as those computed by now have shown."""
        return ()

    def slow_kernels(self) -> Mapping[str, int]:
        """Kernel calls on a GPU that torch's own operators answered, by kernel and reason."""
        return {}

    @abstractmethod
    def forget(self) -> None:
        """Drop everything."""
