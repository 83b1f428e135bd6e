"""When something happened: on the host, or on a CUDA stream without waiting for it."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

#: seconds of the host's clock, or an event on the current CUDA stream
Instant = float | torch.cuda.Event


def instants(device: torch.device) -> Callable[[], Instant]:
    """What tells the time of work on a device."""
    return _queued if device.type == "cuda" else time.perf_counter


def seconds_between(begin: Instant, end: Instant) -> float:
    """Seconds from one instant to a later one of the same device; waits for a CUDA event."""
    if isinstance(end, float):
        return end - begin
    end.synchronize()
    return begin.elapsed_time(end) / 1000.0


def _queued() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class Laps(list[tuple[str, Instant, Instant, Instant, Instant]]):
    """Calls of a branch: what was decided, and when each began, was decided, had run, and had settled what follows.

    A call costs no more than to append it; CUDA events are read when a sum is asked for.
    """

    def seconds(self, letters: str) -> float:
        """Of the runs of calls with one of these decisions."""
        return sum(seconds_between(decided, ran) for letter, _, decided, ran, _ in self if letter in letters)

    @property
    def deciding(self) -> float:
        """Seconds before and behind the runs."""
        return sum(
            seconds_between(began, decided) + seconds_between(ran, settled) for _, began, decided, ran, settled in self
        )
