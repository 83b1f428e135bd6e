"""Where a number of computed steps costs least, when a gap's cost follows from the two computed steps before it.

Denoisers that take turns have a segment of the trajectory each. Nothing is predicted across the border of two segments,
so each is placed by itself, and what is left to choose is how many steps each of them computes: a split.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

Steps = tuple[int, ...]
#: computed steps of each segment
Split = tuple[int, ...]
Floats = NDArray[np.float64]


def no_gaps(steps: int) -> Floats:
    """Costs of gaps, none of them possible yet.

    Returns:
        ``[steps + 1, steps, steps + 1]``: at ``[older + 1, newer, next]`` the cost of predicting what lies between the
        computed steps ``newer`` and ``next`` (``steps``: to the end); ``older`` is -1 if ``newer`` is the first.
    """
    return np.full((steps + 1, steps, steps + 1), np.inf)


def place(gaps: Floats, most: int) -> dict[int, Steps]:
    """:func:`placed` without what the placements cost.

    >>> gaps = no_gaps(3)
    >>> gaps[0, 0], gaps[1, 1], gaps[1, 2] = [9, 0, 1, 5], [9, 9, 0, 2], [9, 9, 9, 0]
    >>> place(gaps, 2)
    {1: (0,), 2: (0, 2)}
    """
    return {count: steps for count, (_, steps) in placed(gaps, most).items()}


def placed(gaps: Floats, most: int) -> dict[int, tuple[float, Steps]]:
    """For each number of computed steps up to ``most`` the least cost, and the placement that has it: exact, by dynamic
    programming.

    Numbers for which none is possible are left out. Takes ``most * steps ** 3`` operations, in arrays.
    """
    steps = gaps.shape[1]
    best = np.full((steps + 1, steps), np.inf)
    best[0, 0] = 0.0
    parents: list[NDArray[np.int64]] = []
    found: dict[int, tuple[float, Steps]] = {}
    for count in range(1, min(most, steps) + 1):
        ends = best + gaps[:, :, steps]
        older, newer = np.unravel_index(int(ends.argmin()), ends.shape)
        if np.isfinite(ends[older, newer]):
            found[count] = float(ends[older, newer]), _walk(parents, int(older), int(newer))
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


class Allotment:
    """The placements that cost least in segments that follow each other.

    Args:
        gaps: of each segment, as :func:`no_gaps`, its steps counted from its first one.
        most: computed steps of a segment that are looked at.
    """

    def __init__(self, gaps: Sequence[Floats], most: int) -> None:
        lengths = [gap.shape[1] for gap in gaps]
        self._starts = [sum(lengths[:number]) for number in range(len(lengths))]
        self._placed = [placed(gap, most) for gap in gaps]

    def best(self, splits: Collection[Split]) -> Steps | None:
        """The placement that costs least of those that are split in one of these ways; None if there is none."""
        able = [split for split in splits if all(map(dict.__contains__, self._placed, split))]
        if not able:
            return None
        best = min(sorted(able), key=lambda split: sum(p[n][0] for p, n in zip(self._placed, split, strict=True)))
        found = zip(self._starts, self._placed, best, strict=True)
        return tuple(start + step for start, segment, count in found for step in segment[count][1])


def split_of(computed: Sequence[int], segments: Sequence[tuple[int, int]]) -> Split:
    """How many steps of each segment a placement computes; 0 where the first one of a segment is not among them.

    >>> split_of((0, 2, 4, 5), [(0, 4), (4, 6)]), split_of((0, 2, 5), [(0, 4), (4, 6)])
    ((2, 2), (2, 0))
    """
    taken = set(computed)
    return tuple(sum(start <= s < end for s in taken) if start in taken else 0 for start, end in segments)


def splits_for(lengths: Sequence[int], prices: Sequence[float], room: float) -> frozenset[Split]:
    """The splits that a room pays, and of which none leaves enough for one more step.

    The first step of every segment is computed, and at least one more.

    Args:
        lengths: steps of each segment.
        prices: of computing a step of each.
        room: for all computed steps.

    >>> sorted(splits_for([3, 3], [1.0, 1.0], 4.5)), sorted(splits_for([3, 3], [1.0, 2.0], 5.0))
    ([(1, 3), (2, 2), (3, 1)], [(1, 2), (3, 1)])
    """
    found, room = set(), room + 1e-9 * max(prices)
    for split in product(*(range(1, length + 1) for length in lengths)):
        left = room - sum(price * count for price, count in zip(prices, split, strict=True))
        more = [price for price, count, length in zip(prices, split, lengths, strict=True) if count < length]
        if left >= 0.0 and sum(split) > len(lengths) and not any(price <= left for price in more):
            found.add(split)
    return frozenset(found)


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
