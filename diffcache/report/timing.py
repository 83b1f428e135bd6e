"""One generation, timed: the whole pipeline by the clock, its denoiser by the method's own stopwatch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..pipeline import accelerated


@dataclass(frozen=True)
class Sample:
    """What one generation gave.

    Attributes:
        frames: pixels in [0, 1].
        seconds: the whole pipeline call.
        denoiser_seconds: inside denoiser calls, over all trajectories of the call.
        decisions: decision string of each trajectory's first branch.
        computed_share: computed denoiser calls over all of them.
        cached_bytes: most memory held in one trajectory.
    """

    frames: Tensor
    seconds: float
    denoiser_seconds: float
    decisions: tuple[str, ...]
    computed_share: float
    cached_bytes: int


def generate(pipe: Any, method: str, call: Callable[[Any], Tensor], **overrides: Any) -> Sample:
    """Run ``call(pipe)`` under a method; dense is the method ``none``, so both are timed in the same way.

    Args:
        call: calls the pipeline with its arguments and seed and returns the frames.
        overrides: fields of the method.
    """
    with accelerated(pipe, method, **overrides):
        begin = time.perf_counter()
        frames = call(pipe)
        _finish(frames)
        seconds = time.perf_counter() - begin
        runs = list(pipe.diffcache.trajectories)
    segments = [s for run in runs for s in run.segments]
    calls = sum(len(s.decisions) for s in segments)
    return Sample(
        frames=frames,
        seconds=seconds,
        denoiser_seconds=sum(run.denoiser_seconds for run in runs),
        decisions=tuple(run.segments[0].decisions for run in runs),
        computed_share=sum(s.computed for s in segments) / max(calls, 1),
        cached_bytes=max((sum(s.cached_bytes for s in run.segments) for run in runs), default=0),
    )


def _finish(frames: Tensor) -> None:
    if frames.device.type == "cuda":
        torch.cuda.synchronize(frames.device)
