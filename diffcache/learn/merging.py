"""Stage 2 of DiffSparse: more steps than the budget pays in full, and cells taken away from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .budget import solve_with_ages
from .skeleton import Steps
from .work import Bill

Floats = NDArray[np.float64]
#: how many more steps than in full, as shares
MORE = (0.1, 0.25, 0.5)


def merge(
    table: Floats, bill: Bill, active: Steps, former: Steps, forced: Sequence[int], budget: float, bonus: float
) -> Floats:
    """Shares of all cells, of which those at ``active`` steps share the budget.

    Args:
        table: ``[steps, units, ages, levels]``, costs by the age in steps.
        bill: what levels cost.
        active: steps at which anything is computed.
        former: full steps of stage 1; they begin with an advantage.
        forced: steps that stay full.
        budget: in the unit of ``bill``.
        bonus: advantage of a former full step's full cells, in standard deviations of the table's costs.

    Returns:
        ``[steps, units]``.
    """
    cost = _of_active(table, active)
    spread = float(cost[..., 0].std())
    for row, step in enumerate(active):
        if step in former:
            cost[row, ..., -1] -= bonus * spread
        if step in forced:
            cost[row, ..., :-1] = np.inf
    levels = solve_with_ages(cost, bill.weights[list(active)], bill.room(budget, active))
    keep = np.zeros(table.shape[:2])
    keep[list(active)] = np.array(bill.levels)[levels]
    return keep


def _of_active(table: Floats, active: Steps) -> Floats:
    """``[active, units, ages, levels]``, by the age in active steps: the time between them counts."""
    ages = table.shape[2]
    out = np.empty((len(active), *table.shape[1:]))
    for row, step in enumerate(active):
        for age in range(ages):
            since = step - active[max(row - 1 - age, 0)]
            out[row, :, age] = table[step, :, min(max(since, 1), ages) - 1]
    return out


def more_steps(count: int, steps: int) -> list[int]:
    """Numbers of active steps that are worth a look, where ``count`` full ones are paid."""
    return sorted({min(max(round(count * (1 + more)), count + 1), steps) for more in MORE} - {count})


def shared(keep: Floats, count: int, forced: Sequence[int]) -> Floats:
    """A table of full and idle steps whose last full ones share their tokens with an idle neighbour, half and half.

    Late steps move the final sample least, so there a partial step does least harm: near a good table, and partial.

    Args:
        keep: ``[steps, units]``.
        count: how many full steps give half of their tokens away; fewer where there are not so many that can.
        forced: steps that stay full.
    """
    keep = keep.copy()
    for step in np.flatnonzero((keep >= 1).all(1))[::-1].tolist():
        near = [s for s in (step + 1, step - 1) if 0 < s < len(keep) and not keep[s].any()]
        if count and near and step not in forced:
            keep[[step, near[0]]] = 0.5
            count -= 1
    return keep
