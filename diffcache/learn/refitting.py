"""Weights of a plan fitted on the trajectories that the plan itself makes, towards the dense ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..predictors import Plan
from ..predictors.evidence import Track, ridge
from ..predictors.fitted import RIDGE
from ..schedules.planning import spread_out


def refit(plan: Plan, made: Sequence[Track], dense: Sequence[Track]) -> Plan:
    """The plan with weights for what is really stored when it runs; errors of earlier predictions are in it.

    Args:
        plan: which steps are computed.
        made: trajectories under it.
        dense: those of the same calls, computed in full.
    """
    weights: dict[str, list[list[float]]] = {}
    limits = np.zeros(plan.steps)
    for branch, rows in plan.weights.items():
        weights[branch] = [list(rows[0])]
        for step in range(1, plan.steps):
            history = plan.before(step)
            pairs = [(_rows(t, branch, history), d.outputs[branch][step]) for t, d in zip(made, dense, strict=True)]
            found = _fit(pairs)
            misses = [float((y - torch.einsum("k,kp->p", found, x)).norm() / y.norm()) for x, y in pairs]
            weights[branch].append(spread_out(found.tolist(), len(history)))
            limits[step] = max(limits[step], *misses)
    return replace(plan, weights=weights, limits=tuple(limits.tolist()))


def _rows(track: Track, branch: str, history: Sequence[int]) -> Tensor:
    rows = [track.outputs[branch][step] for step in history]
    return torch.stack([*rows, track.samples[history[0]]] if track.sampled else rows)


def _fit(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    gram = sum((x.double() @ x.double().T).numpy() for x, _ in pairs)
    cross = sum((x.double() @ y.double()).numpy() for x, y in pairs)
    return torch.from_numpy(ridge(gram, cross, RIDGE)).float()
