"""Methods that decide by what the model shows: the first block, the modulated input, the residual's size, the rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import ConfigError, unknown
from ..hooks.recipe import Recipe
from ..predictors import Taylor
from ..schedules import IDENTITY, NEVER, POLYNOMIALS, RATIOS, EasyCache, FirstBlock, MagCache, TeaCache
from ..schedules.calibration import Expert
from .base import MethodConfig
from .calibrated import STEPS, CalibratedConfig
from .checks import check_finite, check_number


@dataclass(frozen=True, kw_only=True)
class FBCacheConfig(MethodConfig):
    """First-block cache (ParaAttention), with more blocks DBCache (cache-dit): the first blocks decide about the rest.

    Their residual is compared with that of the last computed step. If it moved by no more than ``threshold`` (relative
    L1), the residual over the remaining blocks is reused. Each sample of a batch is decided by itself, see
    docs/batches.md.

    Memory of one branch: ``2 * numel(hidden) * element_size`` bytes (residual and reference), with the text stream's
    residual besides where ``last`` > 0.

    Args:
        threshold: relative change, >= 0.
        first: blocks that decide and always run (DBCache's Fn), >= 1.
        last: blocks at the end that always run (DBCache's Bn).
    """

    method: ClassVar[str] = "fbcache"
    summary: ClassVar[str] = "the first block's change decides whether the rest is reused (FBCache, DBCache)"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"dbcache": dict(first=8, warmup=8, threshold=0.08)}

    warmup: int = 1
    cooldown: int = 0
    max_skip: int = 64
    threshold: float = 0.05
    first: int = 1
    last: int = 0

    def validate(self) -> None:
        check_number("threshold", self.threshold, 0, math.inf, whole=False)
        check_number("first", self.first, 1, NEVER, whole=True)
        check_number("last", self.last, 0, NEVER, whole=True)

    def recipe(self) -> Recipe:
        return Recipe(
            self.method,
            self,
            "body",
            lambda: FirstBlock(self.threshold, self.warmup, self.cooldown, self.max_skip),
            Taylor(0),
            signal="first",
            first=self.first,
            last=self.last,
        )


#: published polynomials that were fitted to the signal that is heard here
_HEARD = {name: p.coefficients for name, p in POLYNOMIALS.items() if p.measured == "modulated"}


@dataclass(frozen=True, kw_only=True)
class TeaCacheConfig(CalibratedConfig):
    """TeaCache (arXiv 2411.19108): the change of the first block's modulated input, rescaled and summed over steps.

    The first block runs up to its attention; if the sum stays below ``threshold``, the residual over all blocks is
    reused. Each sample of a batch is decided by itself (docs/batches.md). Memory of one branch:
    ``2 * numel(hidden) * element_size`` bytes.

    The rescaling is a polynomial of the model: from a calibration, published, or given. A calibrated one is not
    extrapolated: a change larger than any that it was fitted to computes the step.

    Args:
        threshold: limit of the sum, in units of the polynomial (a calibrated one: relative L1 change of the output).
        schedule: schedule file that ``diffcache calibrate`` wrote; has precedence over the next two.
        published: name of a published polynomial.
        polynomial: coefficients, highest power first; has precedence over ``published``. (1, 0) is the distance itself.
    """

    method: ClassVar[str] = "teacache"
    summary: ClassVar[str] = "the modulated input's summed change decides about all blocks (TeaCache)"
    numbers: ClassVar[dict[str, tuple[int | None, ...]]] = {"polynomial": (None,), "fitted": (2,)}

    warmup: int = 1
    max_skip: int = 64
    threshold: float = 0.15
    published: str | None = None
    polynomial: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.polynomial, list):
            object.__setattr__(self, "polynomial", tuple(self.polynomial))
        super().__post_init__()

    def validate(self) -> None:
        super().validate()
        check_number("threshold", self.threshold, 0, math.inf, whole=False)
        if self.published is not None and self.published not in _HEARD:
            raise ConfigError(f"published: {unknown('polynomial', str(self.published), _HEARD)}")
        if not isinstance(self.polynomial, tuple):
            raise ConfigError(f"polynomial: {self.polynomial!r} is not a list of coefficients")
        for coefficient in self.polynomial:
            check_finite("polynomial", coefficient)

    def recipe(self) -> Recipe:
        polynomial = self.polynomial or (_HEARD[self.published] if self.published else ())
        if not polynomial and self.needs_calibration:
            raise self.uncalibrated("polynomial", "polynomial", [*_HEARD], "polynomial=[1,0] for the bare distance")
        settings = (self.threshold, self.warmup, self.cooldown, self.max_skip)
        recipe = Recipe(
            self.method,
            self,
            "body",
            lambda: TeaCache(*settings, polynomial or IDENTITY),
            Taylor(0),
            signal="modulated",
        )
        return self.calibrate(recipe, lambda known: TeaCache(*settings, *_fit(known)))


def _fit(expert: Expert) -> tuple[tuple[float, ...], tuple[float, float]]:
    low, high = expert.numbers["fitted"].tolist()
    return tuple(expert.numbers["polynomial"].tolist()), (low, high)


@dataclass(frozen=True, kw_only=True)
class MagCacheConfig(CalibratedConfig):
    """MagCache (arXiv 2506.09045): the residual over all blocks is reused while its modelled change is small.

    The change is known before the run from magnitude ratios, measured once a model. A calibration holds those of each
    branch; a step is computed as soon as one branch wants it. It is about steps: all samples of a batch decide alike.

    Memory of one branch: ``numel(hidden) * element_size`` bytes.

    Args:
        threshold: limit of the summed modelled error.
        max_skip: longest run of predicted steps.
        retention: share of the steps, from the first on, that are always computed.
        schedule: schedule file that ``diffcache calibrate`` wrote; has precedence over the next two.
        published: name of published ratios.
        ratios: measured ratios, one a step; has precedence over ``published``. Resampled for another number of steps.
    """

    method: ClassVar[str] = "magcache"
    summary: ClassVar[str] = "calibrated magnitude ratios decide ahead which steps are reused (MagCache)"
    numbers: ClassVar[dict[str, tuple[int | None, ...]]] = {"ratios": (None, STEPS)}

    warmup: int = 1
    max_skip: int = 3
    threshold: float = 0.12
    retention: float = 0.2
    published: str | None = None
    ratios: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.ratios, list):
            object.__setattr__(self, "ratios", tuple(self.ratios))
        super().__post_init__()

    def validate(self) -> None:
        super().validate()
        check_number("threshold", self.threshold, 0, math.inf, whole=False)
        check_number("retention", self.retention, 0, 1, whole=False)
        if self.published is not None and self.published not in RATIOS:
            raise ConfigError(f"published: {unknown('ratios', str(self.published), RATIOS)}")
        if not isinstance(self.ratios, tuple):
            raise ConfigError(f"ratios: {self.ratios!r} is not a list of ratios")
        for ratio in self.ratios:
            check_number("ratios", ratio, 0, NEVER, whole=False)

    def recipe(self) -> Recipe:
        ratios = self.ratios or (RATIOS[self.published] if self.published else ())
        if not ratios and self.needs_calibration:
            raise self.uncalibrated("ratios", "magnitude ratios", RATIOS)
        settings = (self.threshold, self.warmup, self.cooldown, self.max_skip, self.retention)
        recipe = Recipe(self.method, self, "body", lambda: MagCache(ratios or (1.0,), *settings), Taylor(0))
        return self.calibrate(recipe, lambda known: MagCache(known.numbers["ratios"].tolist(), *settings))


@dataclass(frozen=True, kw_only=True)
class EasyCacheConfig(MethodConfig):
    """EasyCache (arXiv 2507.02860): output minus input is reused while the output's expected change is small.

    Each sample of a batch is decided by itself (docs/batches.md). Memory of one branch: at most
    ``4 * numel(output) * element_size + 4 * batch`` bytes (difference, output and two inputs, one rate a sample).

    Args:
        threshold: limit of the summed expected relative change since the last computed step (0.05 is 5 %).
    """

    method: ClassVar[str] = "easycache"
    summary: ClassVar[str] = "the output's expected rate of change decides whether it is reused (EasyCache)"

    warmup: int = 5
    max_skip: int = 64
    threshold: float = 0.05

    def validate(self) -> None:
        check_number("threshold", self.threshold, 0, math.inf, whole=False)

    def recipe(self) -> Recipe:
        warmup = max(self.warmup, 2)
        return Recipe(
            self.method,
            self,
            "output",
            lambda: EasyCache(self.threshold, warmup, self.cooldown, self.max_skip),
            Taylor(0),
            signal="rate",
        )
