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
    knows_error = True

    def __init__(self, share: float = 1.0, feedback: bool = False) -> None:
        self.share, self.feedback = share, feedback

    def fit(self, moments: Sequence[Moments]) -> TrendFit:
        ratio, unit = tuple(_ratio(m, self.share) for m in moments), tuple(_unit(m) for m in moments)
        if not self.feedback:
            return TrendFit(ratio, unit)
        evidence = tuple(
            torch.zeros((2, *_per_sample(m.gram[0, 0]).shape), device=r.device) for m, r in zip(moments, ratio)
        )
        return TrendFit(ratio, unit, tuple(_trust(e) for e in evidence), evidence)

    def refit(self, moments: Sequence[Moments], before: Fit) -> tuple[TrendFit, Tensor]:
        ratio, unit = tuple(_ratio(m, self.share) for m in moments), tuple(_unit(m) for m in moments)
        assert isinstance(before, TrendFit)
        runs = [_Run.of(m, before, i) for i, m in enumerate(moments)]
        error = torch.stack([run.error for run in runs]).amax()
        if not self.feedback:
            return TrendFit(ratio, unit), error
        evidence = tuple(MEMORY * old + run.evidence for old, run in zip(before.evidence, runs, strict=True))
        return TrendFit(ratio, unit, tuple(_trust(e) for e in evidence), evidence), error


#: how much of the evidence is kept at the next computed step
MEMORY = 0.8
#: trust before anything was measured, and the weight of that as evidence
START, PRIOR = 0.5, 0.1
#: how far beyond the straight line a sample may go that speeds up
BEYOND = -0.5


@dataclass(frozen=True)
class _Run:
    """How the last run went: it predicted a move ``b * v2`` for what turned out to be ``d * v1``.

    Attributes:
        evidence: ``(num, den)`` of each sample. Between the straight line (b = d) and the damped trend, the share with
            the least squared error over the sample's tokens is num / den, in units of the line's own move, so that
            steps of all sizes count alike. Shape ``[2, batch, 1...]``.
        error: relative error of the prediction, the worst sample; a scalar.
    """

    evidence: Tensor
    error: Tensor

    @classmethod
    def of(cls, moments: Moments, before: TrendFit, modality: int) -> _Run:
        gap, tiny = moments.gaps[0], torch.finfo(torch.float32).tiny
        truth, along, old = moments.gram[1, 1], moments.gram[1, 2], moments.gram[2, 2]
        bend = before.damped(modality, gap) - gap
        slope = gap + before.trust[modality] * bend if before.trust else gap + bend
        parts = torch.stack(
            [
                bend * gap * (along - old),
                bend * bend * old,
                gap * gap * old,
                gap * gap * truth - slope * (2.0 * gap * along - slope * old),
                moments.gram[0, 0],
            ]
        )
        num, den, line, miss, size = _per_sample(parts, 2).unbind()
        evidence = torch.stack([num, den]) / line.clamp_min(tiny)
        # What is not finite says nothing, and must not stay.
        return cls(evidence.nan_to_num(0.0, 0.0, 0.0), (miss.clamp_min(0.0) / size).amax().sqrt())


def _per_sample(parts: Tensor, first: int = 1) -> Tensor:
    """Sum over the tokens of each sample (axes of size 1 stay)."""
    return parts.sum(tuple(range(first, parts.dim())), keepdim=True)


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
