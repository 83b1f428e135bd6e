"""TeaCache's calibration: from the change of the first block's modulated input to that of the output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar

import torch

from ..methods.checks import check_number
from ..schedules.calibration import Calibration, Expert
from .calibrator import Calibrator, Call, Facts, Progress
from .fitting import DEGREE, MOST_DEGREE, fit_polynomial
from .listening import DriftEar, Track
from .measuring import Found, listen


@dataclass(frozen=True)
class DriftCalibrator(Calibrator):
    """A polynomial through the changes of all steps, branches and runs (arXiv 2411.19108).

    Args:
        degree: highest degree of the polynomial, from 1 to 10; of those up to it the one that predicts best is taken.
    """

    method: ClassVar[str] = "teacache"
    measures: ClassVar[str] = (
        "a polynomial from the change of the first block's modulated input to that of the output, with how well it fits"
    )

    degree: int = DEGREE

    def __post_init__(self) -> None:
        check_number("degree", self.degree, 1, MOST_DEGREE, whole=True)

    def measure(self, pipe: Any, calls: Sequence[Call], progress: Progress | None, kept: Path | None) -> Calibration:
        return listen(pipe, self.method, DriftEar, calls, progress, partial(polynomial, degree=self.degree))

    def describe(self, expert: Expert) -> Facts:
        q = expert.quality
        fit = f"R² {q['r2']:.2f}, off by {q['error']:.3f} where the output changes by {q['mean']:.3f} on average"
        return [("polynomial", f"degree {q['degree']:.0f} through {q['points']:.0f} points"), ("fit", fit)]


def polynomial(tracks: Sequence[Track], degree: int) -> Found:
    """The fitted polynomial, its range, and the points that it was fitted to."""
    points = [pair for track in tracks for pair in track.numbers.values() if all(isfinite(v) for v in pair)]
    fit = fit_polynomial(points, degree)
    numbers = {"polynomial": fit.coefficients, "fitted": fit.fitted, "points": points}
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
    quality = {"r2": fit.r2, "error": fit.error, "mean": fit.mean, "degree": fit.degree, "points": fit.points}
    note = (
        f"poor fit: the first block's input explains {max(fit.r2, 0.0):.0%} of the output's change; prefer magcache"
        if fit.poor
        else ""
    )
    return tensors, quality, note
