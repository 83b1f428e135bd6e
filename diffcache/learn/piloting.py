"""Runs under a plan that is being made: dense ones and planned ones, with what the denoiser took and gave."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache, partial
from math import inf
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import ConfigError, NothingSkippedWarning
from ..hooks.recipe import Recipe
from ..hooks.stats import FULL, SegmentStats
from ..media.frames import read_output
from ..methods import MethodConfig
from ..methods.auto import piloted
from ..pipeline import accelerated, handle_of
from ..predictors import Pilot, Plan
from ..predictors.evidence import Track
from .calibrator import Call, run
from .measuring import Reporter, check_ran
from .prices import Costs


@dataclass
class Levelling:
    """What the runs of a calibration share about plans with levels.

    Attributes:
        hold: what a computed step costs more that holds what levels behind it need, in computed steps.
        lessons: name of a denoiser -> what partial steps learned of it.
    """

    hold: float = 0.0
    lessons: dict[str, dict[Any, Any]] = field(default_factory=dict)


class Recorder:
    """Follows one plan of the whole trajectory (or computes every step) and keeps every trajectory, thinned.

    Denoisers that take turns are heard as one: their steps are counted from the first of the trajectory.

    Attributes:
        tracks: of the trajectories, in order.
        segments: (denoiser, steps) of the last one, in the order in which they ran.
        timesteps: of the last one.
    """

    def __init__(self, plan: Plan | None, reporter: Reporter, watching: bool, levelling: Levelling) -> None:
        self.watching, self.levelling, self._reporter = watching, levelling, reporter
        self.levelled = plan is not None and bool(plan.levels)
        self._plans = None if plan is None else plan.segments()
        self.tracks: list[Track] = []
        self.segments: list[tuple[str, int]] = []
        self.timesteps: tuple[float, ...] = ()
        self.total = 0
        self.seat = cache(partial(Seat, self))

    def begin(self, name: str, total: int | None, timesteps: Sequence[float]) -> tuple[int, Plan | None]:
        """A denoiser takes over: its first step, and its plan."""
        if total is None:
            raise ConfigError("calls: the number of steps is not known; a bare denoiser samples in denoising(...)")
        if not self.tracks or name in dict(self.segments):
            self.tracks.append(Track())
            self.segments, self.timesteps = [], ()
        number, start = len(self.segments), sum(steps for _, steps in self.segments)
        if self.watching and self._plans is None and self.tracks[-1].steps < start:
            raise ConfigError(
                f"calls: {self.segments[-1][0]} is not at its end where {name} begins: denoisers must take turns, one "
                "after the other"
            )
        self.segments.append((name, total))
        self.timesteps += tuple(timesteps[:total])
        self.total = start + max(total, len(timesteps))
        return start, None if self._plans is None else self._plans[number]

    @property
    def plans(self) -> list[Plan | None]:
        """Of each segment of the last trajectory."""
        return [None] * len(self.segments) if self._plans is None else list(self._plans)

    def watch(self, branch: str, step: int, samples: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """A step of the trajectory was computed, see :meth:`.Pilot.watch`."""
        self.tracks[-1].note(branch, step, samples, outputs)
        self._reporter(step + 1, self.total)


class Seat(Pilot):
    """A recorder as the pilot of one denoiser."""

    def __init__(self, recorder: Recorder, name: str) -> None:
        self._recorder, self._name, self._start = recorder, name, 0
        self.watching, self.levelled = recorder.watching, recorder.levelled
        self.lessons = recorder.levelling.lessons.setdefault(name, {})

    def begin(self, total: int | None, timesteps: Sequence[float]) -> Plan | None:
        self._start, self.plan = self._recorder.begin(self._name, total, timesteps)
        return self.plan

    def watch(self, branch: str, step: int, samples: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        self._recorder.watch(branch, self._start + step, samples, outputs)


def _every_step(name: str) -> Pilot:
    return Pilot()


@dataclass(frozen=True, kw_only=True)
class Piloted(MethodConfig):
    """The method that is on meanwhile."""

    method: ClassVar[str] = "auto"

    warmup: int = 0
    cooldown: int = 0
    max_skip: int = 64
    pilots: Callable[[str], Pilot] = _every_step

    def recipe(self) -> Recipe:
        return piloted(self, self.pilots, inf)  # no guard: it is what is measured


@dataclass(frozen=True)
class Flight:
    """One generation.

    Attributes:
        tracks: its trajectories.
        segments: (denoiser, steps), in the order in which they ran.
        pictures: what came out, ``[frames, 3, height, width]`` in [0, 1], or a tensor that a bare loop returned.
        computed: of each segment, steps that a trajectory computed, a mean over trajectories and branches.
        costs: of each segment.
        timesteps: what the sampler passed to the denoiser.
        sampler: class name, or None for a loop that named none.
        partial: steps that were computed in part, as ``computed``, of all segments.
    """

    tracks: list[Track]
    segments: tuple[tuple[str, int], ...]
    pictures: Tensor
    computed: tuple[float, ...]
    costs: tuple[Costs, ...]
    timesteps: tuple[float, ...]
    sampler: str | None
    partial: float


def fly(
    pipe: Any,
    call: Call,
    plan: Plan | None,
    reporter: Reporter,
    label: str,
    watching: bool = True,
    levelling: Levelling | None = None,
    meter: Callable[[Any], AbstractContextManager[Any]] = nullcontext,
) -> Flight:
    """Run a call under a plan, with a meter on the pipeline meanwhile."""
    reporter.begin(label)
    levelling = Levelling() if levelling is None else levelling
    recorder = Recorder(plan, reporter, watching, levelling)
    with accelerated(pipe, Piloted(pilots=recorder.seat)), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingSkippedWarning)  # a dense run is meant to be one
        with meter(pipe):
            output = run(pipe, call)
        check_ran(list(handle_of(pipe).hooks), [name for name, _ in recorder.segments])
        reporter(recorder.total, recorder.total)  # of a run that is not watched the steps were not told
        segments, sampler = handle_of(pipe).stats().segments, handle_of(pipe).sampler
    parts = [[s for s in segments if s.expert == name] for name, _ in recorder.segments]
    return Flight(
        recorder.tracks,
        tuple(recorder.segments),
        _pictures(output),
        tuple(sum(s.computed for s in part) / max(len(part), 1) for part in parts),
        tuple(_costs(part, own, levelling.hold) for part, own in zip(parts, recorder.plans, strict=True)),
        recorder.timesteps,
        sampler,
        sum(s.partial for s in segments) / max(len(segments), 1),
    )


def _costs(segments: Sequence[SegmentStats], plan: Plan | None, hold: float) -> Costs:
    """Of one denoiser; 0 for what it did not do. What is held for levels is paid by the steps that are not computed."""
    held = sum(_held(s.decisions, plan) for s in segments) if plan is not None and plan.levels else 0
    computed, other = sum(s.computed for s in segments), sum(s.predicted + s.partial for s in segments)
    spent = sum(s.compute_seconds for s in segments)
    compute = spent / max(computed + hold * held, 1)
    held_for = spent - computed * compute if held else 0.0
    return (
        compute,
        (sum(s.predict_seconds for s in segments) + held_for) / max(other, 1),
        sum(s.decide_seconds for s in segments) / max(computed + other, 1),
    )


def _held(decisions: str, plan: Plan) -> int:
    """Computed steps with levels behind them."""
    return sum(letter == FULL and plan.holds(step) for step, letter in enumerate(decisions))


def _pictures(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output.detach().float().cpu()
    return read_output(output).pixels


def psnr(pictures: Tensor, dense: Tensor) -> float:
    """In dB over all pictures, as the report measures it: values in [0, 1]."""
    error = float((pictures.clamp(0, 1) - dense.clamp(0, 1)).double().square().mean())
    return 150.0 if error <= 1e-15 else float(-10.0 * torch.log10(torch.tensor(error, dtype=torch.float64)))
