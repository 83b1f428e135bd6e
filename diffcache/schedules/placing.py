"""Where a number of computed steps costs least, when a gap's cost follows from the two computed steps before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Steps = tuple[int, ...]
Floats = NDArray[np.float64]


def no_gaps(steps: int) -> Floats:
    """Costs of gaps, none of them possible yet.

    Returns:
        ``[steps + 1, steps, steps + 1]``: at ``[older + 1, newer, next]`` the cost of predicting what lies between the
        computed steps ``newer`` and ``next`` (``steps``: to the end); ``older`` is -1 if ``newer`` is the first.
    """
    return np.full((steps + 1, steps, steps + 1), np.inf)


def place(gaps: Floats, most: int) -> dict[int, Steps]:
    """For each number of computed steps up to ``most`` the placement that costs least: exact, by dynamic programming.

    Numbers for which none is possible are left out. Takes ``most * steps ** 3`` operations, in arrays.

    >>> gaps = no_gaps(3)
    >>> gaps[0, 0], gaps[1, 1], gaps[1, 2] = [9, 0, 1, 5], [9, 9, 0, 2], [9, 9, 9, 0]
    >>> place(gaps, 2)
    {1: (0,), 2: (0, 2)}
    """
    steps = gaps.shape[1]
    best = np.full((steps + 1, steps), np.inf)
    best[0, 0] = 0.0
    parents: list[NDArray[np.int64]] = []
    found: dict[int, Steps] = {}
    for count in range(1, min(most, steps) + 1):
        ends = best + gaps[:, :, steps]
        older, newer = np.unravel_index(int(ends.argmin()), ends.shape)
        if np.isfinite(ends[older, newer]):
            found[count] = _walk(parents, int(older), int(newer))
        reached = best[:, :, None] + gaps[:, :, :steps]
        parents.append(reached.argmin(0))
        best = np.full((steps + 1, steps), np.inf)
        best[1:] = reached.min(0)
    return found


def _walk(parents: Sequence[NDArray[np.int64]], older: int, newer: int) -> Steps:
    found = [newer]
    for parent in reversed(parents):
        older, newer = int(parent[older - 1, newer]), older - 1
        found.append(newer)
    return tuple(reversed(found))


def neighbours(plan: Sequence[int], steps: int, reach: int = 1, forced: Sequence[int] = (0,)) -> Iterator[Steps]:
    """Placements that differ in one step, by at most ``reach``; ``forced`` steps stay.

    >>> list(neighbours((0, 3), 5))
    [(0, 2), (0, 4)]
    """
    taken = set(plan)
    for step in plan:
        for shift in (s * d for d in range(1, reach + 1) for s in (-1, 1)):
            if step not in forced and 0 < step + shift < steps and step + shift not in taken:
                yield tuple(sorted((taken - {step}) | {step + shift}))


def shifted(plan: Sequence[int], steps: int) -> Iterator[Steps]:
    """Placements in which some steps that follow each other, not the first of all, are one earlier or one later.

    >>> list(shifted((0, 2, 3), 5))
    [(0, 1, 3), (0, 1, 2), (0, 3, 4), (0, 2, 4)]
    """
    for first in range(1, len(plan)):
        for behind in range(first + 1, len(plan) + 1):
            for shift in (-1, 1):
                moved = (*plan[:first], *(s + shift for s in plan[first:behind]), *plan[behind:])
                if moved[-1] < steps and all(a < b for a, b in pairwise(moved)):
                    yield moved
