"""Schedules that may hold for one number of steps only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .base import Schedule


class Bound(Schedule):
    """A schedule whose numbers may come from a calibration.

    Attributes:
        admit: called with the number of steps when a segment begins; raises where the numbers do not fit. An unknown
            number is not asked about: such a segment computes every step.
    """

    admit: Callable[[int], None] | None = None

    def start(self, total: int | None, timesteps: Sequence[float] = ()) -> None:
        if total is not None and self.admit is not None:
            self.admit(total)
        super().start(total, timesteps)
