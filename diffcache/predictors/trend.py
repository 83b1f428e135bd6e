"""Measured damped trend: each token's velocity is an AR(1) process whose ratio was just measured (ours)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Fit, Horizon, Predictor, Slope
from .moments import Moments


class Trend(Predictor):
    """``y0 + (r + r^2 + ... + r^k) * v1`` a step, with the damping ``r`` measured from the last three outputs.

    ``gamma = clamp(<v1, v2> / <v2, v2>, 0, 1)`` is how much of the old velocity survived from one gap to the next;
    ``r = gamma^(1/gap)`` a step. A token that turns or stops has a small gamma and is reused; a token that moves
    straight has gamma 1 and is extrapolated linearly: the three groups of WorldCache without a threshold.

    Args:
        share: 0 measures each token alone; larger values pull a token's ratio towards its sample's, with the weight
            of that many average tokens (a token with little motion says little about its own ratio). ``inf``
            gives one ratio per sample.
    """

    depth = 3
    least = 3

    def __init__(self, share: float = 1.0) -> None:
        self.share = share

    def fit(self, moments: Sequence[Moments]) -> Fit:
        return _TrendFit(tuple(_ratio(m, self.share) for m in moments), tuple(_unit(m) for m in moments))


def _unit(moments: Moments) -> float:
    """Time of one sampler step, as the newest gap shows it."""
    return moments.gaps[0] / moments.steps[0]


def _ratio(moments: Moments, share: float) -> Tensor:
    """Damping of one step, per token, in [0, 1]."""
    along, old = moments.gram[1, 2], moments.gram[2, 2]
    if share > 0:
        inner = tuple(range(1, along.dim()))
        mean_along, mean_old = along.mean(inner, keepdim=True), old.mean(inner, keepdim=True)
        alone = share == float("inf")
        along = mean_along if alone else along + share * mean_along
        old = mean_old if alone else old + share * mean_old
    gamma = (along / old.clamp_min(torch.finfo(torch.float32).tiny)).clamp(0.0, 1.0)
    return gamma ** (1.0 / moments.steps[0])


@dataclass(frozen=True)
class _TrendFit(Fit):
    ratio: tuple[Tensor, ...]
    unit: tuple[float, ...]

    def slopes(self, modality: int, horizon: Horizon) -> tuple[Slope, ...]:
        r, unit = self.ratio[modality], self.unit[modality]
        return (unit * geometric(r, horizon.time / unit),)


def geometric(ratio: Tensor, count: Slope) -> Tensor:
    """``r + r^2 + ... + r^count`` for any real count >= 0, with the limit ``count`` at r = 1."""
    # fp32 loses the quotient near 1, where the sum is count to first order.
    near = ratio > 1.0 - 1e-4
    safe = torch.where(near, 0.5, ratio)
    return torch.where(near, count * ratio, safe * (1.0 - safe**count) / (1.0 - safe))
