"""One conditioning of one segment: its cache, its decisions, its numbers."""

from __future__ import annotations

from typing import Any

from ..schedules import Schedule
from .cache import Cache
from .conditioning import Conditioning
from .exact import ExactMemory
from .stats import ABSENT, PREDICTED, Fallback, SegmentStats, Stopwatch, finite


class Branch:
    """Decisions and timings of one conditioning, and what is cached for it.

    Attributes:
        schedule: the segment's, or its own where it hears a signal.
        signature: what the cached values hold for (shapes, dtype, device); another one makes them useless.
    """

    def __init__(self, name: str, conditioning: Conditioning, cache: Cache, schedule: Schedule) -> None:
        self.name, self.conditioning, self.cache, self.schedule = name, conditioning, cache, schedule
        self.decisions: list[str] = []
        self.fallbacks: list[Fallback] = []
        self.compute_watch, self.predict_watch, self.decide_watch = Stopwatch(), Stopwatch(), Stopwatch()
        self.block_shares: list[float] = []  # of steps that were not computed in full
        self.peak_bytes = 0
        self.signature: Any = None
        self.exact = ExactMemory()

    def forget(self) -> None:
        """Drop everything that was cached; decisions and timings stay."""
        self.cache.forget()
        self.exact.forget()

    @property
    def last_step(self) -> int:
        """Step of the last call, or -1."""
        return len(self.decisions) - 1

    def mark(self, step: int, letter: str) -> None:
        """Note the decision of ``step``; steps on which the branch was not called are filled in."""
        self.decisions += ABSENT * (step - len(self.decisions))
        self.decisions.append(letter)
        if letter != PREDICTED:
            self.peak_bytes = max(self.peak_bytes, self.cache.nbytes)

    def fall_back(self, step: int, reason: str) -> None:
        """Count a step that was computed for ``reason`` although a prediction was due."""
        self.fallbacks.append(Fallback(step, reason))

    def stats(self, expert: str, steps: int) -> SegmentStats:
        """Numbers of this branch over the first ``steps`` steps of its segment."""
        text = "".join(self.decisions).ljust(steps, ABSENT)
        computed, predicted, partial = text.count("F"), text.count("c"), text.count("p")
        share = (computed + sum(self.block_shares)) / max(computed + predicted + partial, 1)
        return SegmentStats(
            expert=expert,
            branch=self.name,
            decisions=text,
            computed=computed,
            predicted=predicted,
            partial=partial,
            block_share=share,
            token_share=share,  # no site recomputes some of a block's tokens
            compute_seconds=self.compute_watch.seconds,
            predict_seconds=self.predict_watch.seconds,
            decide_seconds=self.decide_watch.seconds,
            cached_bytes=self.peak_bytes,
            fallbacks=list(self.fallbacks),
            exact_calls=self.exact.calls,
            exact_flops=self.exact.flops,
            exact_bytes=self.exact.peak_bytes,
            heard=[finite(self.schedule.heard.get(step)) for step in range(steps)] if self.schedule.heard else [],
            threshold=finite(self.schedule.threshold),
        )
