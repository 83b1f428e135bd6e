"""What a table costs to run: in tokens or in measured milliseconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Work:
    """Costs of cells.

    Attributes:
        levels: shares of the tokens, ascending, the first 0 and the last 1.
        weight: ``[units, levels]``, of a unit at each level.
        base: of a step at which anything is computed, besides its units.
        unit: ``tokens`` or ``ms``.
    """

    levels: tuple[float, ...]
    weight: Floats
    base: float
    unit: str

    @classmethod
    def in_tokens(cls, levels: tuple[float, ...], units: int) -> Work:
        """A cell costs the share of the tokens that it computes: the paper's unit."""
        return cls(levels, np.tile(np.array(levels), (units, 1)), 0.0, "tokens")

    @property
    def step(self) -> float:
        """Of a full step."""
        return float(self.base + self.weight[:, -1].sum())

    def of(self, keep: Any) -> float:
        """Of a table of shares, ``[steps, units]``."""
        keep = np.asarray(keep)
        active = (keep > 0).any(1).sum()
        cells = [np.interp(keep[:, unit], self.levels, row).sum() for unit, row in enumerate(self.weight)]
        return float(active * self.base + sum(cells))

    def full_steps(self, budget: float, steps: int, forced: int) -> int:
        """How many full steps a budget pays, as a share of the dense trajectory.

        Raises:
            ConfigError: not even the steps that are always computed; the message gives the feasible range.
        """
        count = int(budget * steps + 1e-9)
        if not forced + 1 <= count or budget > 1.0:
            low = (forced + 1) / steps
            ms = f" ({low * steps * self.step:.4g} to {steps * self.step:.4g} ms)" if self.unit == "ms" else ""
            raise ConfigError(f"budget: {budget:g} is infeasible, must be in [{low:.3g}, 1] of the dense work{ms}")
        return count
