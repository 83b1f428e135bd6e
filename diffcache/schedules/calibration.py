"""What a calibration run found, and what it was made for: it holds for that model, sampler and number of steps only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isclose
from typing import Any

from torch import Tensor

from ..errors import ScheduleFileError


@dataclass(frozen=True)
class Identity:
    """Which model it is: the class of a denoiser and its configuration. Weights are not compared.

    Attributes:
        model: class name.
        settings: the configuration's plain values.
    """

    model: str
    settings: Mapping[str, Any]

    def difference(self, other: Identity) -> tuple[str, str] | None:
        """(this, other) where they differ, in words; None if they are alike. Settings of both are compared."""
        if self.model != other.model:
            return self.model, other.model
        for name in sorted(self.settings.keys() & other.settings.keys()):
            if self.settings[name] != other.settings[name]:
                return f"{self.model} with {name}={self.settings[name]}", f"{name}={other.settings[name]}"
        return None


@dataclass(frozen=True)
class Expert:
    """What was measured on one denoiser.

    Attributes:
        identity: the denoiser.
        steps: how many steps of a trajectory it ran.
        branches: its branches, in the order of their first call.
        numbers: what the method needs, by name.
        quality: how far the numbers can be trusted, by name.
        note: a warning in one line, where there is reason for one.
        facts: what the numbers belong to and how they were found, by name; JSON-ready.
    """

    identity: Identity
    steps: int
    branches: tuple[str, ...]
    numbers: Mapping[str, Tensor]
    quality: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Calibration:
    """The numbers of one method on one model. :func:`diffcache.learn.calibrate` makes it.

    Attributes:
        method: name of the method.
        sampler: class name of the sampler; None for a loop that named none.
        steps: denoising steps of a trajectory.
        runs: trajectories that were measured.
        experts: component name of each denoiser -> what was measured on it.
        source: the file that it was read from, for messages.
        guidance: scale of classifier-free guidance that it holds for; None for any.
    """

    method: str
    sampler: str | None
    steps: int
    runs: int
    experts: Mapping[str, Expert]
    source: str = "calibration"
    guidance: float | None = None

    def expert(self, name: str) -> Expert:
        """What was measured on the denoiser ``name``; the name of a single one does not matter."""
        if len(self.experts) == 1:
            return next(iter(self.experts.values()))
        return self.experts[name]

    # -- what it is good for ---------------------------------------------------------------------------------------

    def check_method(self, method: str) -> None:
        """Refuse another method; raises ScheduleFileError."""
        if method != self.method:
            raise self._mismatch("method", self.method, method)

    def check_models(self, models: Mapping[str, Identity]) -> None:
        """Refuse other denoisers; raises ScheduleFileError."""
        alone = len(models) == len(self.experts) == 1
        if not alone and set(models) != set(self.experts):
            raise self._mismatch("model", " and ".join(self.experts), " and ".join(models))
        for name, identity in models.items():
            found = self.expert(name).identity.difference(identity)
            if found is not None:
                raise self._mismatch("model", *found)

    def check_sampler(self, sampler: str | None) -> None:
        """Refuse another sampler class; raises ScheduleFileError."""
        if sampler != self.sampler:
            raise self._mismatch("sampler", self.sampler or "a loop without sampler", sampler or "none")

    def check_steps(self, name: str, steps: int) -> None:
        """Refuse another number of steps of the denoiser ``name``; raises ScheduleFileError."""
        known, alone = self.expert(name).steps, len(self.experts) == 1
        if steps != known:
            raise self._mismatch("steps" if alone else f"steps of {name}", str(known), str(steps))

    def check_timesteps(self, made_for: Sequence[float], found: Sequence[float]) -> None:
        """Refuse other timesteps, where both are known; raises ScheduleFileError."""
        pairs = enumerate(zip(made_for, found, strict=False))
        other = next((i for i, (a, b) in pairs if not isclose(a, b, rel_tol=1e-3, abs_tol=1e-3)), None)
        if other is not None:
            raise self._mismatch(f"timestep of step {other}", f"{made_for[other]:g}", f"{found[other]:g}")

    def check_guidance(self, found: Any) -> None:
        """Refuse another guidance scale, where it is known on both sides; raises ScheduleFileError."""
        if self.guidance is not None and isinstance(found, (int, float)) and not isclose(found, self.guidance):
            raise self._mismatch("guidance", f"{self.guidance:g}", f"{found:g}")

    def _mismatch(self, what: str, made_for: str, found: str) -> ScheduleFileError:
        return ScheduleFileError(
            f"{self.source}: {what}: made for {made_for}, but here it is {found}; make one for this with: "
            "diffcache calibrate"
        )
