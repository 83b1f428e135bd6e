"""Methods whose numbers belong to one model, and are measured on it by a calibration run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from ..errors import ConfigError, ScheduleFileError, calibrate_command
from ..hooks.recipe import Recipe
from ..schedules.bound import Bound
from ..schedules.calibration import Calibration, Expert
from ..schedules.files import read_calibration
from .base import MethodConfig

#: in a shape: as many as there are steps
STEPS = -1


@dataclass(frozen=True, kw_only=True)
class CalibratedConfig(MethodConfig):
    """What the calibrated methods have besides.

    Args:
        schedule: path of a schedule file that ``diffcache calibrate`` (:func:`diffcache.learn.calibrate`) wrote.
    """

    #: numbers that the method takes from a calibration -> their shape, None for any size
    numbers: ClassVar[dict[str, tuple[int | None, ...]]] = {}
    #: those that a file may lack
    optional: ClassVar[dict[str, tuple[int | None, ...]]] = {}

    schedule: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.schedule, os.PathLike):
            object.__setattr__(self, "schedule", os.fspath(self.schedule))
        super().__post_init__()

    def validate(self) -> None:
        if self.schedule is not None:
            if not isinstance(self.schedule, str):
                raise ConfigError(f"schedule: {self.schedule!r} is not the path of a schedule file")
            self._read()

    @property
    def needs_calibration(self) -> bool:
        """Whether a calibration is missing; a method that never skips needs none."""
        return self.schedule is None and self.max_skip > 0

    def uncalibrated(self, field: str, what: str, published: Iterable[str], more: str = "") -> ConfigError:
        """What to say where ``field`` and all that could stand for it are missing: the command that measures it."""
        command = calibrate_command(self.method)
        names = "|".join(published)
        others = "; or ".join(filter(None, (names and f"published={names}", more)))
        return ConfigError(
            f"{field}: {self.method} needs the model's {what}: run `{command}` and give schedule=FILE.safetensors; "
            f"or {others}"
        )

    def calibrate(self, recipe: Recipe, make: Callable[[Expert], Bound]) -> Recipe:
        """``recipe`` with the schedules that ``make`` makes of the file's numbers; unchanged without a file."""
        if self.schedule is None:
            return recipe
        known = self._read()

        def calibrated(name: str) -> Bound:
            made = make(known.expert(name))
            made.admit = lambda steps: known.check_steps(name, steps)
            return made

        return replace(recipe, calibration=known, calibrated=calibrated)

    def _read(self) -> Calibration:
        known = read_calibration(self.schedule, self.method)
        known.check_method(self.method)
        for name, expert in known.experts.items():
            wanted = self.numbers | {key: s for key, s in self.optional.items() if key in expert.numbers}
            if not all(_sound(expert.numbers.get(key), shape, expert.steps) for key, shape in wanted.items()):
                raise ScheduleFileError(f"{self.schedule}: damaged: {' or '.join(wanted)} of {name} is not right")
        if not known.experts:
            raise ScheduleFileError(f"{self.schedule}: damaged: no denoiser")
        return known


def _sound(number: Tensor | None, shape: Sequence[int | None], steps: int) -> bool:
    if number is None or not number.is_floating_point() or number.dim() != len(shape) or not number.numel():
        return False
    wanted = [steps if size == STEPS else size for size in shape]
    return all(size in (None, found) for size, found in zip(wanted, number.shape, strict=True))
