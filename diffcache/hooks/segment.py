"""One expert's part of one trajectory: a schedule, its branches, and the decision that they share each step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any

import torch

from ..schedules import Schedule
from .branch import Branch
from .branches import Branches
from .cache import Coming, Moment
from .clock import Clock
from .conditioning import Conditioning
from .recipe import Recipe
from .sites import Site
from .stats import FULL, PARTIAL, PREDICTED, SegmentStats
from .weights import WeightsWatch

_NO_KINDS: frozenset[str] = frozenset()

NOT_FINITE = "prediction not finite"
STRAYS = "as a precaution: the variance of the prediction would leave the range that computed steps have shown"


class Verdict(Enum):
    """What to do at a step. ``ASK``: the site measures the schedule's signal first."""

    COMPUTE, PREDICT, ASK = range(3)


class Segment:
    """Decides each step once for all branches; every branch keeps its own history.

    A schedule that hears a signal needs a :class:`.listening.ListeningSegment`.

    Args:
        recipe: the method.
        site: where its values are cached.
        clock: where in the trajectory we are.
        start: step of the trajectory at which the segment begins.
        total: number of steps of the segment, None while unknown.
        watch: of the denoiser's weights.
        exact: whether exact savings need :attr:`weights` at every step, as long as they have something to answer.

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
        exact: bool = False,
    ) -> None:
        self.recipe, self.site, self.start, self.total = recipe, site, start, total
        self._clock, self._watch, self._exact = clock, watch, exact
        self._counts = recipe.axis == "index"
        self.schedule = self._new_schedule()
        self.keeps = total is not None and self.schedule.max_skip > 0
        self.branches = Branches(self._new_branch)
        self.weights: Any = None
        self.changed = False
        self._looked = -1  # step at which the weights were looked at last
        self.deciding = -1
        self.compute = True
        self.kinds: frozenset[str] = frozenset()  # computed at a step that is not computed in full
        self._alarmed = -1  # step that an alarm of another branch has just taken

    def _new_schedule(self) -> Schedule:
        schedule = self.recipe.schedule()
        schedule.restrict(self.site.kinds)
        schedule.start(self.total, self._clock.timesteps(self.start) if schedule.wants_timesteps else ())
        return schedule

    def _new_branch(self, name: str, conditioning: Conditioning) -> Branch:
        cache = self.site.cache()
        cache.branch = name
        return Branch(name, conditioning, cache, self._branch_schedule())

    def _branch_schedule(self) -> Schedule:
        """What decides about a branch: what decides about all."""
        return self.schedule

    # -- decisions -------------------------------------------------------------------------------------------------

    def decide(self, step: int, branch: Branch) -> Verdict:
        """What to do at ``step``."""
        if step != self.deciding:
            self._begin(step)
        return Verdict.COMPUTE if self.compute else Verdict.PREDICT

    def _begin(self, step: int) -> None:
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
        changed = (self._must_look or not computes) and self._look(step)
        self.deciding, self.compute = step, changed or computes
        if self.compute:
            self.schedule.computed(step)
        self.kinds = _NO_KINDS if self.compute else self.schedule.partial(step)

    @property
    def _must_look(self) -> bool:
        """Whether the weights of a computed step have to be known."""
        if self._exact and not all(branch.exact.idle for branch in self.branches.values()):
            return True
        return self.keeps and (self.weights is None or self._watch.adapted)

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

    def compute_after_all(self, step: int, branch: Branch) -> None:
        """``branch`` cannot be predicted at ``step``: the branches that come after it are computed with it."""
        if not any(other.last_step == step for other in self.branches.values() if other is not branch):
            self.computed(step, branch)

    def computed(self, step: int, branch: Branch) -> None:
        """``step`` is computed in full, and so it is by the branches that come after this one."""
        self.compute = True
        branch.jury.computed(step)

    def _forget_all(self, step: int, reason: str) -> None:
        for branch in self.branches.values():
            branch.forget()
            branch.fall_back(step, reason)

    def settle(self, step: int) -> None:
        """A branch computed ``step``: once all that were called in the step before have, read their plans.

        So the read belongs to the computed step; a branch that stays away this time is read at the next decision.
        At step 0 nobody knows how many will come, and a value that is not finite there has spoilt the sample already.
        """
        if not self.keeps:
            return
        if step == 0:
            self._begin_history()
        if not any(branch.last_step == step - 1 for branch in self.branches.values()):
            self._read_plans()

    def _begin_history(self) -> None:
        self._prepare()
        for branch in self.branches.values():
            branch.cache.pending = None

    def _prepare(self) -> None:
        self.site.prepare([branch.cache for branch in self.branches.values()])

    def _read_plans(self) -> None:
        if not self.keeps:
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

    def _heed(self, branch: Branch, coming: Coming, now: int = 0, groups: Iterable[int] = (0,)) -> None:
        """Compute instead of the first prediction that would not be finite or would collapse.

        Args:
            branch: whose prediction it is.
            coming: what was found.
            now: the step that is being decided.
            groups: of its samples that it is about.
        """
        if True not in coming.alarms:
            return
        bad, dues = coming.alarms.index(True), set()
        for schedule in map(branch.jury.schedules.__getitem__, groups):
            due = max(schedule.last + bad + 1, now)
            if not schedule.wants_compute(due) or due == self._alarmed:
                dues.add(due)
            schedule.limit(bad)
        for due in dues:
            self._alarmed = due
            branch.fall_back(due, STRAYS if coming.strays else NOT_FINITE)

    def predicted(self, step: int) -> Moment:
        """A step that is predicted."""
        at = step + self.start
        return Moment(step, float(at) if self._counts else self._clock.times(self.recipe.axis, (at,))[0])

    def recorded(self, step: int) -> Moment:
        """A step that is, or may be, computed, with the times of those that may be predicted after it."""
        at = step + self.start
        reach = 0 if self.total is None else self.schedule.reach(step)
        ahead: Sequence[float] = range(at + 1, at + 1 + reach)
        time = float(at)
        if not self._counts:
            time, *ahead = self._clock.times(self.recipe.axis, (at, *ahead))
        return Moment(step, time, ahead, self.schedule.wants_error and reach > 0)

    # -- the end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Free the memory; stats stay."""
        for branch in self.branches.values():
            branch.forget()

    def stats(self, expert: str) -> list[SegmentStats]:
        """Numbers of every branch; one whose first call was refused or broken off has none."""
        return [branch.stats(expert, self.deciding + 1) for branch in self.branches.values() if branch.decisions]

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
