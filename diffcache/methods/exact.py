"""The exact savings alone: every step is computed, and what steps or blocks would compute alike is computed once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import ConfigError
from ..hooks.recipe import Recipe
from ..predictors import Taylor
from ..schedules import Schedule
from .base import MethodConfig


@dataclass(frozen=True, kw_only=True)
class ExactConfig(MethodConfig):
    """Bit for bit the bare model, with what depends on prompt, positions and shapes alone computed once a trajectory.

    Text projections, keys and values of cross-attention, refiners that do not see the timestep, rotary tables; and once
    a call what its blocks repeat. Every method has these savings (``exact=False`` switches them off); here they are
    alone. See :mod:`diffcache.hooks.exact` and :mod:`diffcache.hooks.repeats`.
    Memory of one branch: the sum, over the module calls that are answered from memory, of
    ``numel(result) * element_size`` bytes.
    """

    method: ClassVar[str] = "exact"
    summary: ClassVar[str] = "computes every step; what does not depend on it only once (bit-exact)"

    max_skip: int = 0
    exact: bool | None = True

    def validate(self) -> None:
        if self.max_skip != 0:
            raise ConfigError(f"max_skip: {self.max_skip!r} is out of range, must be 0: exact predicts no step")
        if not self.exact:
            raise ConfigError("exact: False is out of range, must be True: it is all that this method does")

    def recipe(self) -> Recipe:
        return Recipe(self.method, self, "output", lambda: Schedule(max_skip=0), Taylor(0))
