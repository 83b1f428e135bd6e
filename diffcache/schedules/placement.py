"""Schedules that place the computed steps in advance: fixed interval, explicit list, power law."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

from .base import NEVER, Schedule


class Interval(Schedule):
    """After the warm-up, one step in ``interval`` is computed (FORA, arXiv 2407.01425).

    Args:
        interval: distance between computed steps, >= 1; 1 computes all, and so stores nothing.
    """

    def __init__(self, interval: int, warmup: int = 0, cooldown: int = 1, max_skip: int = NEVER) -> None:
        self.interval = interval
        super().__init__(warmup, cooldown, max_skip if interval > 1 else 0)

    def placed(self, step: int) -> bool:
        return step - self.last >= self.interval


class Explicit(Schedule):
    """Exactly the listed steps are computed, with those that warm-up, cool-down and ``max_skip`` add.

    Args:
        steps: 0-based step indices.
    """

    def __init__(self, steps: Iterable[int], warmup: int = 0, cooldown: int = 1, max_skip: int = NEVER) -> None:
        self.steps = frozenset(steps)
        super().__init__(warmup, cooldown, max_skip)

    def start(self, total: int | None, timesteps: Sequence[float] = ()) -> None:
        super().start(total, timesteps)
        beyond = sorted(step for step in self.steps if total is not None and step >= total)
        if beyond:
            warnings.warn(
                f"steps: {', '.join(map(str, beyond))} cannot be computed, the denoiser runs {total} steps here: "
                f"must be from 0 to {total - 1}",
                UserWarning,
                stacklevel=2,
            )

    def placed(self, step: int) -> bool:
        return step in self.steps


class PowerLaw(Schedule):
    """``computed`` steps, dense early and sparse late: early steps decide what the picture is.

    The first ``warmup`` steps, the last one, and the rest at ``warmup - 1 + (N - warmup) * u^alpha`` for evenly
    spaced u in (0, 1]. A ``cooldown`` of c > 1 steps takes c - 1 of them for the end, and the law ends before these.

    Args:
        computed: number of computed steps (>= 1), or their share of all steps (in (0, 1)).
        alpha: 1 places evenly; larger moves computed steps to the start.
    """

    def __init__(
        self, computed: float, alpha: float = 1.5, warmup: int = 3, cooldown: int = 1, max_skip: int = NEVER
    ) -> None:
        self.computed_steps, self.alpha = computed, alpha
        self.steps: frozenset[int] = frozenset()
        super().__init__(warmup, cooldown, max_skip)

    def start(self, total: int | None, timesteps: Sequence[float] = ()) -> None:
        super().start(total, timesteps)
        self.steps = frozenset(power_law(total or 0, self.computed_steps, self.alpha, self.warmup, self.cooldown))

    def placed(self, step: int) -> bool:
        return step in self.steps


def power_law(total: int, computed: float, alpha: float, warmup: int, cooldown: int = 1) -> list[int]:
    """Step indices of :class:`PowerLaw`, sorted and distinct, the last ``cooldown - 1`` left to the cool-down.

    >>> power_law(20, 8, 1.5, 3)
    [0, 1, 2, 4, 6, 10, 14, 19]
    """
    tail = min(max(cooldown - 1, 0), total)
    count = (round(computed * total) if computed < 1 else int(computed)) - tail
    total -= tail
    first = min(warmup, total)
    rest = min(max(count - first, 0), total - first)
    steps = list(range(first))
    for j in range(1, rest + 1):
        wanted = round(first - 1 + (total - first) * (j / rest) ** alpha)
        # Rounding may put two on one step: move on to the next free one, and leave room for those to come.
        free = steps[-1] + 1 if steps else 0
        steps.append(min(max(wanted, free), total - 1 - (rest - j)))
    return steps
