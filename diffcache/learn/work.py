"""What a table costs to run, in tokens or in measured milliseconds, and what may be spent."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..schedules.placing import Split, splits_for

Floats = NDArray[np.float64]
_MEASURED = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(x|ms)\s*")


@dataclass(frozen=True)
class Budget:
    """What a trajectory may cost.

    Attributes:
        text: as it was given.
        unit: ``tokens`` or ``ms``.
        share: of the dense work; None where milliseconds are given.
        milliseconds: of the denoiser; None where a share is given.
    """

    text: str
    unit: str
    share: float | None = None
    milliseconds: float | None = None

    @classmethod
    def read(cls, value: Any) -> Budget:
        """``0.5``: half of the tokens; ``2x``: half of the measured time; ``350ms``: so much of the denoiser's time.

        Raises:
            ConfigError: none of these, or out of range.
        """
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if not 0 < value <= 1:
                raise ConfigError(f"budget: {value!r} is out of range, must be a share of the dense work in (0, 1]")
            return cls(f"{value:g}", "tokens", share=float(value))
        found = _MEASURED.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            raise ConfigError(
                f"budget: {value!r} is not right, must be a share (0.5), a speed-up (2x) or a time (350ms)"
            )
        number, unit = float(found[1]), found[2]
        if number < 1.0 and unit == "x":
            raise ConfigError(f"budget: {value} is out of range, must be at least 1x")
        if unit == "x":
            return cls(f"{number:g}x", "ms", share=1.0 / number)
        return cls(f"{number:g}ms", "ms", milliseconds=number)

    def of(self, dense: float) -> float:
        """The same in the unit of a dense trajectory's work."""
        return self.milliseconds if self.share is None else self.share * dense

    def infeasible(self, low: float, dense: float) -> ConfigError:
        """What to say where no table keeps it; the feasible range is ``[low, dense]``."""
        if self.unit == "tokens":
            return ConfigError(
                f"budget: {self.text} is infeasible, must be in [{low / dense:.3g}, 1] of the dense work"
            )
        time = f"[{low:.4g}ms, {dense:.4g}ms]"
        speed = f"[1x, {dense / low:.3g}x]"
        first, second = (time, speed) if self.share is None else (speed, time)
        return ConfigError(f"budget: {self.text} is infeasible, must be in {first}, which is {second}")


@dataclass(frozen=True)
class Work:
    """Costs of one denoiser's cells.

    Attributes:
        levels: shares of the tokens, ascending, the first 0 and the last 1.
        weight: ``[units, levels]``, of a unit at each level.
        base: of a step at which anything is computed, besides its units.
        idle: of a step at which nothing is.
        bare: of a full step where no step is partial, so that nothing inside the denoiser is held; None: as any other.
        unit: ``tokens`` or ``ms``.
    """

    levels: tuple[float, ...]
    weight: Floats
    base: float
    unit: str
    idle: float = 0.0
    bare: float | None = None

    @classmethod
    def in_tokens(cls, levels: tuple[float, ...], units: int) -> Work:
        """A cell costs the share of the tokens that it computes: the paper's unit."""
        return cls(levels, np.tile(np.array(levels), (units, 1)), 0.0, "tokens")

    @property
    def step(self) -> float:
        """Of a full step."""
        return float(self.base + self.weight[:, -1].sum())

    @property
    def dense(self) -> float:
        """Of a step of the bare model."""
        return self.step if self.bare is None else self.bare

    def of(self, keep: Any) -> float:
        """Of a table of shares, ``[steps, units]``."""
        keep = np.asarray(keep)
        active = int((keep > 0).any(1).sum())
        rest = (len(keep) - active) * self.idle
        if active == int((keep >= 1).all(1).sum()):
            return active * self.dense + rest
        cells = [
            np.interp(keep[:, unit], self.levels, row)[(keep > 0).any(1)].sum() for unit, row in enumerate(self.weight)
        ]
        return float(active * self.base + sum(cells) + rest)


@dataclass(frozen=True)
class Bill:
    """Costs of a trajectory: of each denoiser that has a part of it, one after the other.

    Attributes:
        works: of each.
        lengths: its steps.
    """

    works: tuple[Work, ...]
    lengths: tuple[int, ...]

    @property
    def unit(self) -> str:
        return self.works[0].unit

    @property
    def levels(self) -> tuple[float, ...]:
        return self.works[0].levels

    @property
    def starts(self) -> list[int]:
        """First step of each part, which is computed in full."""
        return [0, *np.cumsum(self.lengths[:-1]).tolist()]

    @property
    def dense(self) -> float:
        """Of a trajectory of the bare model."""
        return sum(length * work.dense for length, work in zip(self.lengths, self.works, strict=True))

    @property
    def weights(self) -> Floats:
        """``[steps, units, levels]``, of a unit at each step."""
        return np.repeat(np.stack([work.weight for work in self.works]), self.lengths, 0)

    def of(self, keep: Any) -> float:
        """Of a table of shares, ``[steps, units]``."""
        rows = np.split(np.asarray(keep), self.starts[1:])
        return sum(work.of(part) for work, part in zip(self.works, rows, strict=True))

    def room(self, budget: float, active: Sequence[int]) -> float:
        """What a budget leaves for the cells of the ``active`` steps."""
        base, idle = (np.repeat([getattr(w, name) for w in self.works], self.lengths) for name in ("base", "idle"))
        chosen = np.isin(np.arange(len(base)), active)
        return float(budget - np.where(chosen, base, idle).sum())

    def pays(self, budget: float, active: Sequence[int]) -> bool:
        """Whether these steps can be active: the first of each part in full, the others at the lowest levels."""
        weights, rest = self.weights, sorted(set(active) - set(self.starts))
        least = weights[self.starts, :, -1].sum() + weights[rest, :, 0].sum()
        return bool(least <= self.room(budget, active))

    def splits(self, budget: Budget) -> frozenset[Split]:
        """How the full steps may be split over the parts that a budget pays, where all other steps are idle.

        Raises:
            ConfigError: not even one besides those that are always computed; the message gives the feasible range.
        """
        prices = [work.dense - work.idle for work in self.works]
        idle = sum(length * work.idle for length, work in zip(self.lengths, self.works, strict=True))
        more = min((p for p, length in zip(prices, self.lengths, strict=True) if length > 1), default=prices[0])
        least, dense = idle + sum(prices) + more, self.dense
        spent = budget.of(dense)
        if not least * (1 - 1e-9) <= spent <= dense * (1 + 1e-9):
            raise budget.infeasible(least, dense)
        return splits_for(self.lengths, prices, spent - idle + 1e-9 * dense)
