"""What every calibrator is: from a pipeline and what to run on it to the numbers of one method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ..errors import ConfigError
from ..schedules.calibration import Calibration, Expert

#: keyword arguments of the pipeline, or what to do with it; its result is the pipeline's
Call = Mapping[str, Any] | Callable[[Any], Any]
#: told at every step: the run, how many steps are done (0 when it begins), of how many
Progress = Callable[[str, int, int], None]
Facts = list[tuple[str, str]]


class Calibrator(ABC):
    """Measures what one method needs to know about a model.

    A calibrator is a frozen dataclass whose fields are its options; they are checked on construction.

    Attributes:
        method: the method that it is for.
        measures: what is measured, in a sentence for ``--help``.
        seeds: of the runs, as ``--seeds`` takes them, where the user names none.
        least: how many runs it needs.
        quick: options with which it takes a fraction of the time, for a first look or a large model; empty where a
            calibration is a few plain runs anyway.
        quick_seeds: of the runs then.
    """

    method: ClassVar[str]
    measures: ClassVar[str]
    seeds: ClassVar[str] = "0"
    least: ClassVar[int] = 1
    quick: ClassVar[Mapping[str, Any]] = {}
    quick_seeds: ClassVar[str] = ""

    @property
    def no_quick(self) -> str:
        """What to say where a quick mode is asked for and there is none."""
        return f"{self.method}: --quick changes nothing, its calibration is a few plain runs (as many as --seeds)"

    @abstractmethod
    def measure(self, pipe: Any, calls: Sequence[Call], progress: Progress | None, kept: Path | None) -> Calibration:
        """The numbers; the pipeline is afterwards as it was before.

        Args:
            pipe: a diffusers pipeline, or a bare denoiser.
            calls: one or more runs with the same number of steps and the same sampler.
            progress: told about every step.
            kept: a file for what is measured so far: a calibration that was interrupted goes on from it, one that ends
                deletes it. A calibrator that takes a few dense runs need not use it.
        """

    @abstractmethod
    def describe(self, expert: Expert) -> Facts:
        """What was measured on one denoiser, as (name, value)."""


def run(pipe: Any, call: Call) -> Any:
    """What a call returns."""
    return call(pipe) if callable(call) else pipe(**call)


def check_whole(name: str, value: Any, least: int) -> None:
    """Raises ConfigError unless an option is a whole number >= ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}: {value!r} is out of range, must be a whole number >= {least}")
