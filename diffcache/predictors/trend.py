"""Measured damped trend: each token's velocity is an AR(1) process whose ratio was just measured (ours)."""

from __future__ import annotations

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

    def scalars(self, tokens: int, samples: int) -> int:
        return (samples if self.share == float("inf") else tokens) + (3 * samples if self.feedback else 0)

    def fit(self, moments: Moments) -> TrendFit:
        ratio = _ratio(moments, self.share)
        if not self.feedback:
            return TrendFit(ratio, _unit(moments))
        evidence = ratio.new_zeros((2, len(ratio), *[1] * (ratio.dim() - 1)))
        return TrendFit(ratio, _unit(moments), _trust(evidence), evidence)

    def refit(self, moments: Moments, before: Fit) -> tuple[TrendFit, Tensor]:
        assert isinstance(before, TrendFit)
        evidence, error = _last_run(moments, before)
        ratio = _ratio(moments, self.share)
        if not self.feedback:
            return TrendFit(ratio, _unit(moments)), error
        evidence = evidence.add_(before.evidence, alpha=MEMORY)
        return TrendFit(ratio, _unit(moments), _trust(evidence), evidence), error


#: how much of the evidence is kept at the next computed step
MEMORY = 0.8
#: trust before anything was measured, and the weight of that as evidence
START, PRIOR = 0.5, 0.1
#: how far beyond the straight line a sample may go that speeds up
BEYOND = -0.5


def _last_run(moments: Moments, before: TrendFit) -> tuple[Tensor, Tensor]:
    """How the last run went: ``before`` foretold a move ``b * v2`` for what turned out to be ``gap * v1``.

    Returns:
        evidence ``(num, den)`` of each sample, shape ``[2, samples, 1...]``: between the straight line (b = gap) and
        the damped trend, the share with the least squared error over the sample's tokens is num / den, in units of
        the line's own move, so that steps of all sizes count alike; and the squared relative error of the prediction,
        shape ``[samples]``.
    """
    gap, total = moments.gaps[0], moments.total.gram
    inner = tuple(range(2, moments.table.dim()))
    bend = (before.damped(gap) / gap).sub_(1.0)
    # Sums of bend * <v1, v2>, bend * <v2, v2> and bend^2 * <v2, v2>.
    parts = moments.table[4:6] * bend
    along, old = parts.sum(inner, keepdim=True).unbind()
    squares = (parts[1] * bend).sum(tuple(axis - 1 for axis in inner), keepdim=True)
    evidence = torch.stack([along - old, squares])
    num, den = evidence.unbind()
    trust = before.trust if before.trust is not None else 1.0
    miss = total[1, 1] + total[2, 2] - 2.0 * (total[1, 2] + trust * num) + trust * trust * den
    error = miss.clamp_min_(0.0).mul_(gap * gap) / total[0, 0]
    # What is not finite says nothing, and must not stay.
    evidence = (evidence / total[2, 2].clamp_min(torch.finfo(torch.float32).tiny)).nan_to_num_(0.0, 0.0, 0.0)
    return evidence, error.flatten()


def _trust(evidence: Tensor) -> Tensor:
    """Weight of the damped trend against the straight line, per sample: 1 is damped, 0 straight, below 0 speeds up."""
    num, den = evidence.unbind()
    return ((num + START * PRIOR) / (den + PRIOR)).clamp_(BEYOND, 1.0)


def _unit(moments: Moments) -> float:
    """Time of one sampler step, as the newest gap shows it."""
    return moments.gaps[0] / moments.steps[0]


def _ratio(moments: Moments, share: float) -> Tensor:
    """Damping of one step, per token, in [0, 1]."""
    pair = moments.table[4:6]  # <v1, v2> and <v2, v2>
    if share == float("inf"):
        pair = moments.total.table[4:6]
    elif share > 0:
        pair = torch.add(pair, moments.total.table[4:6], alpha=share / moments.tokens)
    along, old = pair.unbind()
    gamma = (along / old.clamp_min(torch.finfo(torch.float32).tiny)).clamp_(0.0, 1.0)
    return gamma if moments.steps[0] == 1.0 else gamma.pow_(1.0 / moments.steps[0])


@dataclass(frozen=True)
class TrendFit(Fit):
    """One damping per token; with feedback, one trust in it per sample (and the evidence for that)."""

    ratio: Tensor
    unit: float
    trust: Tensor | None = None
    evidence: Tensor | None = None

    def slopes(self, horizon: Horizon) -> tuple[Slope, ...]:
        if horizon.whole and self.unit == 1.0:
            damped = self.ratio.expand(len(horizon.steps), *self.ratio.shape).cumprod(0).cumsum(0)
        else:
            damped = self.damped(horizon.time)
        if self.trust is None:
            return (damped,)
        straight = horizon.time if isinstance(horizon.time, Tensor) else damped.new_full((), horizon.time)
        return (torch.lerp(straight, damped, self.trust),)

    def damped(self, time: Slope) -> Slope:
        """The slope of the damped trend alone."""
        if self.unit == 1.0:
            return geometric(self.ratio, time)
        return self.unit * geometric(self.ratio, time / self.unit)

    def rows(self, start: int, count: int) -> TrendFit:
        ratio = self.ratio.narrow(0, start, count)
        if self.trust is None:
            return TrendFit(ratio, self.unit)
        return TrendFit(ratio, self.unit, self.trust.narrow(0, start, count), self.evidence.narrow(1, start, count))


def geometric(ratio: Tensor, count: Slope) -> Tensor:
    """``r + r^2 + ... + r^count`` for any real count >= 0, with the limit ``count`` at r = 1."""
    if isinstance(count, float) and count.is_integer() and 1.0 <= count <= 16.0:
        total = ratio
        for _ in range(int(count) - 1):
            total = torch.addcmul(ratio, ratio, total)
        return total
    # fp32 loses the quotient near 1, where the sum is count to first order.
    near = ratio > 1.0 - 1e-4
    safe = torch.where(near, 0.5, ratio)
    return torch.where(near, count * ratio, safe * (1.0 - safe**count) / (1.0 - safe))
