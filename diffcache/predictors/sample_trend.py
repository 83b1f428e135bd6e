"""Measured damped trend per sample, with feedback: the default of ``worldcache`` (ours)."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, nan

from .base import Fit, Horizon, Predictor, Slope
from .moments import Moments
from .totals import Sample, Totals

#: how much of the evidence is kept at the next computed step
MEMORY = 0.8
#: trust before anything was measured, and the weight of that as evidence
START, PRIOR = 0.5, 0.1
#: how far beyond the straight line a sample may go that speeds up
BEYOND = -0.5


class SampleTrend(Predictor):
    """:class:`~diffcache.predictors.trend.Trend` with one damping a sample, corrected by how the last runs went.

    Each run is compared with what the damped trend and the straight line had foretold, and the next prediction lies
    between them where the truth was. All of it follows from a few sums over each sample, which the host reads with the
    plan of a computed step: nothing is kept on the device but the stored outputs, and a prediction is one pass.
    """

    depth = 3
    least = 3
    knows_error = True
    hosted = True

    def fit(self, moments: Moments) -> Fit:
        raise TypeError("SampleTrend is fitted from totals on the host: use learn()")

    def learn(self, known: Totals, before: SampleFit | None = None) -> tuple[SampleFit, list[float]]:
        """The fit, and the squared relative error of what ``before`` would have predicted, one a sample.

        Args:
            known: of the three newest outputs.
            before: the fit of the computed step before, if there was one; without it there are no errors.
        """
        unit = known.gaps[0] / known.steps[0]
        paces, errors = [], []
        for i, sample in enumerate(known.samples):
            ratio = _ratio(sample) ** (1.0 / known.steps[0])
            num = den = 0.0
            if before is not None:
                old = before.paces[i]
                bend = old.damped(known.gaps[0], before.unit) / known.gaps[0] - 1.0
                num, den = _evidence(sample, bend)
                num, den = num + MEMORY * old.num, den + MEMORY * old.den
                errors.append(_error(sample, known.gaps[0], 1.0 + old.trust * bend))
            paces.append(Pace(ratio, num, den))
        return SampleFit(tuple(paces), unit), errors


@dataclass(frozen=True, slots=True)
class Pace:
    """How one sample moves.

    Attributes:
        ratio: damping of one step, in [0, 1].
        num, den: evidence: between the straight line and the damped trend, the share with the least squared error in
            past runs is num / den, in units of the line's own move, so that steps of all sizes count alike.
    """

    ratio: float
    num: float = 0.0
    den: float = 0.0

    @property
    def trust(self) -> float:
        """Weight of the damped trend against the straight line: 1 is damped, 0 straight, below 0 speeds up."""
        return min(max((START * PRIOR + self.num) / (PRIOR + self.den), BEYOND), 1.0)

    def damped(self, time: float, unit: float) -> float:
        """The slope of the damped trend alone: ``r + r^2 + ... + r^k`` steps of ``unit``, for any real k."""
        count, r = time / unit, self.ratio
        return unit * (count if r > 1.0 - 1e-9 else r * (1.0 - r**count) / (1.0 - r))

    def along(self, time: float, unit: float) -> float:
        """The slope at ``time`` after the newest output."""
        return time + self.trust * (self.damped(time, unit) - time)


@dataclass(frozen=True)
class SampleFit(Fit):
    """The pace of each sample; ``unit`` is the time of one sampler step."""

    paces: tuple[Pace, ...]
    unit: float

    def slopes(self, horizon: Horizon) -> tuple[Slope, ...]:
        return (self.along(horizon.time),)

    def along(self, time: float) -> list[float]:
        """The slope of each sample at ``time`` after the newest output."""
        return [pace.along(time, self.unit) for pace in self.paces]

    def rows(self, start: int, count: int) -> SampleFit:
        return SampleFit(self.paces[start : start + count], self.unit)


def _ratio(sample: Sample) -> float:
    """How much of the old velocity survived, in [0, 1]; 0 where there was none, or it is not known."""
    gamma = sample.along / sample.old if sample.old > 0.0 else 0.0
    return min(max(gamma, 0.0), 1.0) if isfinite(gamma) else 0.0


def _evidence(sample: Sample, bend: float) -> tuple[float, float]:
    """What the last run says: it foretold ``(1 + bend) * v2`` where the straight line says ``v2``, and ``v1`` came."""
    if not sample.old > 0.0:
        return 0.0, 0.0
    num = bend * (sample.along / sample.old - 1.0)
    # What is not finite says nothing, and must not stay.
    return (num, bend * bend) if isfinite(num) else (0.0, 0.0)


def _error(sample: Sample, gap: float, slope: float) -> float:
    """Squared relative error of having foretold ``gap * slope * v2`` for what turned out to be ``gap * v1``."""
    miss = gap * gap * (sample.new - slope * (2.0 * sample.along - slope * sample.old))
    if not sample.size > 0.0:
        return nan
    return max(miss, 0.0) / sample.size if isfinite(miss) else nan
