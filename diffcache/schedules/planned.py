"""The schedule of a plan that was made from measurements, with a guard for harder samples (ours)."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from ..predictors.fitted import Pilot, Plan
from .base import NEVER, Schedule


class Planned(Schedule):
    """Computes the steps of a plan; and more where a sample turns out to be harder than those of the calibration.

    At each computed step the prediction that would have been made there is compared with the truth. Where its error is
    more than ``guard`` times the largest one that the calibration saw at this step, the next step is computed as well,
    and that one is looked at in the same way.

    Args:
        pilot: says which plan holds; without one every step is computed.
        guard: factor on the calibrated errors; ``inf`` switches the guard off.
    """

    wants_timesteps = True
    wants_drift = True

    def __init__(self, pilot: Pilot, guard: float, warmup: int = 0, cooldown: int = 0, max_skip: int = NEVER) -> None:
        self.pilot, self.guard = pilot, guard
        self.wants_error = guard < inf
        self.threshold = guard
        self.current: Plan | None = None
        super().__init__(warmup, cooldown, max_skip)

    def start(self, total: int | None, timesteps: Sequence[float] = ()) -> None:
        self.current = None if total is None else self.pilot.begin(total, timesteps)
        super().start(total, timesteps)

    @property
    def pause(self) -> str | None:
        if self.current is not None or not self.pilot.watching:
            return None
        return "this generation was computed in full to be measured, the next ones are planned from it"

    def placed(self, step: int) -> bool:
        return self.current is None or self.current.computes(step)

    def plan(self, drifts: Sequence[Sequence[float]], errors: Sequence[float]) -> None:
        if self.current is None or not errors:
            return
        limit = self.current.limits[self.last]
        excess = [error / limit for error in errors if limit > 0.0 and error == error]
        if not excess:
            return
        self.heard[self.last] = max(excess)
        if not max(excess) <= self.guard:
            self.limit(0)
