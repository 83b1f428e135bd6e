"""Runs under a plan that is being made: dense ones and planned ones, with what the denoiser took and gave."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import ConfigError, NothingSkippedWarning, UnsupportedModelError
from ..hooks.recipe import Recipe
from ..media.frames import read_output
from ..methods import MethodConfig
from ..pipeline import accelerated, handle_of
from ..predictors import Fitted, Pilot, Plan
from ..predictors.evidence import Track
from ..schedules import Planned
from .calibrator import Call, run
from .measuring import Reporter


class Recorder(Pilot):
    """Follows one plan (or computes every step) and keeps every trajectory, thinned.

    Attributes:
        tracks: of the trajectories, in order.
        timesteps: of the last one.
    """

    def __init__(self, plan: Plan | None, reporter: Reporter, watching: bool = True) -> None:
        self.plan, self.watching, self._reporter = plan, watching, reporter
        self.tracks: list[Track] = []
        self.timesteps: tuple[float, ...] = ()
        self.total = 0

    def begin(self, total: int | None, timesteps: Sequence[float]) -> Plan | None:
        if total is None:
            raise ConfigError("calls: the number of steps is not known; a bare denoiser samples in denoising(...)")
        self.total, self.timesteps = total, tuple(timesteps)
        self.tracks.append(Track())
        return self.plan

    def watch(self, branch: str, step: int, samples: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        self.tracks[-1].note(branch, step, samples, outputs)
        self._reporter(step + 1, self.total)


@dataclass(frozen=True, kw_only=True)
class Piloted(MethodConfig):
    """The method that is on meanwhile."""

    method: ClassVar[str] = "auto"

    warmup: int = 0
    cooldown: int = 0
    max_skip: int = 64
    pilot: Pilot = field(default_factory=Pilot)

    def recipe(self) -> Recipe:
        schedule = lambda: Planned(self.pilot, inf, 0, 0, self.max_skip)  # noqa: E731 - no guard: it is what is measured
        return Recipe(self.method, self, "output", schedule, Fitted(self.pilot))


@dataclass(frozen=True)
class Flight:
    """One generation.

    Attributes:
        tracks: its trajectories.
        pictures: what came out, ``[frames, 3, height, width]`` in [0, 1], or a tensor that a bare loop returned.
        computed: steps that a trajectory computed, a mean over trajectories and branches.
        costs: seconds of a computed and of a predicted step, and of the decisions of a trajectory.
        timesteps: what the sampler passed to the denoiser.
        sampler: class name, or None for a loop that named none.
    """

    tracks: list[Track]
    pictures: Tensor
    computed: float
    costs: tuple[float, float, float]
    timesteps: tuple[float, ...]
    sampler: str | None


def fly(pipe: Any, call: Call, plan: Plan | None, reporter: Reporter, label: str, watching: bool = True) -> Flight:
    """Run a call under a plan."""
    reporter.begin(label)
    pilot = Recorder(plan, reporter, watching)
    with accelerated(pipe, Piloted(pilot=pilot)), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingSkippedWarning)  # a dense run is meant to be one
        if len(handle_of(pipe).hooks) != 1:
            raise UnsupportedModelError("auto plans pipelines with one denoiser, this one has several")
        output = run(pipe, call)
        reporter(pilot.total, pilot.total)  # of a run that is not watched the steps were not told
        segments, sampler = handle_of(pipe).stats().segments, handle_of(pipe).sampler
    computed, predicted = sum(s.computed for s in segments), sum(s.predicted for s in segments)
    compute = sum(s.compute_seconds for s in segments) / max(computed, 1)
    predict = sum(s.predict_seconds for s in segments) / max(predicted, 1)
    decide = sum(s.decide_seconds for s in segments) / max(computed + predicted, 1)
    each = computed / max(len(segments), 1)
    return Flight(pilot.tracks, _pictures(output), each, (compute, predict, decide), pilot.timesteps, sampler)


def _pictures(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output.detach().float().cpu()
    return read_output(output).pixels


def psnr(pictures: Tensor, dense: Tensor) -> float:
    """In dB over all pictures, as the report measures it: values in [0, 1]."""
    error = float((pictures.clamp(0, 1) - dense.clamp(0, 1)).double().square().mean())
    return 150.0 if error <= 1e-15 else float(-10.0 * torch.log10(torch.tensor(error, dtype=torch.float64)))
