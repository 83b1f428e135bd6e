"""Dense runs of a pipeline, listened to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
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
from .calibrator import Call, Progress, run
from .listening import Ear, Track

#: numbers, quality and note of an :class:`Expert`
Found = tuple[dict[str, Tensor], dict[str, float], str]


def listen(
    pipe: Any,
    method: str,
    ear: type[Ear],
    calls: Sequence[Call],
    progress: Progress | None,
    gather: Callable[[Sequence[Track]], Found],
) -> Calibration:
    """The calibration of a method that only has to listen to dense runs.

    Args:
        pipe: a diffusers pipeline, or a bare denoiser; computes every step meanwhile.
        method: its name.
        ear: what listens to each denoiser.
        calls, progress: see :class:`~diffcache.learn.calibrator.Calibrator`.
        gather: from all that was heard of one denoiser to its numbers.

    Raises:
        ConfigError: runs that differ in steps or sampler, or that broke off.
        UnsupportedModelError: the model cannot be listened to.
    """
    reporter = Reporter(progress)
    with accelerated(pipe, Listening()), torch.no_grad():
        ears = _put_on(pipe, ear, reporter)
        identities = {n: identify(model, hook.anatomy) for n, (model, hook) in handle_of(pipe).hooks.items()}
        for number, call in enumerate(calls, 1):
            reporter.begin(f"dense run {number}/{len(calls)}")
            run(pipe, call)
    tracks = [track for e in ears.values() for track in e.tracks]
    _check_tracks(tracks, list(ears))
    experts = {}
    for name, heard in ears.items():
        found = gather(heard.tracks)
        experts[name] = Expert(identities[name], heard.tracks[0].steps, branches_of(heard.tracks), *found)
    trajectories = len({track.trajectory for track in tracks})
    return Calibration(method, tracks[0].sampler, tracks[0].trajectory_steps, trajectories, experts)


def branches_of(tracks: Sequence[Track]) -> tuple[str, ...]:
    """Names of the branches, in the order of their first call."""
    return tuple(dict.fromkeys(track.branch for track in tracks))


# -- running -----------------------------------------------------------------------------------------------------------


class _EveryStep(Schedule):
    """Computes every step; since it says that it might not, the site is asked to compute."""

    def __init__(self) -> None:
        super().__init__(max_skip=1)

    def placed(self, step: int) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class Listening(MethodConfig):
    """The method that is on during a calibration; the ears take its site's place."""

    method: ClassVar[str] = "calibration"

    max_skip: int = 0

    def recipe(self) -> Recipe:
        return Recipe(self.method, self, "output", _EveryStep, Taylor(0))


class Reporter:
    """Passes steps on, once each."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress

    def begin(self, label: str) -> None:
        """A run begins."""
        self._label, self._done = label, 0
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


def _put_on(pipe: Any, ear: type[Ear], reporter: Reporter) -> dict[str, Ear]:
    handle = handle_of(pipe)
    ears = {}
    for name, (model, hook) in handle.hooks.items():
        hook.site = ears[name] = ear(model, hook, lambda: handle.sampler, reporter)
        hook.site.install(model)
    return ears


# -- checking ----------------------------------------------------------------------------------------------------------


def _check_tracks(tracks: Sequence[Track], experts: Sequence[str]) -> None:
    """Every denoiser ran, to the end, and all trajectories were alike."""
    check_ran(experts, [track.expert for track in tracks])
    for name in experts:
        mine = [track for track in tracks if track.expert == name]
        _alike(f"steps of {name}", [track.steps for track in mine])
        for trajectory in {track.trajectory for track in mine}:
            last = max(track.last for track in mine if track.trajectory == trajectory)
            if last + 1 < mine[0].steps:
                raise ConfigError(f"calls: a run broke off after step {last + 1} of {mine[0].steps} of {name}")
    _alike("steps", [track.trajectory_steps for track in tracks])
    _alike("sampler", [track.sampler for track in tracks])


def check_ran(experts: Sequence[str], ran: Collection[str]) -> None:
    """Refuse a run in which one of the denoisers had no step: nothing would be known of it. Raises ConfigError."""
    for name in experts:
        if name not in ran:
            raise ConfigError(
                f"calls: {name} never ran with a known number of steps; "
                + (
                    "a bare denoiser samples in denoising(...)"
                    if len(experts) == 1
                    else f"each of {' and '.join(experts)} must: change the boundary between them (boundary_ratio), or "
                    "take it out of the pipeline"
                )
            )


def _alike(what: str, values: Sequence[Any]) -> None:
    known = list(dict.fromkeys(values))
    if len(known) > 1:
        raise ConfigError(f"{what}: the runs differ ({known[0]} and {known[1]}), must be the same in all")
