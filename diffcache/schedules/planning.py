"""Which steps to compute: the plan with the least error at the end of the trajectory, for each number of steps (ours).

A span is a computed step and the predicted ones behind it. Its error is what all its predictions together move the
sample by, times how much of a push at that step is left at the end. Spans are taken to err independently of each other,
so that their squares add, and dynamic programming over pairs of computed steps finds the best plan of every length.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from ..predictors.evidence import Evidence, ridge
from ..predictors.fitted import DEPTH, RIDGE, Plan, before
from .placing import neighbours, no_gaps, place

#: longest run of predicted steps that is considered
LONGEST = 24


class Landscape:
    """The error that any span leaves at the end.

    Args:
        evidence: of dense trajectories.
        gains: for each step, how much of a push of the sample there is left at the end; 1 everywhere if not measured.
    """

    def __init__(self, evidence: Evidence, gains: Sequence[float] | None = None) -> None:
        self.evidence = evidence
        gain = np.ones(evidence.steps) if gains is None else np.asarray(gains, np.float64)
        self._push = pushes(evidence) * gain
        self.spans = lru_cache(maxsize=None)(self._spans)

    @property
    def steps(self) -> int:
        return self.evidence.steps

    def _spans(self, history: tuple[int, ...]) -> np.ndarray:
        """Squared error of the span behind ``history`` (newest first) if it ends before step ``history[0] + 1 + k``,
        for k = 0, 1, ... up to the longest."""
        known, first = self.evidence, history[0] + 1
        steps = np.arange(first, min(first + LONGEST, self.steps))
        columns: list[int] = []
        rows: list[np.ndarray] = []
        for branch in range(len(known.branches)):
            targets = np.array([known.output(branch, j) for j in steps], int)
            regressors = known.regressors(branch, history)
            push = self._push[branch, steps]
            inner = known.gram[np.ix_(regressors, regressors)]
            weights = ridge(inner, known.gram[np.ix_(regressors, targets)], RIDGE)
            rows += [np.triu(np.broadcast_to(push[:, None], (len(steps),) * 2)), -np.cumsum(weights * push, 1)]
            columns += [*targets, *regressors]
        if not len(steps):
            return np.zeros(1)
        sums = np.concatenate(rows)  # column k: the sum of the first k + 1 misses, over the columns of the evidence
        errors = np.einsum("ik,ij,jk->k", sums, known.gram[np.ix_(columns, columns)], sums, optimize=True)
        return np.concatenate([[0.0], np.maximum(errors, 0.0)])

    def span(self, history: tuple[int, ...], end: int) -> float:
        """Squared error at the end of the span from ``history[0]`` to the next computed step ``end``."""
        errors, count = self.spans(history), end - history[0] - 1
        return float(errors[count]) if count < len(errors) else np.inf

    def error(self, computed: Sequence[int]) -> float:
        """Squared error of a plan."""
        ends = [*computed[1:], self.steps]
        return sum(self.span(before(computed, end), end) for end in ends)


def pushes(evidence: Evidence) -> np.ndarray:
    """``[branches, steps]``: how far the sampler moves the sample for one unit of each branch's output.

    By least squares from the samples before and behind each step; where they are not known, 1 over the number of
    branches.
    """
    count, steps = len(evidence.branches), evidence.steps
    found = np.full((count, steps), 1.0 / count)
    if not evidence.sampled or steps < 3:
        return found
    for step in range(steps - 1):
        now, after = evidence.sample(step), evidence.sample(step + 1)
        rows = [*(evidence.output(branch, step) for branch in range(count)), now]
        gram = evidence.gram[np.ix_(rows, rows)]
        found[:, step] = ridge(gram, evidence.gram[rows, after], 1e-10)[:count]
    found[:, -1] = found[:, -2]  # what comes behind the last step is not seen
    return found


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
    weights: dict[str, list[list[float]]] = {}
    limits = np.zeros(evidence.steps)
    for branch, name in enumerate(evidence.branches):
        weights[name] = [[0.0] * (DEPTH + 1)]
        for step in range(1, evidence.steps):
            history, target = before(computed, step), evidence.output(branch, step)
            rows = evidence.regressors(branch, history)
            inner, cross = evidence.gram[np.ix_(rows, rows)], evidence.gram[rows, target]
            found = ridge(inner, cross, RIDGE)
            weights[name].append(spread_out(found.tolist(), len(history)))
            size = evidence.gram[target, target]
            miss = max(size - 2.0 * found @ cross + found @ inner @ found, 0.0)
            limits[step] = max(limits[step], np.sqrt(miss / size) if size > 0.0 else np.inf)
    return Plan(evidence.steps, tuple(computed), weights, tuple(limits.tolist()), tuple(timesteps))


def spread_out(found: Sequence[float], outputs: int) -> list[float]:
    """Weights of the first ``outputs`` stored outputs, and of the sample if there is one more, in a plan's row."""
    own, sample = list(found[:outputs]), list(found[outputs:]) or [0.0]
    return [*own, *[0.0] * (DEPTH - outputs), *sample]
