"""Measured damped trend per sample, with feedback: the default of ``worldcache`` (ours)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .base import Fit, Horizon, Predictor, Slope
from .moments import Moments
from .totals import Totals

#: how much of the evidence is kept at the next computed step
MEMORY = 0.8
#: trust before anything was measured, and the weight of that as evidence
START, PRIOR = 0.5, 0.1
#: how far beyond the straight line a sample may go that speeds up
BEYOND = -0.5


class SampleTrend(Predictor):
    """:class:`~diffcache.predictors.trend.Trend` with one damping a sample, corrected by how the last runs went.

    Each run is compared with what the damped trend and the straight line had foretold, and the next prediction lies
    between them where the truth was. All of it follows from ten numbers a sample, which the host reads with the plan
    of a computed step: nothing is kept on the device but the stored outputs, and a prediction is one pass.
    """

    depth = 3
    least = 3
    knows_error = True
    hosted = True

    def fit(self, moments: Moments) -> SampleFit:
        """As :meth:`learn`, from moments on the device; reads the host."""
        return self.learn(Totals.of(moments), None)[0]

    def refit(self, moments: Moments, before: Fit) -> tuple[Fit, np.ndarray | None]:
        return self.learn(Totals.of(moments), before)

    def learn(self, known: Totals, before: SampleFit | None) -> tuple[SampleFit, np.ndarray | None]:
        """The fit, and the squared relative error of what ``before`` would have predicted, ``[samples]``.

        Args:
            known: of the three newest outputs.
            before: the fit of the computed step before, if there was one.
        """
        with np.errstate(all="ignore"):  # what is not finite is dealt with by name
            gamma = np.clip(known.gram[1, 2] / known.gram[2, 2], 0.0, 1.0)
            ratio = np.nan_to_num(gamma) ** (1.0 / known.steps[0])
            unit = known.gaps[0] / known.steps[0]
            if before is None:
                evidence = np.zeros((2, len(ratio)))
                return SampleFit(ratio, unit, _trust(evidence), evidence), None
            found, error = _last_run(known, before)
            evidence = MEMORY * before.evidence + found
            return SampleFit(ratio, unit, _trust(evidence), evidence), error


@dataclass(frozen=True)
class SampleFit(Fit):
    """Arrays ``[samples]``; evidence ``[2, samples]``.

    Attributes:
        ratio: damping of one step, in [0, 1].
        unit: time of one sampler step.
        trust: weight of the damped trend against the straight line: 1 is damped, 0 straight, below 0 speeds up.
        evidence: what the trust is the quotient of, see :func:`_last_run`.
    """

    ratio: np.ndarray
    unit: float
    trust: np.ndarray
    evidence: np.ndarray

    def slopes(self, horizon: Horizon) -> tuple[Slope, ...]:
        return (self.along(horizon.time),)

    def along(self, time: float | np.ndarray) -> np.ndarray:
        """The slope at ``time`` after the newest output, which may carry leading axes: ``[..., samples]``."""
        return time + self.trust * (self.damped(time) - time)

    def damped(self, time: float | np.ndarray) -> np.ndarray:
        """The slope of the damped trend alone: ``r + r^2 + ... + r^k``, for any real k."""
        count = time / self.unit
        near = self.ratio > 1.0 - 1e-9
        safe = np.where(near, 0.5, self.ratio)
        return self.unit * np.where(near, count, safe * (1.0 - safe**count) / (1.0 - safe))

    def rows(self, start: int, count: int) -> SampleFit:
        part = slice(start, start + count)
        return SampleFit(self.ratio[part], self.unit, self.trust[part], self.evidence[:, part])


def _trust(evidence: np.ndarray) -> np.ndarray:
    num, den = evidence
    return np.clip((START * PRIOR + num) / (PRIOR + den), BEYOND, 1.0)


def _last_run(known: Totals, before: SampleFit) -> tuple[np.ndarray, np.ndarray]:
    """How the last run went: ``before`` foretold a move ``b * v2`` for what turned out to be ``gap * v1``.

    Returns:
        evidence ``(num, den)``, ``[2, samples]``: between the straight line (b = gap) and the damped trend, the share
        with the least squared error is num / den, in units of the line's own move, so that steps of all sizes count
        alike; and the squared relative error of the prediction.
    """
    gap = known.gaps[0]
    truth, along, old = known.gram[1, 1], known.gram[1, 2], known.gram[2, 2]
    bend = before.damped(gap) / gap - 1.0
    slope = 1.0 + before.trust * bend
    miss = gap * gap * (truth - slope * (2.0 * along - slope * old))
    evidence = np.stack([bend * (along / old - 1.0), bend * bend])
    # What is not finite says nothing, and must not stay; nor does a sample that did not move.
    evidence[:, ~np.isfinite(evidence[0])] = 0.0
    return evidence, np.maximum(miss, 0.0) / known.gram[0, 0]
