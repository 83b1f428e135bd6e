"""What dense runs of a pipeline showed: denoisers, steps, conditionings, and where each run ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..hooks.identity import identify
from ..hooks.modules import find_units, unit_kinds
from ..pipeline import handle_of
from ..schedules.calibration import Identity
from ..schedules.sparsity import KeepTable
from .measuring import check_ran

#: shares of the tokens, ``[steps, units]``
Table = NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """One denoiser's part of a trajectory.

    Attributes:
        name: of the component.
        identity: which model it is.
        units: names of its attention and feed-forward modules.
        start, steps: of the trajectory.
        branches: names of its conditionings.
    """

    name: str
    identity: Identity
    units: tuple[str, ...]
    start: int
    steps: int
    branches: tuple[str, ...]


@dataclass
class Course:
    """What dense runs showed.

    Attributes:
        parts: denoisers, in the order in which they run.
        folded: whether a call's batch is the same noise twice.
        timesteps: of the trajectory, empty where no sampler told them.
        sampler: its class name.
        device: name of what computes.
        finals: the sample that each run ended with.
        outputs: of each run, what the sampler was given at each step, fp32; empty where no sampler was seen.
    """

    parts: list[Part] = field(default_factory=list)
    folded: bool = False
    timesteps: tuple[float, ...] = ()
    sampler: str | None = None
    device: str = ""
    finals: list[Tensor] = field(default_factory=list)
    outputs: list[list[Tensor]] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return sum(part.steps for part in self.parts)

    @property
    def units(self) -> tuple[str, ...]:
        return self.parts[0].units

    @property
    def starts(self) -> list[int]:
        """First step of each part: computed in full whatever a table says."""
        return [part.start for part in self.parts]

    def number(self, step: int) -> int:
        """Number of the part that a step belongs to."""
        return sum(start <= step for start in self.starts) - 1

    def tables(self, keep: Table) -> dict[str, KeepTable]:
        """``[steps, units]`` of the trajectory as a table for each denoiser."""
        return {
            part.name: KeepTable(
                part.units,
                tuple(map(tuple, keep[part.start : part.start + part.steps].tolist())),
                self.timesteps[part.start : part.start + part.steps],
                len(part.branches),
                self.folded,
                "calibration",
            )
            for part in self.parts
        }


def parts_of(pipe: Any, ran: Sequence[str]) -> list[Part]:
    """The denoisers, in the order in which they took turns in the last trajectory.

    Args:
        pipe: a pipeline, or a bare denoiser, with a method on.
        ran: names of those that were called, by their first call.

    Raises:
        ConfigError: one of them had no step.
    """
    handle, parts, start = handle_of(pipe), [], 0
    segments = handle.stats().segments
    check_ran(list(handle.hooks), [segment.expert for segment in segments])
    for name in ran:
        model, hook = handle.hooks[name]
        mine = [segment for segment in segments if segment.expert == name]
        units = tuple(unit.name for unit in find_units(model, "module", unit_kinds("module")))
        steps = len(mine[0].decisions)
        branches = tuple(segment.branch for segment in mine)
        parts.append(Part(name, identify(model, hook.anatomy), units, start, steps, branches))
        start += steps
    return parts
