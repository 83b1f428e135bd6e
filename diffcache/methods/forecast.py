"""Methods with a placed schedule: any predictor, any site."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import ConfigError
from ..hooks.modules import unit_kinds
from ..hooks.recipe import AXES, SITES, Recipe
from ..predictors import Hermite, Heterogeneous, Predictor, SampleTrend, ScaledHermite, Taylor, Trend
from ..schedules import NEVER, Explicit, Interval, PowerLaw, Schedule
from .base import MethodConfig
from .checks import check_choice, check_number

PREDICTORS: dict[str, Callable[[int], Predictor]] = {
    "reuse": lambda order: Taylor(0),
    "linear": lambda order: Taylor(1),
    "taylor": Taylor,
    "hermite": lambda order: Hermite(),
    "adaptive": lambda order: SampleTrend(),
    "hicache": ScaledHermite,
    "heterogeneous": lambda order: Heterogeneous(),
    "trend": lambda order: Trend(),
}


@dataclass(frozen=True, kw_only=True)
class ForecastConfig(MethodConfig):
    """What the methods with a placed schedule share: which value is cached and how it is predicted.

    Memory of one branch: ``depth * numel(value) * element_size`` bytes, where the value is the output or
    the body's residual and depth is 1 for ``reuse``, order + 1 for ``linear`` and ``taylor``, 3 for ``hermite``,
    ``heterogeneous``, ``trend`` and ``adaptive``; ``heterogeneous`` adds 12 bytes a token, ``trend`` 4.

    Args:
        predictor: ``reuse``, ``linear``, ``taylor``, ``hermite``, ``heterogeneous``, ``trend``, ``adaptive`` (the
            trend per sample with feedback, as in ``worldcache``) or ``hicache``.
        order: degree of ``taylor`` and ``hicache``, 0 to 4.
        site: ``output``, ``body``, ``block`` or ``module``; the last two need a predictor that measures no tokens.
        axis: time axis of the predictor: ``index``, ``sigma`` or ``logsnr``.
    """

    max_skip: int = 64
    predictor: str = "trend"
    order: int = 1
    site: str = "output"
    axis: str = "index"

    def validate(self) -> None:
        check_choice("predictor", self.predictor, list(PREDICTORS))
        check_choice("site", self.site, SITES)
        check_choice("axis", self.axis, AXES)
        check_number("order", self.order, 0, 4, whole=True)
        if self.site in ("block", "module") and not PREDICTORS[self.predictor](self.order).static:
            raise ConfigError(
                f"predictor: {self.predictor} measures every token and needs site output or body, not {self.site}"
            )

    @abstractmethod
    def schedule(self, warmup: int) -> Schedule:
        """A new schedule; ``warmup`` is at least what the predictor needs."""

    def recipe(self) -> Recipe:
        predictor = PREDICTORS[self.predictor](self.order)
        warmup = self._warmup(predictor)
        limit = max(min(self.max_skip, self.run_length()), 1)
        return Recipe(
            self.method,
            self,
            self.site,
            lambda: self.schedule(warmup),
            predictor,
            axis=self.axis,
            limit=limit,
            kinds=unit_kinds(self.site),
        )

    def run_length(self) -> int:
        """Longest run that the placement makes, for predictors that blend over a run."""
        return self.max_skip


@dataclass(frozen=True, kw_only=True)
class IntervalConfig(ForecastConfig):
    """One step in ``interval`` is computed after the warm-up; the others are predicted.

    Args:
        interval: distance between computed steps, >= 1.
    """

    method: ClassVar[str] = "interval"
    summary: ClassVar[str] = "computes one step in `interval`, predicts the rest"

    predictor: str = "reuse"
    interval: int = 3

    def validate(self) -> None:
        super().validate()
        check_number("interval", self.interval, 1, NEVER, whole=True)

    def schedule(self, warmup: int) -> Schedule:
        return Interval(self.interval, warmup, self.cooldown, self.max_skip)

    def run_length(self) -> int:
        return self.interval - 1


@dataclass(frozen=True, kw_only=True)
class StepsConfig(ForecastConfig):
    """Exactly the listed steps are computed, with those that warm-up, cool-down and ``max_skip`` add.

    Args:
        steps: 0-based indices of computed steps.
    """

    method: ClassVar[str] = "steps"
    summary: ClassVar[str] = "computes an explicit list of steps"

    steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.steps, (list, range)):
            object.__setattr__(self, "steps", tuple(self.steps))
        super().__post_init__()

    def validate(self) -> None:
        super().validate()
        if not isinstance(self.steps, tuple):
            raise ConfigError(f"steps: {self.steps!r} is not a list of step indices")
        for step in self.steps:
            check_number("steps", step, 0, NEVER, whole=True)

    def schedule(self, warmup: int) -> Schedule:
        return Explicit(self.steps, warmup, self.cooldown, self.max_skip)


@dataclass(frozen=True, kw_only=True)
class PowerLawConfig(ForecastConfig):
    """``computed`` steps, dense early and sparse late.

    Args:
        computed: number of computed steps (>= 1) or their share of all steps (in (0, 1)).
        alpha: exponent of the placement; 1 is even, larger moves computed steps to the start.
    """

    method: ClassVar[str] = "powerlaw"
    summary: ClassVar[str] = "places `computed` steps by a power law, dense early"

    computed: float = 0.4
    alpha: float = 1.5

    def validate(self) -> None:
        super().validate()
        check_computed(self.computed)
        check_number("alpha", self.alpha, 0.1, 10, whole=False)

    def schedule(self, warmup: int) -> Schedule:
        return PowerLaw(self.computed, self.alpha, warmup, self.cooldown, self.max_skip)


def check_computed(value: Any) -> None:
    """Raises ConfigError unless the value is a number of steps or a share of them."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= NEVER
    if not number or (value >= 1 and value != int(value)):
        raise ConfigError(f"computed: {value!r} is out of range, must be a whole number >= 1 or a share in (0, 1)")
