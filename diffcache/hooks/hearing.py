"""What branches hear at a step: on the device until it is read, and the numbers of one host read, told apart."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .batch import Batch
from .branch import Branch


class Heard:
    """What a branch heard at a step, on the device until it is read.

    Attributes:
        heard: of each signal its numbers, once read.
    """

    def __init__(self, step: int, branch: Branch, batch: Batch, signals: Sequence[Tensor]) -> None:
        self.step, self.branch, self.batch, self.signals = step, branch, batch, signals
        self.heard: list[Sequence[float]] = []

    def read(self, numbers: Sequence[float], at: int) -> int:
        """Its numbers begin at ``at``; where they end."""
        self.heard, end = apart(numbers, at, self.signals)
        return end


def apart(numbers: Sequence[float], at: int, signals: Sequence[Tensor]) -> tuple[list[Sequence[float]], int]:
    """The numbers of each signal, those of the first begin at ``at``; and where the last ones end."""
    found = []
    for signal in signals:
        found.append(numbers[at : at + signal.numel()])
        at += signal.numel()
    return found, at


def by_sample(batch: Batch, heard: Sequence[Sequence[float]]) -> Sequence[Sequence[float]]:
    """What was heard of each sample, where they can be told apart."""
    spread = batch.spread(heard)
    return heard if spread is None else spread
