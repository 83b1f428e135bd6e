"""What every method's configuration has."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml

from ..errors import ConfigError, ScheduleFileError
from ..hooks.recipe import Recipe
from ..predictors import Predictor, Taylor
from ..predictors.resting import DTYPES
from ..schedules import NEVER, Schedule
from .checks import check_choice, check_number, check_size


@dataclass(frozen=True, kw_only=True)
class NamedConfig(ABC):  # noqa: B024 - a base to share, and what both kinds must have differs
    """What the configurations of denoisers' methods and of language models' methods share: a name, checks, files."""

    method: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    #: what it works on: ``denoiser`` or ``language``
    kind: ClassVar[str] = ""

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:  # noqa: B027 - most subclasses check something, not all must
        """Check the fields that the subclass adds; raises ConfigError with field, value and what would be right."""

    def to_dict(self) -> dict[str, Any]:
        """The method's name and every field; JSON-ready."""
        return {"method": self.method, **asdict(self)}

    def save(self, path: str | Path) -> None:
        """Write YAML (``.yaml``, ``.yml``) or JSON (``.json``); :func:`load_config` reads it back."""
        path = Path(path)
        data = {k: list(v) if isinstance(v, tuple) else v for k, v in self.to_dict().items()}
        if path.suffix in (".yaml", ".yml"):
            path.write_text(yaml.safe_dump(data, sort_keys=False))
        elif path.suffix == ".json":
            path.write_text(json.dumps(data, indent=2) + "\n")
        else:
            raise ScheduleFileError(f"{path}: unknown suffix '{path.suffix}', must be .yaml, .yml or .json")


@dataclass(frozen=True, kw_only=True)
class MethodConfig(NamedConfig):
    """What every denoiser's method has.

    Args:
        warmup: first steps that are always computed.
        cooldown: last steps that are always computed.
        max_skip: longest run of predicted steps; 0 never skips.
        exact: whether what does not depend on sample and timestep is computed once a trajectory, bit for bit as the
            bare model computes it (docs/exact.md), and what a call repeats once a call. None: the first of it for
            denoisers of 1 million parameters or more, below 50 million from the second trajectory on; the calls of
            small ones are so short that looking for it costs more than one trajectory saves.
        memory: most that may be held for reuse on the denoiser's device, in bytes or as text (``"200MB"``,
            ``"1.5GiB"``); less than the method needs is refused with what it needs (docs/memory.md). None: no limit.
        cache_dtype: dtype in which cached values rest: ``float16``, ``bfloat16`` or ``float32``; None is their own.
        offload: whether cached values rest on the CPU; changes nothing for a denoiser that is there itself.
    """

    kind: ClassVar[str] = "denoiser"

    warmup: int = 3
    cooldown: int = 1
    max_skip: int = 8
    exact: bool | None = None
    memory: int | str | None = None
    cache_dtype: str | None = None
    offload: bool = False

    def __post_init__(self) -> None:
        for name in ("warmup", "cooldown", "max_skip"):
            check_number(name, getattr(self, name), 0, NEVER, whole=True)
        if self.exact is not None and not isinstance(self.exact, bool):
            raise ConfigError(f"exact: {self.exact!r} is out of range, must be True, False or None")
        self._check_memory()
        self.validate()

    def _check_memory(self) -> None:
        check_size("memory", self.memory)
        if isinstance(self.cache_dtype, torch.dtype):
            object.__setattr__(self, "cache_dtype", str(self.cache_dtype).removeprefix("torch."))
        if self.cache_dtype is not None:
            check_choice("cache_dtype", self.cache_dtype, list(DTYPES))
        if not isinstance(self.offload, bool):
            raise ConfigError(f"offload: {self.offload!r} is out of range, must be True or False")

    @abstractmethod
    def recipe(self) -> Recipe:
        """The site, schedule and predictor of this configuration."""

    def recipe_for(self, owner: Any) -> Recipe:
        """:meth:`recipe` on a pipeline or model; what comes with it may stand in for fields that were left open."""
        return self.recipe()

    def _warmup(self, predictor: Predictor) -> int:
        # With fewer computed outputs than the predictor needs, every step is computed anyway.
        return max(self.warmup, predictor.least)


@dataclass(frozen=True, kw_only=True)
class NoneConfig(MethodConfig):
    """Never skips: the hooks are on and every step is computed. The control for overhead and for exactness.

    It alone has no exact savings unless asked for: its cost is the bare model's, and with them it is ``exact``.

    Memory of one branch: nothing.
    """

    method: ClassVar[str] = "none"
    summary: ClassVar[str] = "computes every step (control)"

    max_skip: int = 0
    exact: bool | None = False

    def recipe(self) -> Recipe:
        return Recipe(self.method, self, "output", lambda: Schedule(max_skip=0), Taylor(0))
