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
        feedback: compare each run with what the damped trend and the straight line had foretold, and go between them
            where the truth was, per sample.
    """

    depth = 3
    least = 3

    def __init__(self, share: float = 1.0, feedback: bool = False) -> None:
        self.share, self.feedback = share, feedback

    def fit(self, moments: Sequence[Moments], before: Fit | None = None) -> Fit:
        ratios = tuple(_ratio(m, self.share) for m in moments)
        units = tuple(_unit(m) for m in moments)
        if not self.feedback:
            return TrendFit(ratios, units)
        known = before if isinstance(before, TrendFit) else None
        evidence = tuple(_evidence(m, known, i) for i, m in enumerate(moments))
        return TrendFit(ratios, units, tuple(_trust(e) for e in evidence), evidence)


#: how much of the evidence is kept at the next computed step
MEMORY = 0.8
#: trust before anything was measured, and the weight of that as evidence
START, PRIOR = 0.5, 0.1
#: how far beyond the straight line a sample may go that speeds up
BEYOND = -0.5


def _evidence(moments: Moments, before: TrendFit | None, modality: int) -> Tensor:
    """Sums that tell how far towards the damped trend, away from a straight line, the last run really went.

    The last run predicted a move ``b * v2`` for what turned out to be ``d * v1``. Between the line (b = d) and the
    trend, the share w with the least squared error over a sample's tokens is ``num / den``; both are inner products
    that are known. In units of the line's own move, so that steps of all sizes count alike. Shape ``[2, batch, 1...]``.
    """
    gap = moments.gaps[0]
    along, old = moments.gram[1, 2], moments.gram[2, 2]
    inner = tuple(range(1, along.dim()))
    if before is None:
        zero = old.sum(inner, keepdim=True) * 0.0
        return torch.stack([zero, zero])
    bend = before.damped(modality, gap) - gap
    size = (gap * gap * old).sum(inner, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    num = (bend * gap * (along - old)).sum(inner, keepdim=True) / size
    den = (bend * bend * old).sum(inner, keepdim=True) / size
    # What is not finite says nothing, and must not stay.
    return MEMORY * before.evidence[modality] + torch.stack([num, den]).nan_to_num(0.0, 0.0, 0.0)


def _trust(evidence: Tensor) -> Tensor:
    """Weight of the damped trend against the straight line, per sample: 1 is damped, 0 straight, below 0 speeds up."""
    num, den = evidence.unbind()
    return ((START * PRIOR + num) / (PRIOR + den)).clamp(BEYOND, 1.0)


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
class TrendFit(Fit):
    """One damping per token; with feedback, one trust in it per sample (and the evidence for that)."""

    ratio: tuple[Tensor, ...]
    unit: tuple[float, ...]
    trust: tuple[Tensor, ...] = ()
    evidence: tuple[Tensor, ...] = ()

    def slopes(self, modality: int, horizon: Horizon) -> tuple[Slope, ...]:
        damped = self.damped(modality, horizon.time)
        if not self.trust:
            return (damped,)
        return (horizon.time + self.trust[modality] * (damped - horizon.time),)

    def damped(self, modality: int, time: Slope) -> Slope:
        """The slope of the damped trend alone."""
        unit = self.unit[modality]
        return unit * geometric(self.ratio[modality], time / unit)


def geometric(ratio: Tensor, count: Slope) -> Tensor:
    """``r + r^2 + ... + r^count`` for any real count >= 0, with the limit ``count`` at r = 1."""
    # fp32 loses the quotient near 1, where the sum is count to first order.
    near = ratio > 1.0 - 1e-4
    safe = torch.where(near, 0.5, ratio)
    return torch.where(near, count * ratio, safe * (1.0 - safe**count) / (1.0 - safe))
