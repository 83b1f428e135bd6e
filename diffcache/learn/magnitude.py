"""MagCache's calibration: how the size of the residual over all blocks changes from step to step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from ..schedules.calibration import Calibration, Expert
from .calibrator import Calibrator, Call, Facts, Progress
from .listening import MagnitudeEar, Track
from .measuring import Found, branches_of, listen


@dataclass(frozen=True)
class MagnitudeCalibrator(Calibrator):
    """The average magnitude ratio of each step and branch, the mean over the runs (arXiv 2506.09045)."""

    method: ClassVar[str] = "magcache"
    measures: ClassVar[str] = "how the size of the residual over all blocks changes at each step"

    def measure(self, pipe: Any, calls: Sequence[Call], progress: Progress | None, kept: Path | None) -> Calibration:
        return listen(pipe, self.method, MagnitudeEar, calls, progress, ratios)

    def describe(self, expert: Expert) -> Facts:
        q = expert.quality
        found = f"{q['low']:.4f} to {q['high']:.4f}, at most {q['spread']:.4f} between the runs"
        return [("branches", ", ".join(expert.branches)), ("ratios", found)]


def ratios(tracks: Sequence[Track]) -> Found:
    """Ratios of shape ``[branches, steps]``: the mean over the runs. A step that showed none is NaN: it computes."""
    rows, spread = [], 0.0
    for branch in branches_of(tracks):
        # Where a branch was not called its residual keeps its size; the ratio of its next call spans the gap.
        runs = torch.tensor(
            [[t.numbers.get(step, (1.0,))[0] for step in range(t.steps)] for t in tracks if t.branch == branch],
            dtype=torch.float64,
        )
        rows.append(runs.mean(0))
        spread = max(spread, float((runs.amax(0) - runs.amin(0)).nan_to_num().amax()))
    table = torch.stack(rows)
    known = table[table.isfinite()]
    note = f"{table.numel() - known.numel()} ratios could not be measured: their steps are computed"
    quality = {"low": float(known.min()), "high": float(known.max()), "spread": spread}
    return {"ratios": table}, quality, note if len(known) < table.numel() else ""
