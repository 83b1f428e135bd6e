"""Which steps to compute: the plan with the least error at the end of the trajectory, for each number of steps (ours).

A span is a computed step and the predicted ones behind it. Its error is what all its predictions together move the
sample by, times how much of a push at that step is left at the end. Spans are taken to err independently of each other,
so that their squares add, and dynamic programming over pairs of computed steps finds the best plan of every length.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from ..predictors.evidence import Evidence
from ..predictors.fitted import DEPTH, Plan, before
from .motion import Motion
from .placing import neighbours, no_gaps, place

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
        steps = np.arange(first, min(first + LONGEST, self.steps))
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

    def span(self, history: tuple[int, ...], end: int) -> float:
        """Squared error at the end of the span from ``history[0]`` to the next computed step ``end``."""
        errors, count = self.spans(history), end - history[0] - 1
        return float(errors[count]) if count < len(errors) else np.inf

    def error(self, computed: Sequence[int]) -> float:
        """Squared error of a plan."""
        ends = [*computed[1:], self.steps]
        return sum(self.span(before(computed, end), end) for end in ends)


def frontier(landscape: Landscape, fewest: int, most: int) -> dict[int, tuple[int, ...]]:
    """For each number of computed steps from ``fewest`` to ``most`` the plan with the least error."""
    placed = place(_gaps(landscape), most)
    return {count: polish(landscape, plan) for count, plan in placed.items() if count >= fewest}


def _gaps(landscape: Landscape) -> np.ndarray:
    """What every span costs with predictions from the last two computed steps."""
    n = landscape.steps
    gaps = no_gaps(n)
    for newer in range(n):
        for older in range(max(newer - LONGEST - 1, 0), newer) if newer else (-1,):
            errors = landscape.spans((newer, older) if newer else (0,))
            gaps[older + 1, newer, newer + 1 : newer + 1 + len(errors)] = errors
    return gaps


def polish(landscape: Landscape, plan: Sequence[int], reach: int = 3) -> tuple[int, ...]:
    """Single computed steps are moved as long as that lessens the error, now with predictions of full depth."""
    best, error = tuple(plan), landscape.error(plan)
    improved = True
    while improved:
        improved = False
        for moved in neighbours(best, landscape.steps, reach):
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
        history = before(computed, step)
        found = evidence.weights(history, [step], motion.push[:, step])[:, :, 0]
        for name, row in zip(names, found, strict=True):
            weights[name].append(spread_out(row.tolist(), len(history)))
        for part, name in enumerate(evidence.branches):
            limits[step] = max(limits[step], _miss(evidence, part, history, step, found[names.index(name)]))
    return Plan(evidence.steps, tuple(computed), weights, tuple(limits.tolist()), tuple(timesteps), evidence.spread)


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
