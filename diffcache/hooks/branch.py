"""One conditioning of one segment: its cache, its decisions, its numbers."""

from __future__ import annotations

from typing import Any

from ..schedules import Schedule
from ..schedules.drift import largest
from .answers import ExactMemory
from .batch import Batch
from .cache import Cache
from .conditioning import Conditioning
from .familiar import Likeness
from .instants import Laps
from .jury import Jury
from .stats import ABSENT, FULL, PARTIAL, PREDICTED, Fallback, SegmentStats, finite


class Branch:
    """Decisions and timings of one conditioning, and what is cached for it.

    Attributes:
        jury: the segment's schedule, or its own where it hears a signal, one for each group of samples.
        together: why the samples of a batch decide together although they would decide apart, or None.
        signature: what the cached values hold for (shapes, dtype, device); another one makes them useless.
        likeness: of its calls, once two in a row had the same conditioning.
        last_step: step of the last call, or -1.
    """

    def __init__(self, name: str, conditioning: Conditioning, cache: Cache, schedule: Schedule) -> None:
        self.name, self.conditioning, self.cache, self.jury = name, conditioning, cache, Jury(schedule)
        self.decisions: list[str] = []
        self.last_step = -1
        self.together: str | None = None
        self.batch: Batch | None = None  # of the call that was last heard
        self._letters: list[str] = []  # of each step, one a group where there are several
        self.fallbacks: list[Fallback] = []
        self.laps = Laps()
        self.block_shares: list[float] = []  # of steps that were not computed in full
        self.signature: Any = None
        self.likeness: Likeness | None = None
        self.exact = ExactMemory()
        #: whether its first call was the same noise twice, where that was asked for
        self.folded = False

    def forget(self) -> None:
        """Drop everything that was cached; decisions and timings stay."""
        self.cache.drop()
        self.exact.forget()
        self.jury.join()

    @property
    def schedule(self) -> Schedule:
        """Of the only group, or of the first one."""
        return self.jury.schedules[0]

    def mark(self, step: int, letter: str) -> None:
        """Note the decision of ``step``; steps on which the branch was not called are filled in."""
        if step > len(self.decisions):
            for known in (self.decisions, self._letters):
                known += ABSENT * (step - len(known))
        self.last_step = len(self.decisions)
        self.decisions.append(letter)
        self._letters.append(self.jury.letters(step) if len(self.jury.schedules) > 1 else letter)
        if letter == PARTIAL or (letter == PREDICTED and self.cache.grows):
            self.cache.note_peak()

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
            token_share=share,  # no site recomputes some of a sample's tokens
            compute_seconds=self.laps.seconds(FULL),
            predict_seconds=self.laps.seconds(PREDICTED + PARTIAL),
            decide_seconds=self.laps.deciding,
            cached_bytes=self.cache.peak_bytes,
            fallbacks=list(self.fallbacks),
            exact_calls=self.exact.calls,
            exact_flops=self.exact.flops,
            exact_bytes=self.exact.peak_bytes,
            samples=self._samples(),
            together=self.together,
            heard=self._heard(steps),
            threshold=finite(self.schedule.threshold),
            slow_kernels=dict(self.cache.slow_kernels()),
        )

    def _heard(self, steps: int) -> list[float | None]:
        """Of each step what the schedules compared with their threshold; the worst sample's."""
        schedules = self.jury.schedules
        if not any(schedule.heard for schedule in schedules):
            return []
        found = ([s.heard[step] for s in schedules if step in s.heard] for step in range(steps))
        return [finite(largest(numbers)) if numbers else None for numbers in found]

    def _samples(self) -> list[str]:
        """Decisions of each group; steps before the groups were known, or with other groups, are the batch's."""
        count = max(map(len, self._letters), default=1)
        alike = [letters if len(letters) == count else _common(letters) * count for letters in self._letters]
        return ["".join(row) for row in zip(*alike, strict=True)] if count > 1 else []


def _common(letters: str) -> str:
    return letters[0] if len(set(letters)) == 1 else PARTIAL
