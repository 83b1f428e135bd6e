"""A segment whose schedules hear a signal: what is measured at a step decides about it, sample by sample if it can."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..schedules import Schedule
from .batch import Batch
from .branch import Branch
from .hearing import Heard, apart, by_sample
from .host import waits
from .segment import Segment, Verdict
from .sites import Run

_NOBODY: frozenset[int] = frozenset()


class ListeningSegment(Segment):
    """Asks at every step that is not due anyway; what a branch hears is its own, and so is its schedule."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._moved: frozenset[int] = _NOBODY  # samples that a branch has computed by themselves in this step
        self._batch = 0  # of how many
        self._asked = -1  # step for which a branch has been heard
        self._leader: Branch | None = None  # it
        self._late: list[Heard] = []  # what the others heard since

    def _branch_schedule(self) -> Schedule:
        return self._new_schedule()

    # -- decisions -------------------------------------------------------------------------------------------------

    def decide(self, step: int, branch: Branch) -> Verdict:
        if step != self.deciding:
            self.deciding, self._moved, self._asked = step, _NOBODY, -1
            self.compute = self._must_look and self._look(step)  # else before anything is predicted
        if self.compute or branch.jury.all_due(step):
            self.computed(step, branch)
            return Verdict.COMPUTE
        return Verdict.ASK

    def computed(self, step: int, branch: Branch) -> None:
        self.compute, self._late = True, []
        for schedule in branch.jury.schedules:
            schedule.computed(step)

    def compute_after_all(self, step: int, branch: Branch) -> None:
        self.computed(step, branch)

    def judge(self, step: int, branch: Branch, call: Run, batch: Batch, signals: Sequence[Tensor]) -> list[int]:
        """Samples that are computed at an asked ``step``: none, all, or those that moved.

        The branches of guidance decide together, by what the first one hears: one host read a step. What the others
        hear at a step is read along with the next signal, and computed then if it wants to be.

        Args:
            step: index in the segment.
            branch: whose signal it is.
            call: the denoiser call that it was measured in.
            batch: its samples.
            signals: what was measured, one axis each, as :meth:`Batch.spread` takes it.
        """
        jury, branch.batch = branch.jury, batch
        if self._asked == step and self._leader.batch.size == batch.size:
            jury.join_in(self._leader.jury)
            self._late.append(Heard(step, branch, batch, signals))
            moved: set[int] = set()
        else:
            moved = self._hear(step, branch, call, signals)
            self._asked, self._leader = step, branch
        if self._moved:
            moved |= jury.groups(self._moved) if self._batch == batch.size else set(jury.all)
        if moved and len(moved) < len(jury.schedules) and batch.hindrance is not None:
            branch.together, moved = batch.hindrance, set(jury.all)
        if len(moved) == len(jury.schedules) or self._look(step):
            return list(range(batch.size))
        jury.computed(step, moved)
        rows = jury.rows(moved)
        self._moved, self._batch = self._moved | set(rows), batch.size
        return rows

    def _hear(self, step: int, branch: Branch, call: Run, signals: Sequence[Tensor]) -> set[int]:
        """Groups that want to be computed. Runs at every step: no call more than needed.

        The one host read of the step takes along what other branches heard at the step before, once which samples
        belong together, and, where the host has to wait for it, the alarms of the last computed step. They count where
        something would be predicted: elsewhere they are looked at then.
        """
        batch, jury, late, self._late = branch.batch, branch.jury, self._late, []
        repeats = batch.repeats(call) if jury.size is None and batch.size > 1 else []
        parts = [*signals]
        if repeats:
            device = parts[0].device
            parts += [r.to(device).reshape(1) for r in repeats]
        for other in late:
            parts += other.signals
        waiting = self._waiting() if waits(parts[0]) else []
        for b in waiting:
            parts.append(b.cache.pending.numbers)
        numbers = (torch.cat(parts) if len(parts) > 1 else parts[0]).tolist()
        heard, at = ([numbers], len(numbers)) if len(parts) == 1 else apart(numbers, 0, signals)
        if repeats:
            self._part(branch, heard, numbers[at : at + len(repeats)])
            at += len(repeats)
        for other in late:
            at = other.read(numbers, at)
        moved = jury.hear(step, heard if len(jury.schedules) == 1 else by_sample(batch, heard))
        for other in late:
            wanted = other.branch.jury.hear(other.step, by_sample(other.batch, other.heard))
            moved |= jury.groups(other.branch.jury.rows(wanted))
        if len(moved) < len(jury.schedules):
            self._heed_alarms(waiting, step, numbers[at:])
            moved |= jury.due(step)
        return moved

    def _waiting(self) -> list[Branch]:
        """Branches whose last computed step has told of its coming run what nobody has read."""
        return [b for b in self.branches.values() if b.cache.pending is not None]

    def _heed_alarms(self, waiting: Sequence[Branch], step: int, numbers: Sequence[float]) -> None:
        """Something would be predicted at ``step``: what the branches' computed steps have told of it.

        Args:
            waiting: those whose numbers have been read.
            step: index in the segment.
            numbers: theirs; of other branches they are read now.
        """
        for b in waiting:
            count = b.cache.pending.numbers.numel()
            self._read_alarms(b, step, numbers[:count])
            numbers = numbers[count:]
        for b in self._waiting():
            self._read_alarms(b, step, b.cache.pending.numbers.tolist())

    def _read_alarms(self, branch: Branch, step: int, numbers: Sequence[float]) -> None:
        """What a branch's last computed step has told of its coming run."""
        outlook, branch.cache.pending = branch.cache.pending, None
        ((_, coming),) = outlook.read(numbers)
        if True in coming.alarms:
            batch, groups = branch.batch, branch.jury.all
            suspects = None if batch is None or batch.behind else batch.spread(coming.suspects)
            if suspects is not None:
                groups = branch.jury.groups(i for i, row in enumerate(suspects) if any(row))
            self._heed(branch, coming, step, groups)

    def _part(self, branch: Branch, heard: Sequence[Sequence[float]], same: Sequence[float]) -> None:
        """It is known which samples of a branch belong together: whether its noise is so many times the same."""
        batch = branch.batch
        if batch.spread(heard) is None:
            branch.together = "what is heard does not tell the samples apart"
        else:
            branch.jury.part(batch.size, next((n for n, equal in zip(batch.folds, same, strict=True) if equal), 1))

    # -- plans -----------------------------------------------------------------------------------------------------

    def settle(self, step: int) -> None:
        """What a computed step has told is read together with the next signal."""
        if self.keeps and step == 0:
            self._begin_history()
