"""Methods that cache the results of single modules or blocks: the denoiser runs at every step, most of it does not."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import ConfigError
from ..hooks.modules import unit_kinds
from ..hooks.recipe import SITES, Recipe
from ..predictors import Predictor, ScaledHermite, Taylor
from ..schedules import NEVER, Interval, Parallel, Schedule, pyramid
from .base import MethodConfig
from .checks import check_choice, check_number


@dataclass(frozen=True, kw_only=True)
class PeriodicConfig(MethodConfig):
    """What ``fora``, ``taylorseer`` and ``hicache`` share: after the warm-up one step in ``interval`` is computed.

    Memory of one branch: with site ``module``, ``(order + 1) * sum over modules of numel(result) * element_size`` bytes
    (order 0 for ``fora``) and no scalars; with site ``output``, as for ``interval``.

    Args:
        interval: distance between computed steps, >= 1.
        site: ``module`` (attention and feed-forward results, before the block's gate), ``block`` or ``output``.
    """

    warmup: int = 3
    max_skip: int = 64
    interval: int = 3
    site: str = "module"

    def validate(self) -> None:
        check_number("interval", self.interval, 1, NEVER, whole=True)
        check_choice("site", self.site, SITES)

    @abstractmethod
    def predictor(self) -> Predictor:
        """From stored results to a result for now."""

    def recipe(self) -> Recipe:
        predictor = self.predictor()
        return Recipe(
            self.method,
            self,
            self.site,
            lambda: Interval(self.interval, self._warmup(predictor), self.cooldown, self.max_skip),
            predictor,
            limit=max(self.interval - 1, 1),
            kinds=unit_kinds(self.site),
        )


@dataclass(frozen=True, kw_only=True)
class ForaConfig(PeriodicConfig):
    """FORA (arXiv 2407.01425): results of every attention and feed-forward are reused for ``interval`` - 1 steps."""

    method: ClassVar[str] = "fora"
    summary: ClassVar[str] = "reuses module results for `interval` - 1 steps (FORA)"

    warmup: int = 1

    def predictor(self) -> Predictor:
        return Taylor(0)


@dataclass(frozen=True, kw_only=True)
class TaylorSeerConfig(PeriodicConfig):
    """TaylorSeer (arXiv 2503.06923): module results are extrapolated by a Taylor expansion of order ``order``.

    Differences are divided by the true distances of the computed steps, so the longer gap after the warm-up does no
    harm. The preset ``lite`` caches the denoiser's output alone.

    Args:
        order: degree, 0 to 4; the paper uses 1 and 2.
    """

    method: ClassVar[str] = "taylorseer"
    summary: ClassVar[str] = "extrapolates module results by Taylor expansion (TaylorSeer)"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"lite": dict(site="output")}

    interval: int = 5
    order: int = 1

    def validate(self) -> None:
        super().validate()
        check_number("order", self.order, 0, 4, whole=True)

    def predictor(self) -> Predictor:
        return Taylor(self.order)


@dataclass(frozen=True, kw_only=True)
class HiCacheConfig(PeriodicConfig):
    """HiCache (arXiv 2508.16984): as TaylorSeer, with scaled Hermite polynomials in place of powers.

    Args:
        order: degree, 1 to 4.
        sigma: contraction factor in (0, 1].
    """

    method: ClassVar[str] = "hicache"
    summary: ClassVar[str] = "extrapolates module results by scaled Hermite polynomials (HiCache)"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"lite": dict(site="output")}

    interval: int = 5
    order: int = 2
    sigma: float = 0.5

    def validate(self) -> None:
        super().validate()
        check_number("order", self.order, 1, 4, whole=True)
        check_number("sigma", self.sigma, 1e-3, 1, whole=False)

    def predictor(self) -> Predictor:
        return ScaledHermite(self.order, self.sigma)


@dataclass(frozen=True, kw_only=True)
class PABConfig(MethodConfig):
    """Pyramid attention broadcast (arXiv 2408.12588): attention results are reused within a window of timesteps.

    Each kind of attention has a range of its own: one computed step serves itself and the next range - 1. Feed-forward
    modules are always computed. Memory of one branch: the last result of every attention that has a range.

    Args:
        spatial, temporal, cross: ranges of self-attention, attention across frames, attention to the text; None
            leaves that kind alone.
        low, high: the window, in the sampler's timesteps, exclusive.
    """

    method: ClassVar[str] = "pab"
    summary: ClassVar[str] = "reuses attention results, each kind for its own range (PAB)"

    warmup: int = 1
    max_skip: int = 64
    spatial: int | None = 2
    temporal: int | None = 4
    cross: int | None = 6
    low: float = 100
    high: float = 800

    def validate(self) -> None:
        for name in ("spatial", "temporal", "cross"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), 1, NEVER, whole=True)
        if not self._ranges():
            raise ConfigError("spatial: None is out of range, one of spatial, temporal and cross must have a range")
        check_number("low", self.low, 0, 1e6, whole=False)
        check_number("high", self.high, 0, 1e6, whole=False)
        if self.low > self.high:
            raise ConfigError(f"low: {self.low} is out of range, must be <= high ({self.high})")

    def _ranges(self) -> dict[str, int | None]:
        ranges = {"spatial": self.spatial, "temporal": self.temporal, "cross": self.cross}
        return {kind: n for kind, n in ranges.items() if n is not None}

    def recipe(self) -> Recipe:
        settings = ((self.low, self.high), self.warmup, self.cooldown, self.max_skip)
        make: Callable[[], Schedule] = lambda: Parallel(pyramid(self.spatial, self.temporal, self.cross, *settings))  # noqa: E731
        return Recipe(self.method, self, "module", make, Taylor(0), kinds=frozenset(self._ranges()))
