"""Where the plan of a trajectory comes from: a file, or the first trajectory itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf, isclose

from torch import Tensor

from ..errors import CalibratingWarning
from ..predictors.evidence import Evidence, Track
from ..predictors.fitted import Pilot, Plan
from .calibration import Calibration
from .planning import Landscape, frontier, tabulate


class FilePilot(Pilot):
    """The plan of a calibration.

    Args:
        plan: the chosen one.
        known: what it was made for; other steps or timesteps are refused.
        name: the denoiser.
        instead: where given, it takes trajectories of another length over, so that nothing has to be refused.
    """

    def __init__(self, plan: Plan, known: Calibration, name: str, instead: Pilot | None = None) -> None:
        self._made, self._known, self._name, self._instead = plan, known, name, instead
        self.plan, self.levelled = plan, bool(plan.levels)

    @property
    def watching(self) -> bool:
        return self._instead is not None and self.plan is not self._made and self._instead.watching

    def begin(self, total: int | None, timesteps: Sequence[float]) -> Plan | None:
        timesteps = timesteps[:total]  # those of a denoiser that takes over come behind
        alike = total == self._made.steps and _alike(timesteps, self._made.timesteps)
        if not alike and self._instead is not None:
            self.plan = self._instead.begin(total, timesteps)
            return self.plan
        self._known.check_steps(self._name, total)
        self._known.check_timesteps(self._made.timesteps, timesteps)
        self.plan = self._made
        return self.plan

    def watch(self, branch: str, step: int, samples: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        if self._instead is not None:
            self._instead.watch(branch, step, samples, outputs)


def _alike(here: Sequence[float], there: Sequence[float]) -> bool:
    """Whether two runs pass the same timesteps to the denoiser; unknown ones are taken to be alike."""
    if not here or not there:
        return True
    return len(here) == len(there) and all(isclose(a, b, rel_tol=1e-3, abs_tol=1e-3) for a, b in zip(here, there))


class FirstRun(Pilot):
    """Watches the first trajectory of a length, which is computed in full, and plans the following ones from it.

    Kept meanwhile: at most 16384 numbers of each output and sample (64 kB a step and branch). The planning takes a
    second or two for 50 steps, once.

    Args:
        count: number of steps -> how many of them may be computed.
        label: of the method, for the warning.
    """

    def __init__(self, count: Callable[[int], int], label: str) -> None:
        self._count, self._label = count, label
        self._track: Track | None = None
        self._total, self._timesteps = 0, ()
        self._plans: dict[tuple[int, tuple[float, ...]], Plan] = {}

    @property
    def watching(self) -> bool:
        return self.plan is None and self._track is not None

    def begin(self, total: int | None, timesteps: Sequence[float]) -> Plan | None:
        self._conclude()
        timesteps = timesteps[:total]
        key = (total, tuple(timesteps))
        self.plan = self._plans.get(key)
        if self.plan is None and total is not None:
            self._track, self._total, self._timesteps = Track(), total, tuple(timesteps)
            warnings.warn(
                f"{self._label}: no calibration for {total} steps: this generation is computed in full and measured, "
                f"the next ones are planned from it; better plans: diffcache calibrate --method {self._label}",
                CalibratingWarning,
                stacklevel=2,
            )
        return self.plan

    def watch(self, branch: str, step: int, samples: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        self._track.note(branch, step, samples, outputs)

    def _conclude(self) -> None:
        """Make a plan of the trajectory that was watched, if it came to its end."""
        track, self._track = self._track, None
        if track is None or not track.outputs or any(len(seen) < self._total for seen in track.outputs.values()):
            return
        evidence = Evidence.of([track], self._total)
        count = min(max(self._count(self._total), 2), self._total)
        plans = frontier(Landscape(evidence), count, count)
        if plans:
            plan = tabulate(evidence, plans[count], self._timesteps)
            # One trajectory says little about how far others go astray: no guard.
            self._plans[self._total, self._timesteps] = replace(plan, limits=(inf,) * plan.steps)
