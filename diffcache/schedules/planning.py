"""Which steps to compute: the plan with the least error at the end of the trajectory, for each number of steps (ours).

A span is a computed step and the predicted ones behind it. Its error is what all its predictions together move the
sample by, times how much of a push at that step is left at the end. Spans are taken to err independently of each other,
so that their squares add, and dynamic programming over pairs of computed steps finds the best plan of every length.
Where denoisers take turns a span ends with its segment, and each begins with a computed step.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from itertools import product

import numpy as np

from ..predictors.evidence import Evidence
from ..predictors.fitted import DEPTH, Plan, before
from .motion import Motion
from .placing import Allotment, Split, Steps, neighbours, no_gaps, split_of

#: longest run of predicted steps that is considered
LONGEST = 24


class Landscape:
    """The error that any span leaves at the end.

    Args:
        evidence: of dense trajectories.
        gains: for each step, how much of a push of the sample there is left at the end; 1 everywhere if not measured.
            Only their ratios matter.
    """

    def __init__(self, evidence: Evidence, gains: Sequence[float] | None = None) -> None:
        self.evidence = evidence
        gain = np.ones(evidence.steps) if gains is None else np.asarray(gains, np.float64)
        self.motion = Motion.of(evidence)
        self.gains, self._push = gain, self.motion.push * gain
        self.spans = lru_cache(maxsize=None)(self._spans)

    @property
    def steps(self) -> int:
        return self.evidence.steps

    def _spans(self, history: tuple[int, ...]) -> np.ndarray:
        """Squared error of the span behind ``history`` (newest first) if it ends before step ``history[0] + 1 + k``,
        for k = 0, 1, ... up to the longest."""
        sums, columns = self._sums(history)
        if not columns:
            return np.zeros(1)
        errors = np.einsum("ik,ij,jk->k", sums, self.evidence.gram[np.ix_(columns, columns)], sums, optimize=True)
        return np.concatenate([[0.0], np.maximum(errors, 0.0)])

    def products(self, history: tuple[int, ...]) -> np.ndarray:
        """``[n, n]`` inner products of what each prediction of the longest span behind ``history`` moves the sample
        by wrongly, as it is felt at the end: those of a shorter span come first, and sum to its squared error."""
        sums, columns = self._sums(history)
        each = np.diff(sums, axis=1, prepend=0.0)
        return each.T @ self.evidence.gram[np.ix_(columns, columns)] @ each

    def _sums(self, history: tuple[int, ...]) -> tuple[np.ndarray, list[int]]:
        """Column k: the sum of the first k + 1 misses, over these columns of the evidence."""
        known, first = self.evidence, history[0] + 1
        steps = np.arange(first, min(first + LONGEST, known.segment(history[0])[1]))
        columns: list[int] = []
        rows: list[np.ndarray] = []
        for part, weights in enumerate(self._weights(history, steps)):
            targets = np.array([known.output(part, j) for j in steps], int)
            push = self._push[part, steps]
            rows += [np.triu(np.broadcast_to(push[:, None], (len(steps),) * 2)), -np.cumsum(weights * push, 1)]
            columns += [*targets, *known.regressors(part, history)]
        return np.concatenate(rows) if len(steps) else np.zeros((0, 0)), columns

    def _weights(self, history: tuple[int, ...], steps: np.ndarray) -> list[np.ndarray]:
        """Those of each part's branch."""
        if not len(steps):
            return []
        found = self.evidence.weights(history, steps.tolist(), self._push[:, steps[0]])
        names = list(dict.fromkeys(self.evidence.branches))
        return [found[names.index(name)] for name in self.evidence.branches]

    def split(self, computed: Sequence[int]) -> Split:
        """How many steps of each segment a plan computes."""
        return split_of(computed, self.evidence.segments)

    def before(self, computed: Sequence[int], end: int) -> tuple[int, ...]:
        """The computed steps that a span which ends before step ``end`` is predicted from, newest first."""
        return before(computed, end, self.evidence.segment(end - 1)[0])

    def span(self, history: tuple[int, ...], end: int) -> float:
        """Squared error at the end of the span from ``history[0]`` to the next computed step ``end``."""
        errors, count = self.spans(history), end - history[0] - 1
        return float(errors[count]) if count < len(errors) else np.inf

    def error(self, computed: Sequence[int]) -> float:
        """Squared error of a plan, in which every segment begins with a computed step."""
        ends = [*computed[1:], self.steps]
        return sum(self.span(self.before(computed, end), end) for end in ends)


class Placements:
    """The plans with the least error under a landscape.

    Args:
        landscape: what spans cost.
        most: computed steps of a segment that are looked at.
    """

    def __init__(self, landscape: Landscape, most: int) -> None:
        self._landscape = landscape
        self._allotment = Allotment([_gaps(landscape, *segment) for segment in landscape.evidence.segments], most)

    def best(self, splits: Collection[Split]) -> Steps | None:
        """The best of the plans whose computed steps are split over the segments in one of these ways, if there is
        one."""
        found = self._allotment.best(splits)
        return None if found is None else polish(self._landscape, found)


def frontier(landscape: Landscape, fewest: int, most: int) -> dict[int, Steps]:
    """For each number of computed steps from ``fewest`` to ``most`` the plan with the least error."""
    placements = Placements(landscape, most)
    every = list(product(*(range(1, end - start + 1) for start, end in landscape.evidence.segments)))
    found = {n: placements.best([s for s in every if sum(s) == n]) for n in range(fewest, most + 1)}
    return {count: plan for count, plan in found.items() if plan is not None}


def _gaps(landscape: Landscape, start: int, end: int) -> np.ndarray:
    """What every span of a segment costs with predictions from the last two computed steps."""
    gaps = no_gaps(end - start)
    for newer in range(start, end):
        for older in range(max(newer - LONGEST - 1, start), newer) if newer > start else (start - 1,):
            errors = landscape.spans((newer, older) if newer > start else (start,))
            at = newer - start
            gaps[older - start + 1, at, at + 1 : at + 1 + len(errors)] = errors
    return gaps


def polish(landscape: Landscape, plan: Sequence[int], reach: int = 3) -> Steps:
    """Single computed steps are moved as long as that lessens the error, now with predictions of full depth."""
    best, error = tuple(plan), landscape.error(plan)
    starts, split = landscape.evidence.starts, landscape.split(plan)
    improved = True
    while improved:
        improved = False
        for moved in neighbours(best, landscape.steps, reach, starts):
            if landscape.split(moved) != split:
                continue
            found = landscape.error(moved)
            if found < error * (1.0 - 1e-9):
                best, error, improved = moved, found, True
                break
    return best


def tabulate(evidence: Evidence, computed: Sequence[int], timesteps: Sequence[float] = ()) -> Plan:
    """The plan that computes these steps, with the weights that are best on dense trajectories."""
    names, motion = list(dict.fromkeys(evidence.branches)), Motion.of(evidence)
    weights = {name: [[0.0] * (DEPTH + 1)] for name in names}
    limits = np.zeros(evidence.steps)
    for step in range(1, evidence.steps):
        history = before(computed, step, evidence.segment(step)[0])
        if not history:  # nothing is predicted from the denoiser before
            for name in names:
                weights[name].append([0.0] * (DEPTH + 1))
            continue
        found = evidence.weights(history, [step], motion.push[:, step])[:, :, 0]
        for name, row in zip(names, found, strict=True):
            weights[name].append(spread_out(row.tolist(), len(history)))
        for part, name in enumerate(evidence.branches):
            limits[step] = max(limits[step], _miss(evidence, part, history, step, found[names.index(name)]))
    return Plan(
        evidence.steps,
        tuple(computed),
        weights,
        tuple(limits.tolist()),
        tuple(timesteps),
        evidence.spread,
        evidence.starts,
    )


def _miss(evidence: Evidence, part: int, history: Sequence[int], step: int, weights: np.ndarray) -> float:
    """Relative error of a prediction."""
    rows, target = evidence.regressors(part, history), evidence.output(part, step)
    inner, cross = evidence.gram[np.ix_(rows, rows)], evidence.gram[rows, target]
    size = evidence.gram[target, target]
    miss = max(size - 2.0 * weights @ cross + weights @ inner @ weights, 0.0)
    return float(np.sqrt(miss / size)) if size > 0.0 else np.inf


def spread_out(found: Sequence[float], outputs: int) -> list[float]:
    """Weights of the first ``outputs`` stored outputs, and of the sample if there is one more, in a plan's row."""
    own, sample = list(found[:outputs]), list(found[outputs:]) or [0.0]
    return [*own, *[0.0] * (DEPTH - outputs), *sample]
