"""Dense runs of a pipeline, listened to: a calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import ConfigError
from ..hooks.identity import identify
from ..hooks.recipe import Recipe
from ..methods import MethodConfig
from ..pipeline import accelerated, handle_of
from ..predictors import Taylor
from ..schedules import Schedule
from ..schedules.calibration import Calibration, Expert
from .fitting import DEGREE, fit_polynomial
from .listening import DriftEar, Ear, MagnitudeEar, Track

METHODS = ("magcache", "teacache")
"""The methods that can be calibrated."""

#: keyword arguments of the pipeline, or what to do with it
Call = Mapping[str, Any] | Callable[[Any], Any]
#: told at every step: the run, how many steps are done (0 when it begins), of how many
Progress = Callable[[str, int, int], None]


def calibrate(
    pipe: Any,
    method: str,
    calls: Call | Iterable[Call],
    *,
    progress: Progress | None = None,
    degree: int = DEGREE,
) -> Calibration:
    """Measure what ``method`` needs to know about a model, in dense runs of it.

    ``magcache``: the average magnitude ratio of the residual over all blocks, at each step and for each branch (the
    mean over the runs). ``teacache``: a polynomial from the relative L1 change of the first block's modulated input
    to that of the output, over all steps, branches and runs.

    The pipeline computes every step meanwhile, and is afterwards as it was before; a method that was on comes back.

    Args:
        pipe: a diffusers pipeline, or a bare denoiser.
        method: ``magcache`` or ``teacache``.
        calls: one run or several, each as keyword arguments of ``pipe.__call__`` or as a function of ``pipe``. A bare
            denoiser needs functions that sample in a :func:`diffcache.denoising` block. All must have the same number
            of steps and the same sampler; for one result every time, give each a freshly seeded generator.
        progress: called with (run, steps done, steps in all).
        degree: highest degree of the polynomial.

    Raises:
        ConfigError: another method, no runs, runs that differ in steps or sampler, or too few steps.
        UnsupportedModelError: the model cannot be listened to.
    """
    check_settings(method, degree)
    runs = [calls] if isinstance(calls, Mapping) or callable(calls) else list(calls)
    if not runs:
        raise ConfigError("calls: none given, calibration needs at least one dense run")
    reporter = _Reporter(progress, len(runs))
    with accelerated(pipe, _Listening()), torch.no_grad():
        ears = _put_on(pipe, _EARS[method], reporter)
        identities = {n: identify(model, hook.anatomy) for n, (model, hook) in handle_of(pipe).hooks.items()}
        for number, call in enumerate(runs, 1):
            reporter.begin(number)
            call(pipe) if callable(call) else pipe(**call)
    tracks = [track for ear in ears.values() for track in ear.tracks]
    _check_tracks(tracks, list(ears))
    gather = _polynomial if method == "teacache" else _ratios
    experts = {}
    for name, ear in ears.items():
        found = gather(ear.tracks, degree)
        experts[name] = Expert(identities[name], ear.tracks[0].steps, _branches(ear.tracks), *found)
    trajectories = len({track.trajectory for track in tracks})
    return Calibration(method, tracks[0].sampler, tracks[0].trajectory_steps, trajectories, experts)


_EARS: dict[str, type[Ear]] = {"magcache": MagnitudeEar, "teacache": DriftEar}


# -- running -----------------------------------------------------------------------------------------------------------


class _EveryStep(Schedule):
    """Computes every step; since it says that it might not, the site is asked to compute."""

    def __init__(self) -> None:
        super().__init__(max_skip=1)

    def placed(self, step: int) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class _Listening(MethodConfig):
    """The method that is on during a calibration; the ears take its site's place."""

    method: ClassVar[str] = "calibration"

    max_skip: int = 0

    def recipe(self) -> Recipe:
        return Recipe(self.method, self, "output", _EveryStep, Taylor(0))


class _Reporter:
    """Passes steps on, once each."""

    def __init__(self, progress: Progress | None, runs: int) -> None:
        self._progress, self._runs = progress, runs

    def begin(self, number: int) -> None:
        self._label, self._done = f"dense run {number}/{self._runs}", 0
        self._tell(0, 0)

    def __call__(self, done: int, total: int) -> None:
        if done < self._done:
            self._tell(0, total)  # another trajectory of this run
        if done != self._done:
            self._done = done
            self._tell(done, total)

    def _tell(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(self._label, done, total)


def _put_on(pipe: Any, ear: type[Ear], reporter: _Reporter) -> dict[str, Ear]:
    handle = handle_of(pipe)
    ears = {}
    for name, (model, hook) in handle.hooks.items():
        hook.site = ears[name] = ear(model, hook, lambda: handle.sampler, reporter)
        hook.site.install(model)
    return ears


# -- checking ----------------------------------------------------------------------------------------------------------


def check_settings(method: str, degree: int = DEGREE) -> None:
    """Raises ConfigError for a method that is not calibrated, or a degree out of range."""
    if method not in METHODS:
        raise ConfigError(f"method: '{method}' takes no calibration; those that do: {', '.join(METHODS)}")
    if isinstance(degree, bool) or not isinstance(degree, int) or degree < 1:
        raise ConfigError(f"degree: {degree!r} is out of range, must be a whole number >= 1")


def _check_tracks(tracks: Sequence[Track], experts: Sequence[str]) -> None:
    """Every denoiser ran, to the end, and all trajectories were alike."""
    for name in experts:
        mine = [track for track in tracks if track.expert == name]
        if not mine:
            raise ConfigError(
                f"calls: {name} never ran with a known number of steps; a bare denoiser samples in denoising(...)"
            )
        _alike(f"steps of {name}", [track.steps for track in mine])
        for trajectory in {track.trajectory for track in mine}:
            last = max(track.last for track in mine if track.trajectory == trajectory)
            if last + 1 < mine[0].steps:
                raise ConfigError(f"calls: a run broke off after step {last + 1} of {mine[0].steps} of {name}")
    _alike("steps", [track.trajectory_steps for track in tracks])
    _alike("sampler", [track.sampler for track in tracks])


def _alike(what: str, values: Sequence[Any]) -> None:
    known = list(dict.fromkeys(values))
    if len(known) > 1:
        raise ConfigError(f"{what}: the runs differ ({known[0]} and {known[1]}), must be the same in all")


# -- from tracks to numbers --------------------------------------------------------------------------------------------

#: numbers, quality and note of an :class:`Expert`
Found = tuple[dict[str, Tensor], dict[str, float], str]


def _branches(tracks: Sequence[Track]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(track.branch for track in tracks))


def _ratios(tracks: Sequence[Track], degree: int) -> Found:
    """Ratios of shape ``[branches, steps]``: the mean over the runs. A step that showed none is NaN: it computes."""
    rows, spread = [], 0.0
    for branch in _branches(tracks):
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


def _polynomial(tracks: Sequence[Track], degree: int) -> Found:
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
