"""One expert's part of one trajectory: a schedule, its branches, and the decision that they share each step."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from ..schedules import Schedule
from .batch import Batch
from .branch import Branch
from .branches import Branches
from .cache import Coming
from .clock import Clock
from .conditioning import Conditioning
from .hearing import Heard, apart, by_sample
from .recipe import Recipe
from .sites import Site
from .stats import FULL, PARTIAL, PREDICTED, SegmentStats
from .weights import WeightsWatch

_NO_KINDS: frozenset[str] = frozenset()


class Verdict(Enum):
    """What to do at a step. ``ASK``: the site measures the schedule's signal first."""

    COMPUTE, PREDICT, ASK = range(3)


class Segment:
    """Decides each step once for all branches; every branch keeps its own history.

    Args:
        recipe: the method.
        site: where its values are cached.
        clock: where in the trajectory we are.
        start: step of the trajectory at which the segment begins.
        total: number of steps of the segment, None while unknown.
        watch: of the denoiser's weights.
        always: whether somebody needs :attr:`weights` at every step.

    Attributes:
        keeps: whether anything will ever be predicted here, so that storing outputs has a purpose.
        weights: fingerprint of the weights that made what is stored.
        changed: whether they were found to be others than those; for the hook, which may have to look where modules
            are now.
    """

    def __init__(
        self,
        recipe: Recipe,
        site: Site,
        clock: Clock,
        start: int,
        total: int | None,
        watch: WeightsWatch,
        always: bool = False,
    ) -> None:
        self.recipe, self.site, self.start, self.total = recipe, site, start, total
        self._clock, self._watch, self._always = clock, watch, always
        self._counts = recipe.axis == "index"
        self.schedule = self._new_schedule()
        self._asks = self.schedule.signal is not None  # what a branch hears is its own, and so is its schedule
        self.keeps = total is not None and self.schedule.max_skip > 0
        self.branches = Branches(self._new_branch)
        self.weights: Any = None
        self.changed = False
        self._looked = -1  # step at which the weights were looked at last
        self.deciding = -1
        self.compute = True
        self.kinds: frozenset[str] = frozenset()  # computed at a step that is not computed in full
        self._alarmed = -1  # step that an alarm of another branch has just taken
        self._moved: frozenset[int] = frozenset()  # samples that a branch has computed by themselves in this step
        self._batch = 0  # of how many
        self._asked = -1  # step for which a branch has been heard
        self._leader: Branch | None = None  # it
        self._late: list[Heard] = []  # what the others heard since

    def _new_schedule(self) -> Schedule:
        schedule = self.recipe.schedule()
        schedule.restrict(self.site.kinds)
        schedule.start(self.total, self._clock.timesteps(self.start) if schedule.wants_timesteps else ())
        return schedule

    def _new_branch(self, name: str, conditioning: Conditioning) -> Branch:
        schedule = self._new_schedule() if self._asks else self.schedule
        cache = self.site.cache()
        cache.branch = name
        return Branch(name, conditioning, cache, schedule)

    # -- decisions -------------------------------------------------------------------------------------------------

    def decide(self, step: int, branch: Branch) -> Verdict:
        """What to do at ``step``."""
        if step != self.deciding:
            self._begin(step)
        if self._asks and not self.compute:
            self.compute = branch.jury.all_due(step)
        if self.compute:
            if self._asks:
                self.computed(step, branch)
            return Verdict.COMPUTE
        return Verdict.ASK if self._asks else Verdict.PREDICT  # a schedule that hears nothing leaves nothing undecided

    def _begin(self, step: int) -> None:
        computes = False  # of a schedule that asks, each branch's own says that
        if not self._asks:
            if self.compute or not self.schedule.wants_compute(step):
                self._read_plans()
            else:  # what the last step has computed in part is computed anew, whatever it is
                for branch in self.branches.values():
                    branch.cache.pending = None
            computes = self.schedule.wants_compute(step)
        if step == 1 and self.recipe.table is not None:
            branches = self.branches.values()
            self.recipe.table.check_guidance(len(branches), any(branch.folded for branch in branches))
        # A step that is computed needs no look: a change since the last one is found before anything is predicted.
        looks = self._always or (self.keeps and (self.weights is None or self._watch.adapted))
        changed = (looks or not (computes or self._asks)) and self._look(step)
        self.deciding, self._moved, self._asked = step, frozenset(), -1
        self.compute = changed or computes
        if self.compute:
            self.schedule.computed(step)
        self.kinds = _NO_KINDS if self.compute or self._asks else self.schedule.partial(step)

    def _look(self, step: int) -> bool:
        """Whether the weights are no longer those that made what is stored; it is forgotten then."""
        if self._looked == step:
            return False
        before, self.weights, self._looked = self.weights, self._watch.fingerprint(), step
        if before is None or before == self.weights:
            return False
        self.changed = True
        self._forget_all(step, "weights or adapters changed")
        return True

    def judge(self, step: int, branch: Branch, batch: Batch, signals: Sequence[Tensor]) -> list[int]:
        """Samples that are computed at an asked ``step``: none, all, or those that moved.

        The branches of guidance decide together, by what the first one hears: one host read a step. What the others
        hear at a step is read along with the next signal, and computed then if it wants to be.

        Args:
            step: index in the segment.
            branch: whose signal it is.
            batch: its samples.
            signals: what was measured, one axis each, as :meth:`Batch.spread` takes it.
        """
        jury, branch.batch = branch.jury, batch.put_by()
        if self._asked == step and self._leader.batch.size == batch.size:
            jury.join_in(self._leader.jury)
            self._late.append(Heard(step, branch, branch.batch, signals))
            moved: set[int] = set()
        else:
            moved = self._hear(step, branch, batch, signals)
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

    def computed(self, step: int, branch: Branch) -> None:
        """An asked ``step`` was computed in full: the branches that come after it are computed with it."""
        self.compute, self._late = True, []
        branch.jury.computed(step)

    def _hear(self, step: int, branch: Branch, batch: Batch, signals: Sequence[Tensor]) -> set[int]:
        """Groups that want to be computed. Runs at every step: no call more than needed.

        The one host read of the step takes along the alarms of the last computed one, what other branches heard at the
        step before, and, once, which samples belong together.
        """
        late, self._late = self._late, []
        repeats = batch.repeats() if branch.jury.size is None and batch.size > 1 else []
        parts = [*signals]
        if repeats:
            device = parts[0].device
            parts += [r.to(device).reshape(1) for r in repeats]
        for other in late:
            parts += other.signals
        waiting = []
        for b in self.branches.values():
            if b.cache.pending is not None:
                waiting.append(b)
                parts.append(b.cache.pending.numbers)
        numbers = (torch.cat(parts) if len(parts) > 1 else parts[0]).tolist()
        heard, at = apart(numbers, 0, signals)
        if repeats:
            self._part(branch, batch, heard, numbers[at : at + len(repeats)])
            at += len(repeats)
        for other in late:
            at = other.read(numbers, at)
        for b in waiting:
            outlook, b.cache.pending = b.cache.pending, None
            end = at + outlook.numbers.numel()
            ((_, coming),) = outlook.read(numbers[at:end])
            at = end
            if True in coming.alarms:
                self._heed(b, coming, step, b.batch)
        moved = branch.jury.hear(step, heard if len(branch.jury.schedules) == 1 else by_sample(batch, heard))
        for other in late:
            wanted = other.branch.jury.hear(other.step, by_sample(other.batch, other.heard))
            moved |= branch.jury.groups(other.branch.jury.rows(wanted))
        return moved

    def _part(self, branch: Branch, batch: Batch, heard: Sequence[Sequence[float]], same: Sequence[float]) -> None:
        """It is known which samples of a branch belong together: whether its noise is so many times the same."""
        if batch.spread(heard) is None:
            branch.together = "what is heard does not tell the samples apart"
        else:
            branch.jury.part(batch.size, next((n for n, equal in zip(batch.folds, same, strict=True) if equal), 1))

    def compute_after_all(self, step: int, branch: Branch) -> None:
        """``branch`` cannot be predicted at ``step``: the branches that come after it are computed with it."""
        others = (b for b in self.branches.values() if b is not branch)
        if self._asks or not any(b.last_step == step for b in others):
            self.computed(step, branch)

    def _forget_all(self, step: int, reason: str) -> None:
        for branch in self.branches.values():
            branch.forget()
            branch.fall_back(step, reason)

    def settle(self, step: int) -> None:
        """A branch computed ``step``: once all that were called in the step before have, read their plans.

        So the read belongs to the computed step; a branch that stays away this time is read at the next decision.
        At step 0 nobody knows how many will come, and a value that is not finite there has spoilt the sample already.
        """
        if not self.keeps or (self._asks and step):
            return
        if step == 0:
            self._prepare()
            for branch in self.branches.values():
                branch.cache.pending = None
        if not any(branch.last_step == step - 1 for branch in self.branches.values()):
            self._read_plans()  # a schedule that asks reads them together with the next signal

    def _prepare(self) -> None:
        self.site.prepare([branch.cache for branch in self.branches.values()])

    def _read_plans(self) -> None:
        if self._asks or not self.keeps:
            return
        self._prepare()
        outlooks = list(dict.fromkeys(b.cache.pending for b in self.branches.values() if b.cache.pending is not None))
        if not outlooks:
            return
        known = [o.numbers for o in outlooks]
        numbers = (known[0] if len(known) == 1 else torch.cat(known)).tolist()  # the one host read of a computed step
        found = []
        for outlook in outlooks:
            count = outlook.numbers.numel()
            found += outlook.read(numbers[:count])
            numbers = numbers[count:]
        # Alarms first: a plan that stops at the same step for its own reasons would hide them.
        branches = {branch.cache: branch for branch in self.branches.values()}
        for cache, coming in found:
            cache.pending = None
            self._heed(branches[cache], coming)
        self.schedule.plan([coming.drifts for _, coming in found], [coming.error for _, coming in found])

    def _heed(self, branch: Branch, coming: Coming, now: int = 0, batch: Batch | None = None) -> None:
        """Compute instead of the first prediction that would not be finite or would collapse.

        Args:
            branch: whose prediction it is.
            coming: what was found.
            now: the step that is being decided.
            batch: its samples, where they may decide apart.
        """
        if True not in coming.alarms:
            return
        bad = coming.alarms.index(True)
        jury, dues = branch.jury, set()
        suspects = None if batch is None or batch.behind else batch.spread(coming.suspects)
        for group in jury.all if suspects is None else jury.groups(i for i, row in enumerate(suspects) if any(row)):
            schedule = jury.schedules[group]
            due = max(schedule.last + bad + 1, now)
            if not schedule.wants_compute(due) or due == self._alarmed:
                dues.add(due)
            schedule.limit(bad)
        for due in dues:
            self._alarmed = due
            branch.fall_back(due, "prediction not finite, or its variance left the envelope of the computed steps")

    def time(self, step: int) -> float:
        """Time of a step of the segment, on the recipe's axis."""
        at = step + self.start
        return float(at) if self._counts else self._clock.times(self.recipe.axis, (at,))[0]

    def ahead(self, step: int) -> Sequence[float]:
        """Times of the steps after a computed ``step`` that may be predicted."""
        if self.total is None:
            return ()
        first = step + self.start + 1
        steps = range(first, first + self.schedule.reach(step))
        return steps if self._counts else self._clock.times(self.recipe.axis, steps)

    # -- the end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Free the memory; stats stay."""
        for branch in self.branches.values():
            branch.forget()

    def stats(self, expert: str) -> list[SegmentStats]:
        """Numbers of every branch."""
        return [branch.stats(expert, self.deciding + 1) for branch in self.branches.values()]

    @property
    def idle_reason(self) -> str | None:
        """Why nothing was predicted, if the segment ran to its end and nothing was."""
        if self.total is not None and self.deciding + 1 < self.total:
            return None  # it was broken off: there is nothing to explain
        letters = "".join(letter for branch in self.branches.values() for letter in branch.decisions)
        if PREDICTED in letters or PARTIAL in letters or FULL not in letters:
            return None
        if self.total is None:
            return "the number of steps is unknown: wrap the loop in denoising(model, num_inference_steps=N)"
        reasons = [f.reason for branch in self.branches.values() for f in branch.fallbacks]
        if self.schedule.pause or reasons:
            return self.schedule.pause or reasons[-1]
        if self.schedule.warmup + self.schedule.cooldown >= self.total:
            return f"steps ({self.total}) <= warmup ({self.schedule.warmup}) + cooldown ({self.schedule.cooldown})"
        return "the schedule computed every step: its threshold or interval never allowed a prediction"
