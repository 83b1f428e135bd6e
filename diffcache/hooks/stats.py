"""What happened in a trajectory, as numbers and as text."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any

from ..sizes import size_text

FULL, PARTIAL, PREDICTED, ABSENT = "F", "p", "c", "-"


@dataclass(frozen=True)
class Fallback:
    """A step that was computed although the schedule would have predicted it, and why."""

    step: int
    reason: str
    count: int = 1


@dataclass(frozen=True)
class SegmentStats:
    """One expert and one branch of a trajectory.

    Attributes:
        decisions: one letter a step: F computed, p partial, c predicted, - the branch was not called.
        block_share, token_share: computed share of block calls and of tokens, in [0, 1].
        compute_seconds, predict_seconds, decide_seconds: parts of the time inside denoiser calls; what a method
            measures inside the model (``fbcache``) counts to the part that follows it.
        cached_bytes: most memory held for reuse at any time.
        exact_calls, exact_flops: module calls that were answered from memory, bit for bit, for their results do not
            depend on the step (:mod:`.exact`) or repeat those of another module (:mod:`.repeats`), and what they would
            have cost; they count as computed everywhere else.
        exact_bytes: most memory held for them.
        samples: where the samples of a batch decide apart, the decisions of each; those that carry the same noisy
            sample, as in fused guidance, decide together and stand once (rows g, g + n, ... of n such groups).
        together: why the samples could not decide apart although they would have, or None.
        heard: one entry a step: what the schedule compared with its ``threshold``, for the worst sample; None where it
            compared nothing. Empty for schedules that compare nothing.
        threshold: the schedule's, None where it has none or it is infinite.
        slow_kernels: calls on a GPU that Triton did not take (``kernel: reason``) and torch's own operators answered;
            ``gather_norm`` also on the CPU, for blocks of partial steps whose own norms it cannot stand for.
    """

    expert: str
    branch: str
    decisions: str
    computed: int
    predicted: int
    partial: int
    block_share: float
    token_share: float
    compute_seconds: float
    predict_seconds: float
    cached_bytes: int
    fallbacks: list[Fallback] = field(default_factory=list)
    exact_calls: int = 0
    exact_flops: int = 0
    exact_bytes: int = 0
    samples: list[str] = field(default_factory=list)
    together: str | None = None
    decide_seconds: float = 0.0
    heard: list[float | None] = field(default_factory=list)
    threshold: float | None = None
    slow_kernels: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Stats:
    """The last (or current) trajectory. ``print`` it, or take ``to_dict()`` for JSON.

    Attributes:
        trajectories: trajectories seen since the last reset.
        denoiser_seconds: time inside denoiser calls, over all segments.
    """

    method: str
    steps: int
    segments: list[SegmentStats]
    trajectories: int = 0
    reason: str | None = None

    @property
    def denoiser_seconds(self) -> float:
        return sum(s.compute_seconds + s.predict_seconds + s.decide_seconds for s in self.segments)

    @property
    def saving(self) -> float:
        """How many times fewer block calls than without a cache."""
        calls = sum(s.computed + s.predicted + s.partial for s in self.segments)
        done = sum(s.block_share * (s.computed + s.predicted + s.partial) for s in self.segments)
        return calls / done if done else 1.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "denoiser_seconds": self.denoiser_seconds, "saving": self.saving}

    def __str__(self) -> str:
        if not self.segments:
            return f"{self.method}: no trajectory yet"
        held = sum(s.cached_bytes for s in self.segments)
        count = "1 step" if self.steps == 1 else f"{self.steps} steps"
        lines = [f"{self.method}: {count}, {self.saving:.2f}x fewer block calls, {size_text(held)} cached"]
        lines += [_segment_line(s) for s in self.segments]
        return "\n".join(lines + ([f"  nothing was skipped: {self.reason}"] if self.reason else []))


def _segment_line(s: SegmentStats) -> str:
    line = f"  {s.expert}/{s.branch}: {s.decisions}  computed {s.computed}, predicted {s.predicted}"
    line += f"; {s.compute_seconds:.2f} s compute, {s.predict_seconds:.3f} s predict"
    if s.exact_calls:
        line += f"\n    {s.exact_calls} module calls from memory, bit-exact"
    if s.exact_flops:
        line += f": {s.exact_flops / 1e9:.2g} GFLOP less for {size_text(s.exact_bytes)}"
    if PARTIAL in s.decisions:
        line += "".join(f"\n    {_samples(n)}: {letters}" for letters, n in Counter(s.samples).items())
    if s.together:
        line += f"\n    the samples of the batch decide together: {s.together}"
    line += "".join(f"\n    without Triton, {count}x: {what}" for what, count in s.slow_kernels.items())
    reasons = Counter()
    for fallback in s.fallbacks:
        reasons[fallback.reason] += fallback.count
    return line + "".join(f"\n    computed instead of predicted, {n}x: {reason}" for reason, n in reasons.items())


def _samples(count: int) -> str:
    return "1 sample" if count == 1 else f"{count} samples"


def finite(number: float | None) -> float | None:
    """The number, or None where JSON has no word for it."""
    return number if number is not None and isfinite(number) else None
