"""Schedules that plan each run of predicted steps from the drift measured at the computed step."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from .base import NEVER, Schedule
from .drift import largest
from .placement import PowerLaw


class ChaoticSkipping(Schedule):
    """Chaotic-prioritised adaptive skipping (WorldCache CAS, arXiv 2603.06331 section 4.2), planned ahead.

    After a computed step, steps are predicted until the summed drift reaches ``threshold``: the step that overshoots
    is not undone, so at least one prediction follows (unless ``threshold`` <= 0, which computes every step).

    Args:
        threshold: eta, in the released code's units (mean over all tokens).
    """

    wants_drift = True

    def __init__(self, threshold: float, warmup: int, max_skip: int, cooldown: int = 1) -> None:
        self.threshold = threshold
        super().__init__(warmup, cooldown, max_skip if threshold > 0 else 0)

    def plan(self, drifts: Sequence[Sequence[float]], errors: Sequence[float]) -> None:
        self.heard |= {self.last + k: max(sum(d[:k]) for d in drifts) for k in range(1, min(map(len, drifts)) + 1)}
        # Computed as soon as one branch wants it.
        self.limit(min(streak(drift, self.threshold) for drift in drifts))


def streak(drift: Sequence[float], threshold: float) -> int:
    """Smallest m with ``drift[0] + ... + drift[m-1] >= threshold``, else all. A NaN ends the run before it.

    >>> streak([0.4, 0.4, 0.4, 0.4], 1.0)
    3
    """
    total = 0.0
    for m, part in enumerate(drift, 1):
        if not isfinite(part):
            return m - 1
        total += part
        if total >= threshold:
            return m
    return len(drift)


class Guarded(PowerLaw):
    """Power-law placement with the drift as a guard: a hard passage is computed earlier than placed (ours).

    The guard is calibrated as it goes: at each computed step the last run's prediction is compared with the truth,
    and the drift is scaled so that it predicts that error. ``threshold`` is therefore in plain units: the largest
    relative error (RMS of the error over RMS of the output) that a prediction may be expected to have.

    Where a run ends above the threshold and the drift did not foretell it (a sampler that adds new noise at every step:
    the path looks straight, and its error is that of the noise), the drift is no longer trusted alone. From then on no
    less is expected than the error last measured, per step of its run; that fades with every computed step since the
    last prediction, so that one is tried again.

    Args:
        threshold: relative error; ``inf`` switches the guard off.
    """

    wants_drift = True
    wants_error = True
    #: what true error / drift is taken for before it is measured, and the weight of that, in units of drift
    prior, weight = 3.0, 0.01
    #: share of what was measured that is remembered at the next measurement
    memory = 0.7
    #: an error this many times what the drift foretold makes the guard wary (3.5 was the most without added noise)
    surprise = 5.0
    #: share of the error last measured that a wary guard still expects after one more computed step
    wariness = 0.9

    def __init__(
        self, computed: float, alpha: float, threshold: float, warmup: int, cooldown: int = 1, max_skip: int = NEVER
    ) -> None:
        self.threshold = threshold
        super().__init__(computed, alpha, warmup, cooldown, max_skip if threshold > 0 else 0)

    def start(self, total: int | None, timesteps: Sequence[float] = ()) -> None:
        super().start(total, timesteps)
        self._errors = self._drifts = 0.0
        self._expected: list[float] = []
        self._run = 0
        self._wary = 0.0  # error last measured, per step of its run, once it came as a surprise
        self._calm = 0  # computed steps since the last prediction, measured or not

    def computed(self, step: int) -> None:
        self._run = step - self.last - 1
        self._calm = 0 if self._run else self._calm + 1
        super().computed(step)

    def plan(self, drifts: Sequence[Sequence[float]], errors: Sequence[float]) -> None:
        self._calibrate([error for error in errors if isfinite(error)])
        worst = [largest(part) for part in zip(*drifts, strict=True)]
        least = self._wary * self.wariness**self._calm
        expected = [largest([self.gain * drift, least * k]) for k, drift in enumerate(worst, 1)]
        self.heard |= {self.last + k: error for k, error in enumerate(expected, 1)}
        if self.threshold != float("inf"):
            # "not <" so that a NaN stops the run
            self.limit(next((k for k, e in enumerate(expected) if not e < self.threshold), len(expected)))
        self._expected = worst

    def _calibrate(self, errors: Sequence[float]) -> None:
        if not errors or not 0 < self._run <= len(self._expected):
            return
        drift, error = self._expected[self._run - 1], max(errors)
        if isfinite(drift):
            if self._wary or error > max(self.threshold, self.surprise * self.gain * drift):
                self._wary = error / self._run
            # Sums, not a mean of ratios: a run that happened to look straight (drift near 0) must not rule.
            self._errors = self.memory * self._errors + error
            self._drifts = self.memory * self._drifts + drift

    @property
    def gain(self) -> float:
        """True error for one unit of drift, as measured in this segment so far."""
        return (self.prior * self.weight + self._errors) / (self.weight + self._drifts)
