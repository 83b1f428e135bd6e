"""Several schedules side by side, one for each kind of module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .base import Schedule


class Parallel(Schedule):
    """Each kind of module follows a schedule of its own; a step that all of them compute is computed in full.

    Args:
        parts: kind -> schedule.
    """

    def __init__(self, parts: Mapping[str, Schedule]) -> None:
        self.parts = dict(parts)
        self.wants_timesteps = any(part.wants_timesteps for part in self.parts.values())
        super().__init__(
            min(part.warmup for part in self.parts.values()),
            min(part.cooldown for part in self.parts.values()),
            max(part.max_skip for part in self.parts.values()),
        )

    def restrict(self, kinds: frozenset[str]) -> None:
        self.parts = {kind: part for kind, part in self.parts.items() if kind in kinds}

    def start(self, total: int | None, timesteps: Sequence[float] = ()) -> None:
        super().start(total, timesteps)
        for part in self.parts.values():
            part.start(total, timesteps)

    def placed(self, step: int) -> bool:
        return all(part.wants_compute(step) for part in self.parts.values())

    def computed(self, step: int) -> None:
        super().computed(step)
        for part in self.parts.values():
            part.computed(step)

    def partial(self, step: int) -> frozenset[str]:
        due = frozenset(kind for kind, part in self.parts.items() if part.wants_compute(step))
        for kind in due:
            self.parts[kind].computed(step)
        return due

    def reach(self, step: int) -> int:
        return max(part.reach(step) for part in self.parts.values())
