"""Who decides about the samples of a branch: one schedule for all of them, or one for each group of samples."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from ..schedules import Schedule
from ..schedules.drift import largest
from .stats import FULL, PREDICTED


class Jury:
    """The schedules of one branch.

    Rows of a batch that carry the same noisy sample, the halves of fused guidance, are one group and decide together:
    group ``g`` of ``n`` is rows ``g``, ``g + n``, ``g + 2 n``, ... Until the groups are known there is one.

    Args:
        schedule: has heard nothing yet.

    Attributes:
        schedules: one a group.
        size: samples of the batch whose groups are known, or None.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedules, self.size = [schedule], None

    def join(self) -> None:
        """Another batch may come: forget the groups. Everything is computed next, which every schedule takes alike."""
        del self.schedules[1:]
        self.size = None

    def part(self, size: int, folds: int) -> None:
        """The batch of ``size`` samples is ``folds`` times the same. A schedule is plain values: copies go apart."""
        self.schedules += [self.schedules[0].twin() for _ in range(1, size // folds)]
        self.size = size

    def join_in(self, other: Jury) -> None:
        """Take over the groups of another branch of the same samples."""
        if self.size is None and other.size is not None:
            self.part(other.size, other.size // len(other.schedules))

    def rows(self, groups: Iterable[int]) -> list[int]:
        """Samples of the groups, in order."""
        count = len(self.schedules)
        return sorted(row for group in groups for row in range(group, self.size or 1, count))

    def groups(self, rows: Iterable[int]) -> set[int]:
        """Groups that samples belong to."""
        return {row % len(self.schedules) for row in rows}

    @property
    def all(self) -> range:
        """Every group."""
        return range(len(self.schedules))

    # -- decisions -------------------------------------------------------------------------------------------------

    def all_due(self, step: int) -> bool:
        """Whether every group is computed whatever the signal says."""
        if len(self.schedules) == 1:
            return self.schedules[0].wants_compute(step)
        return all(schedule.wants_compute(step) for schedule in self.schedules)

    def due(self, step: int) -> set[int]:
        """Groups that are to be computed whatever the signal says, and are not yet."""
        return {g for g, s in enumerate(self.schedules) if s.last < step and s.wants_compute(step)}

    def hear(self, step: int, drifts: Sequence[Sequence[float]]) -> set[int]:
        """Groups that want to be computed, by the worst of what was heard of their samples.

        Args:
            step: index in the segment.
            drifts: what was heard of each sample, or of all together where that cannot be told.
        """
        if len(self.schedules) == 1:
            (schedule,) = self.schedules
            if schedule.last >= step:
                return set()
            worst = largest(drifts[0] if len(drifts) == 1 else self._of(0, drifts))
            # It is asked in any case: it may keep count.
            return {0} if schedule.judge(step, worst) or schedule.wants_compute(step) else set()
        waiting = [g for g in self.all if self.schedules[g].last < step]  # others were computed since
        heard = {g: largest(self._of(g, drifts)) for g in waiting}
        wanted = {g for g in waiting if self.schedules[g].judge(step, heard[g])}  # all are asked: they may keep count
        return wanted | self.due(step)

    def _of(self, group: int, drifts: Sequence[Sequence[float]]) -> list[float]:
        rows = [drifts[row] for row in self.rows([group])] if len(drifts) == self.size else drifts
        return [number for row in rows for number in row]

    def computed(self, step: int, groups: Collection[int] | None = None) -> None:
        """Record that groups were computed; all, if none are named."""
        if groups is None:
            for schedule in self.schedules:
                schedule.computed(step)
        else:
            for group in groups:
                self.schedules[group].computed(step)

    def letters(self, step: int) -> str:
        """The decision of each group at a step that is done."""
        return "".join(FULL if schedule.last == step else PREDICTED for schedule in self.schedules)
