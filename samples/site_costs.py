"""What a method holds in memory, and how often it reads the device, on a recorded generation."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peer_hooks import held_bytes, put_taylorseer
from recording import Recording
from torch import nn

from diffcache import accelerate_model

sys.path.append(str(Path(__file__).parents[1]))
from tests.reads import Reads, watched  # the tests' own counter

DISTANCE = (1.0, 0.0)  # teacache without a calibration: the distance itself


def their_bytes(recording: Recording, order: int, dtype: torch.dtype) -> int:
    """Most bytes that diffusers' TaylorSeer holds for a branch in a trajectory."""
    twin, most = recording.twin(), 0
    put_taylorseer(twin, 3, 5, order, dtype)
    for _, branch, call in recording.walk(twin, theirs=True):
        call(twin)
        most = max(most, held_bytes(twin, branch))
    return most


def our_bytes(recording: Recording, method: str, **settings: Any) -> int:
    """The same of a method here, from its stats."""
    twin = accelerate_model(recording.twin(), method, **settings)
    for _, _, call in recording.walk(twin):
        call(twin)
    return max(segment.cached_bytes for segment in twin.diffcache.stats().segments)


def memory(recording: Recording, order: int) -> list[int]:
    """Bytes a branch: diffusers' in fp32 beside ours, the same in bf16, ``taylorseer:lite``."""
    held, ours = [], partial(our_bytes, recording, interval=5, order=order)
    for dtype, settings in ((torch.float32, {}), (torch.bfloat16, dict(cache_dtype="bfloat16"))):
        held += [their_bytes(recording, order, dtype), ours("taylorseer", **settings)]
    return [*held, ours("taylorseer:lite")]


#: every schedule that listens to what it measures, with settings at which it skips on the embedded models
DRIFTS: dict[str, dict[str, Any]] = {
    "worldcache": {},
    "worldcache:voyager": {},
    "fbcache": dict(threshold=0.3),
    "teacache": dict(threshold=0.5, polynomial=DISTANCE),
    "easycache": dict(threshold=0.2),
}


@dataclass(frozen=True)
class Counted:
    """Host reads of each step, and the decisions of the first branch."""

    reads: list[int]
    decisions: str


def _reads(call: Callable[[nn.Module], Any], model: nn.Module) -> int:
    reads = Reads()
    with watched(reads):
        call(model)
    return reads.count


def count_reads(recording: Recording, method: str) -> Counted:
    """The second trajectory's: in a model's first one a body is proved."""
    twin = accelerate_model(recording.twin(), method, **DRIFTS[method])
    for _, _, call in recording.walk(twin):
        call(twin)
    counts = [0] * len(recording.steps)
    for step, _, call in recording.walk(twin):
        assert not _reads(call, recording.model), "the model itself reads: its reads cannot be told from ours"
        counts[step] += _reads(call, twin)
    return Counted(counts, twin.diffcache.stats().segments[0].decisions)
