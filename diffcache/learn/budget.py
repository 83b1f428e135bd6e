"""Spending a budget over cells: which level each gets, for the least cost.

A cell is a unit at a step, a level a share of its tokens. Costs may be negative (learned ones are signed: less compute
is sometimes better), so a budget is a limit and need not be spent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ConfigError

Levels = NDArray[np.int64]
Floats = NDArray[np.float64]

#: units that a budget of real numbers (milliseconds) is cut into
RESOLUTION = 20_000
_HALVINGS = 60


@dataclass(frozen=True)
class Problem:
    """Costs and weights of all cells.

    Attributes:
        cost: ``[cells, levels]``; ``inf`` forbids a level.
        weight: what a level takes of the budget, ``[cells, levels]``, >= 0, in any unit.
        budget: most that all cells may take together.
    """

    cost: Floats
    weight: Floats
    budget: float

    @classmethod
    def of(cls, cost: ArrayLike, weight: ArrayLike, budget: float) -> Problem:
        """Checked.

        Raises:
            ConfigError: the cheapest allowed levels take more than the budget; the message gives the feasible range.
        """
        cost = np.asarray(cost, np.float64)
        weight = np.broadcast_to(np.asarray(weight, np.float64), cost.shape)
        check_budget(np.where(np.isinf(cost), np.nan, weight), budget)
        return cls(cost, weight, float(budget))

    def total(self, levels: Levels) -> tuple[float, float]:
        """(cost, weight) of an allocation."""
        cells = np.arange(len(levels))
        return float(self.cost[cells, levels].sum()), float(self.weight[cells, levels].sum())


def check_budget(weight: Floats, budget: float, unit: str = "") -> None:
    """Refuse a budget that no allocation meets.

    Args:
        weight: ``[cells, levels]``; NaN where a level is forbidden.
        budget: to check.
        unit: for the message.

    Raises:
        ConfigError: it is not a number, or below the feasible range, which is named.
    """
    low, high = float(np.nanmin(weight, 1).sum()), float(np.nanmax(weight, 1).sum())
    if not budget >= low * (1.0 - 1e-9):
        raise ConfigError(f"budget: {budget:g}{unit} is infeasible, must be in [{low:g}, {high:g}]{unit}")


def solve(problem: Problem, resolution: int = RESOLUTION) -> Levels:
    """The exact optimum, by dynamic programming over cells (DiffSparse, eqs. 6 and 7, with <= for =).

    ``F_j(r) = min_s F_(j-1)(r - w_js) + C_js``, then back from ``min_r F_J(r)``. Weights that share a unit (tokens in
    quarters) are taken as they are. Others are rounded to ``budget / resolution``, and the allocation is the best one
    for the largest r whose weight, unrounded, keeps the budget.

    Returns:
        A level for each cell, ``[cells]``. Time ``cells * units * levels``, memory ``cells * units`` bytes.
    """
    units, unit, limit = _in_units(problem, resolution)
    best = np.zeros(limit + 1)
    choices = np.empty((len(units), limit + 1), np.int8)
    for cell, (cost, weight) in enumerate(zip(problem.cost, units, strict=True)):
        best = _with_cell(best, cost, weight, choices[cell])
    while np.isfinite(best).any():
        spent = int(np.argmin(best))
        levels = _back(choices, units, spent)
        excess = problem.total(levels)[1] - problem.budget * (1 + 1e-9)
        if excess <= 0:
            return levels
        best[max(spent - max(int(excess / unit), 1), 0) + 1 :] = np.inf
        best[spent] = np.inf
    return relax(problem)  # so near to the least possible that rounding matters


def _in_units(problem: Problem, resolution: int) -> tuple[Levels, float, int]:
    """Weights as whole numbers of a unit, the unit, and the budget in it."""
    steps = problem.weight[problem.weight > 0]
    unit = float(steps.min()) if steps.size else 1.0
    whole = problem.weight / unit
    if not np.allclose(whole, np.rint(whole), rtol=0, atol=1e-6) or problem.budget / unit > resolution:
        unit = max(problem.budget, 1e-30) / resolution
    units = np.minimum(np.rint(problem.weight / unit), 1e12).astype(np.int64)
    return units, unit, min(int(problem.budget / unit + 1e-6), int(units.max(1).sum()))


def _with_cell(best: Floats, cost: Floats, weight: Levels, choice: NDArray[np.int8]) -> Floats:
    """Best cost for each amount that may be spent, one cell more; notes its level."""
    out = np.full_like(best, np.inf)
    choice.fill(0)
    for level, (price, units) in enumerate(zip(cost.tolist(), weight.tolist(), strict=True)):
        if units >= len(best) or price == np.inf:
            continue
        found = best[: len(best) - units] + price
        better = found < out[units:]
        np.copyto(out[units:], found, where=better)
        choice[units:][better] = level
    return out


def _back(choices: NDArray[np.int8], weight: Levels, spent: int) -> Levels:
    levels = np.empty(len(choices), np.int64)
    for cell in range(len(choices) - 1, -1, -1):
        levels[cell] = choices[cell, spent]
        spent -= weight[cell, levels[cell]]
    return levels


def relax(problem: Problem) -> Levels:
    """The Lagrangian way: ``argmin_s C_js + mu w_js`` with the smallest ``mu`` that keeps the budget.

    Reaches corners of the lower convex hull only, so it may leave some of the budget; milliseconds where
    :func:`solve` takes tenths of seconds. Time ``cells * levels`` for each of 60 halvings.
    """

    def pick(price: float) -> Levels:
        return np.argmin(problem.cost + price * problem.weight, 1)

    return bisect(pick, lambda levels: problem.total(levels)[1] <= problem.budget * (1 + 1e-9), problem.weight)


def bisect(pick: Callable[[float], Levels], fits: Callable[[Levels], bool], weight: Floats) -> Levels:
    """The allocation of the smallest price of weight that fits.

    Args:
        pick: price -> levels.
        fits: whether they keep the budget.
        weight: to know when prices are out of range.
    """
    levels = pick(0.0)
    if fits(levels):
        return levels
    low, high = 0.0, 1.0 / max(float(weight.max()), 1e-30)
    while not fits(pick(high)) and high < 1e30:
        low, high = high, high * 16.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        low, high = (low, middle) if fits(pick(middle)) else (middle, high)
    return pick(high)


def solve_with_ages(cost: ArrayLike, weight: ArrayLike, budget: float) -> Levels:
    """An allocation in which a level's cost grows with the age of what it leaves stale (ours).

    Additive costs buy long runs of stale steps, because they do not see that errors of a run add up coherently. Here
    each unit is a chain over the steps whose state is the age a of its stale rows, ``V_t(a) = min_s C_ts^(a) + mu w_s +
    V_(t+1)(a')`` with a' = 1 after the highest level and a + 1 else, at most A; units are coupled by ``mu`` alone.

    Args:
        cost: ``[steps, units, ages, levels]``, age a at index a - 1; ``inf`` forbids. Levels ascend.
        weight: ``[units, levels]``, or for each step ``[steps, units, levels]``.
        budget: of all cells.

    Returns:
        ``[steps, units]``. Time ``steps * units * ages * levels`` for each of about 60 prices.

    Raises:
        ConfigError: infeasible; the message gives the range.
    """
    cost, weight = np.asarray(cost, np.float64), np.asarray(weight, np.float64)
    steps, units = cost.shape[:2]
    weight = np.broadcast_to(weight, (steps, *weight.shape[-2:]))
    forbidden = np.isinf(cost).all(2)
    check_budget(np.where(forbidden, np.nan, weight).reshape(steps * units, -1), budget)

    def fits(levels: Levels) -> bool:
        return float(np.take_along_axis(weight, levels[..., None], -1).sum()) <= budget * (1 + 1e-9)

    return bisect(lambda price: _chains(cost + price * weight[:, :, None, :]), fits, weight)


def _chains(cost: Floats) -> Levels:
    """The best path of every unit: ``[steps, units, ages, levels]`` -> ``[steps, units]``."""
    steps, units, ages, levels = cost.shape
    older = np.minimum(np.arange(ages) + 1, ages - 1)
    ahead = np.zeros((units, ages))
    picks = np.empty((steps, units, ages), np.int64)
    for step in range(steps - 1, -1, -1):
        value = cost[step] + ahead[:, older, None]
        value[..., -1] = cost[step][..., -1] + ahead[:, :1]
        picks[step], ahead = value.argmin(-1), value.min(-1)
    out, age, rows = np.empty((steps, units), np.int64), np.zeros(units, np.int64), np.arange(units)
    for step in range(steps):
        out[step] = picks[step, rows, age]
        age = np.where(out[step] == levels - 1, 0, older[age])
    return out
