"""What the steps of a trajectory cost, by measured seconds of each denoiser that has a part of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..schedules.placing import Split, splits_for

#: seconds of a computed step, of a predicted one, and of a step's decisions
Costs = tuple[float, float, float]
#: what a predicted step is taken to cost, in computed ones, until it is measured
CHEAP = 0.01
#: plans are made a little faster than asked for, so that they are as fast when they are measured
SLACK = 1.01


@dataclass(frozen=True)
class Prices:
    """Costs of the segments of a trajectory, in any unit.

    Attributes:
        lengths: steps of each.
        costs: of each.
    """

    lengths: tuple[int, ...]
    costs: tuple[Costs, ...]

    @classmethod
    def unknown(cls, lengths: Sequence[int]) -> Prices:
        """All denoisers cost the same."""
        return cls(tuple(lengths), ((1.0, CHEAP, 0.0),) * len(lengths))

    @property
    def dense(self) -> float:
        """Of all steps, computed and undecided."""
        return sum(length * compute for length, (compute, _, _) in zip(self.lengths, self.costs, strict=True))

    def speedup(self, computed: Sequence[float]) -> float:
        """Of the denoisers, where so many steps of each segment are computed."""
        spent = 0.0
        for length, count, (compute, predict, decide) in zip(self.lengths, computed, self.costs, strict=True):
            spent += count * compute + (length - count) * predict + length * decide
        return self.dense / spent

    def splits(self, speedup: float, fewer: int = 0) -> frozenset[Split]:
        """How the computed steps of a plan that is that much faster may be split; empty if there is no such plan.

        Args:
            speedup: over a dense trajectory.
            fewer: steps less than it could pay.
        """
        return splits_for(self.lengths, self._more, self._room(speedup) - fewer * max(self._more))

    def room(self, speedup: float) -> float:
        """What a plan of one segment may spend on steps that are not just predicted, in computed ones."""
        return self._room(speedup) / self._more[0]

    @property
    def _more(self) -> list[float]:
        """What computing a step costs more than predicting it."""
        return [max(compute - predict, 1e-9 * compute) for compute, predict, _ in self.costs]

    def _room(self, speedup: float) -> float:
        pairs = zip(self.lengths, self.costs, strict=True)
        rest = sum(length * (predict + decide) for length, (_, predict, decide) in pairs)
        return self.dense / (SLACK * speedup) - rest
