"""Method name -> its calibrator: a method that needs numbers of a model adds one line here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import ConfigError, unknown
from ..methods import list_methods
from ..schedules.calibration import Calibration
from .auto import AutoCalibrator
from .calibrator import Calibrator, Call, Facts, Progress
from .diffsparse import SparsityCalibrator
from .drift import DriftCalibrator
from .heads import HeadCalibrator
from .magnitude import MagnitudeCalibrator

CALIBRATORS: dict[str, type[Calibrator]] = {
    c.method: c for c in (MagnitudeCalibrator, DriftCalibrator, AutoCalibrator, SparsityCalibrator, HeadCalibrator)
}
"""The methods that can be calibrated."""


def make_calibrator(method: str, quick: bool = False, **options: Any) -> Calibrator:
    """The calibrator of a method.

    Args:
        method: one of :data:`CALIBRATORS`.
        quick: in its quick mode, where it has one; ``options`` have precedence over those of the mode.
        options: its fields.

    Raises:
        ConfigError: a method that takes no calibration, an option that it does not have, or one out of range.
    """
    name, _, settings = method.partition(":")
    if settings and name in CALIBRATORS:
        raise ConfigError(f"method: '{method}' has settings of the method, must be the name alone: --method {name}")
    if method not in CALIBRATORS and method not in list_methods():
        raise ConfigError(f"method: {unknown('method', method, CALIBRATORS)}")
    if method not in CALIBRATORS:
        raise ConfigError(f"method: '{method}' takes no calibration; those that do: {', '.join(CALIBRATORS)}")
    known = [field.name for field in fields(CALIBRATORS[method])]
    for name in options:
        if name not in known:
            raise ConfigError(f"{method}: calibration: {unknown('option', name, known)}")
    return CALIBRATORS[method](**{**(CALIBRATORS[method].quick if quick else {}), **options})


def calibrate(
    pipe: Any,
    method: str,
    calls: Call | Iterable[Call],
    *,
    quick: bool = False,
    progress: Progress | None = None,
    kept: str | Path | None = None,
    **options: Any,
) -> Calibration:
    """Measure what ``method`` needs to know about a model.

    ``magcache``: the average magnitude ratio of the residual over all blocks, at each step and for each branch (the
    mean over the runs). ``teacache``: a polynomial from the relative L1 change of the first block's modulated input
    to that of the output, over all steps, branches and runs. ``diffsparse``: which steps are computed, and which share
    of its tokens every module computes at each, under a budget. ``flashblock``: which heads of a language model compute
    attention outside the block at which step.

    The pipeline is afterwards as it was before; a method that was on comes back.

    Args:
        pipe: a diffusers pipeline, or a bare denoiser.
        method: one of :data:`CALIBRATORS`.
        calls: one run or several, each as keyword arguments of ``pipe.__call__`` or as a function of ``pipe``. A bare
            denoiser needs functions that sample in a :func:`diffcache.denoising` block. All must have the same number
            of steps and the same sampler; for one result every time, give each a freshly seeded generator.
        quick: in the method's quick mode, where it has one: for ``auto`` and ``diffsparse`` a fraction of the time, for
            plans and tables that are a little worse. Three or four runs are enough for it.
        progress: called with (run, steps done, steps in all).
        kept: file in which a long calibration keeps what it has, so that it can go on after an interruption.
        options: fields of the method's calibrator, e.g. ``degree`` of ``teacache``.

    Raises:
        ConfigError: another method or option, no runs, runs that differ in steps or sampler, or too few steps.
        UnsupportedModelError: the model cannot be listened to.
    """
    calibrator = make_calibrator(method, quick, **options)
    runs = [calls] if isinstance(calls, Mapping) or callable(calls) else list(calls)
    if not runs:
        raise ConfigError("calls: none given, calibration needs at least one dense run")
    return calibrator.measure(pipe, runs, progress, None if kept is None else Path(kept))


def describe(found: Calibration) -> Facts:
    """What was measured, how well, and what to mind, as (name, value)."""
    about = CALIBRATORS[found.method]()
    facts = [("trajectories", str(found.runs))]
    for name, expert in found.experts.items():
        place = f"{name} " if len(found.experts) > 1 else ""
        facts += [(place + key, value) for key, value in about.describe(expert)]
        facts += [(f"{place}note", expert.note)] if expert.note else []
    return facts
