"""Straight-through learning of a table, held near the one that it began with until a step is seen to help (ours).

The table of costs is a running sum of measured gains (identity straight-through: the solver's gradient is taken to be
one), solved again under the budget after each measurement. The paper takes every solution; near a good table that does
more harm than good, so the further a level is moved the more it costs, and a table is taken only if its true loss is
lower, on the runs that are searched on and on those that are held out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from .budget import Levels, Problem, solve
from .course import Table
from .work import Bill, Floats

#: price of moving a level by one, in mean gains: from timid to bold
RADII = (4.0, 1.0, 0.25)
#: how much of the sum of gains an earlier table leaves to the next
_MEMORY = 0.8


@dataclass(frozen=True)
class Ground:
    """What a table may become.

    Attributes:
        bill: what levels cost.
        room: the budget, in its unit.
        forced: steps that stay full.
        wakes: whether a cell can be computed at a step at which nothing else is.
    """

    bill: Bill
    room: float
    forced: Sequence[int]
    wakes: bool

    def solve(self, keep: Table, cost: Floats, radius: float, tied: bool) -> Table | None:
        """The cheapest table near another one that keeps the budget; None if there is none.

        Args:
            keep: ``[steps, units]``.
            cost: ``[steps, units + 1, levels]``; the last row is that of the result as a whole.
            radius: what a level further costs.
            tied: whether the units of a step share a level. Alone they cannot add tokens to its result.
        """
        units = keep.shape[1]
        now = levels_of(keep, self.bill.levels)
        free = (keep > 0).any(1) | self.wakes
        free[list(self.forced)] = False
        away = np.abs(np.arange(len(self.bill.levels)) - now[..., None])
        cost, weight = cost.copy(), self.bill.weights
        fixed = weight[list(self.forced), :, -1].sum()
        cost[:, :units] += radius * away
        cost = cost.sum(1, keepdims=True) if tied else cost[:, :units]
        weight = (weight.sum(1, keepdims=True) if tied else weight)[free].reshape(-1, weight.shape[-1])
        room = self.bill.room(self.room, [*np.flatnonzero(free), *self.forced]) - fixed
        if weight.min(1).sum() > room:
            return None
        found = solve(Problem.of(cost[free].reshape(len(weight), -1), weight, room))
        out = keep.copy()
        out[free] = np.array(self.bill.levels)[found].reshape(int(free.sum()), -1)
        return out


def levels_of(keep: Table, levels: Sequence[float]) -> Levels:
    """The level of each cell."""
    return np.abs(keep[..., None] - np.array(levels)).argmin(-1)


def refine(
    keep: Table,
    ground: Ground,
    gains: Callable[[Table], Floats],
    loss: Callable[[Table], float],
    held_out: Callable[[Table], float],
    iterations: int,
) -> Iterator[Table]:
    """Ever better tables.

    Args:
        keep: to begin with.
        ground: what they may become.
        gains: first-order change of the loss by the level of each cell of a table, ``[steps, units + 1, levels]``.
        loss: the true loss on the runs that are searched on.
        held_out: on others; it must not rise.
        iterations: most measurements of gains.
    """
    total, best, held = 0.0, loss(keep), held_out(keep)
    for _ in range(iterations):
        total = _MEMORY * total + _centred(gains(keep))
        found, lowest = None, best
        for near in _near(keep, ground, total):
            value = loss(near)
            if value < lowest:
                found, lowest = near, value
        if found is None:
            return
        after = held_out(found)
        if after > held:
            return
        keep, best, held = found, lowest, after
        yield keep


def _near(keep: Table, ground: Ground, cost: Floats) -> Iterator[Table]:
    """Solutions at growing distance, without repeats."""
    size = float(np.abs(cost[cost != 0]).mean()) if (cost != 0).any() else 1.0
    seen = {keep.tobytes()}
    for radius, tied in product(RADII, (False, True)):
        found = ground.solve(keep, cost, radius * size, tied)
        if found is not None and found.tobytes() not in seen:
            seen.add(found.tobytes())
            yield found


def _centred(gains: Floats) -> Floats:
    """Without what a cell's levels have in common, and without their unit."""
    known = np.abs(gains).max(-1) > 0
    if not known.any():
        return gains
    return (gains - gains.mean(-1, keepdims=True)) / np.abs(gains[known]).mean()
