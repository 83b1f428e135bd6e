"""``worldcache``: the default method, and the paper's released behaviour."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from ..errors import ConfigError
from ..hooks.recipe import AXES, LAYOUTS, Recipe
from ..predictors import Fit, Heterogeneous, Horizon, Moments, SampleTrend, Totals, Trend
from ..predictors.base import Slope
from ..predictors.hermite import HeterogeneousFit
from ..schedules import NEVER, ChaoticSkipping, Guarded, chaotic_drift, sample_drift, turning_drift
from ..schedules.selectors import Selector
from .base import MethodConfig
from .checks import check_as_it_is, check_choice, check_number
from .forecast import check_computed


@dataclass(frozen=True, kw_only=True)
class WorldCacheConfig(MethodConfig):
    """WorldCache (arXiv 2603.06331) with measured prediction; ``faithful=True`` is the paper's released behaviour.

    Default: power-law placement of ``computed`` steps, the measured damped trend per sample as predictor, and the
    drift, calibrated by the true error of past predictions, as a guard that computes earlier where needed.

    Faithful: per token reuse / linear / Hermite blend by curvature quantiles, and chaotic-prioritised adaptive
    skipping. ``computed`` and ``alpha`` have no effect there; warmup 10, max_skip 2, threshold 0.2 are its defaults.

    The samples of a batch share the times of their history: a step is computed for all of them, and the guard hears the
    worst.

    Memory of one branch: ``3 * numel(output) * element_size`` bytes. A finite ``share`` adds ``4 * tokens *
    modalities`` (one fp32 ratio a token) and with feedback ``12 * batch * modalities``; faithful adds ``12 * tokens *
    modalities``. A token is a patch of the output where the model unpatchifies it.

    Args:
        warmup: first steps computed (None: 3, faithful 10).
        cooldown: last steps computed (None: 1).
        max_skip: longest run of predicted steps (None: 8, faithful 2).
        computed: number of computed steps (>= 1) or their share (in (0, 1)), before the guard adds any.
        alpha: exponent of the placement.
        threshold: None: 0.5, faithful 0.2. Default: largest relative error that a prediction may be expected to
            have (RMS over RMS); ``inf`` switches the guard off. Faithful: eta in the released code's units.
        share: how far a token's damping is pulled towards its sample's (see Trend); ``inf`` measures one a sample,
            which is as good on the shipped models (docs/predictors.md) and costs less.
        feedback: measure at each computed step how far the damping held, per sample, and lean towards a straight line
            where it did not.
        stable, chaotic: quantiles of the faithful grouping, 0 <= stable <= chaotic <= 1.
        axis: time axis of the predictor (faithful: always ``index``).
        modalities: channel widths of stacked modalities, e.g. (16, 16, 24) for Aether's RGB, depth and raymap.
        faithful: reproduce the released method.
    """

    method: ClassVar[str] = "worldcache"
    summary: ClassVar[str] = "measured prediction, power-law placement, drift guard (default)"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "aether": dict(faithful=True, warmup=10, max_skip=2, threshold=0.2, stable=0.3, chaotic=0.6),
        "voyager": dict(faithful=True, warmup=5, max_skip=6, threshold=1.0, stable=0.3, chaotic=0.6),
    }

    warmup: int = None  # type: ignore[assignment]
    cooldown: int = None  # type: ignore[assignment]
    max_skip: int = None  # type: ignore[assignment]
    computed: float = 0.4
    alpha: float = 1.5
    threshold: float = None  # type: ignore[assignment]
    share: float = math.inf
    feedback: bool = True
    stable: float = 0.3
    chaotic: float = 0.6
    axis: str = "index"
    modalities: tuple[int, ...] = ()
    faithful: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.faithful, bool):
            raise ConfigError(f"faithful: {self.faithful!r} is out of range, must be true or false")
        defaults = dict(warmup=10, cooldown=1, max_skip=2, threshold=0.2) if self.faithful else _DEFAULTS
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if isinstance(self.modalities, list):
            object.__setattr__(self, "modalities", tuple(self.modalities))
        super().__post_init__()

    def validate(self) -> None:
        check_computed(self.computed)
        check_number("alpha", self.alpha, 0.1, 10, whole=False)
        check_number("threshold", self.threshold, 0, math.inf, whole=False)
        check_number("share", self.share, 0, math.inf, whole=False)
        if not isinstance(self.feedback, bool):
            raise ConfigError(f"feedback: {self.feedback!r} is out of range, must be true or false")
        check_number("stable", self.stable, 0, 1, whole=False)
        check_number("chaotic", self.chaotic, 0, 1, whole=False)
        if self.stable > self.chaotic:
            raise ConfigError(f"stable: {self.stable} is out of range, must be <= chaotic ({self.chaotic})")
        check_choice("axis", self.axis, AXES)
        if not isinstance(self.modalities, tuple):
            raise ConfigError(f"modalities: {self.modalities!r} is not a list of channel widths")
        for width in self.modalities:
            check_number("modalities", width, 1, NEVER, whole=True)

    def recipe(self) -> Recipe:
        return self._faithful_recipe() if self.faithful else self._recipe()

    def _faithful_recipe(self) -> Recipe:
        predictor = Heterogeneous(self.stable, self.chaotic)
        warmup = self._warmup(predictor)
        return Recipe(
            self.method,
            self,
            "output",
            lambda: ChaoticSkipping(self.threshold, warmup, self.max_skip, self.cooldown),
            predictor,
            drift=_released_drift,
            limit=max(self.max_skip, 1),
            modalities=self.modalities,
        )

    def _recipe(self) -> Recipe:
        hosted = self.share == math.inf and self.feedback
        predictor = SampleTrend() if hosted else Trend(self.share, self.feedback)
        warmup = self._warmup(predictor)
        return Recipe(
            self.method,
            self,
            "output",
            lambda: Guarded(self.computed, self.alpha, self.threshold, warmup, self.cooldown, self.max_skip),
            predictor,
            drift=(_sample_drift if hosted else _turning_drift) if self.threshold < math.inf else None,
            axis=self.axis,
            limit=max(self.max_skip, 1),
            modalities=self.modalities,
        )


@dataclass(frozen=True, kw_only=True)
class WorldCachePartialConfig(WorldCacheConfig):
    """``worldcache`` whose predicted steps recompute the tokens that are hardest to predict (ours).

    Of a step that is not computed in full, ``keep`` of the tokens run through every block; their part of the output is
    computed, that of the others predicted, and what a computed token showed to be wrong with its prediction is added to
    the following ones. Memory of one branch: that of ``worldcache`` and of ``toca``, and one output.

    Args:
        keep: share of the tokens that a predicted step recomputes, in [0, 1].
        score: what tokens are ranked by: ``turning`` (how far the velocity of their output turned), ``input`` (how far
            their hidden state moved), ``value`` or ``random``.
        age_weight, oldest, bonus, window, layout: as for ``toca``.
        blend: a recomputed token has seen stale keys of the others, and its prediction has not: its output is taken at
            the weight ``keep ** blend``, the rest from its prediction, whose error has another cause. 0 takes it whole.
    """

    method: ClassVar[str] = "worldcache-partial"
    summary: ClassVar[str] = "worldcache whose predicted steps recompute the hardest tokens"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    keep: float = 0.25
    score: str = "input"
    age_weight: float = 0.0
    oldest: int = 0
    bonus: float = 0.0
    window: int = 2
    layout: str = LAYOUTS[0]
    blend: float = 0.3

    def validate(self) -> None:
        super().validate()
        check_as_it_is(self)
        if self.faithful:
            raise ConfigError("faithful: True is out of range, must be False: the paper recomputes no token")
        check_number("keep", self.keep, 0, 1, whole=False)
        check_choice("score", self.score, ["turning", "input", "value", "random"])
        check_number("age_weight", self.age_weight, 0, 1e6, whole=False)
        check_number("oldest", self.oldest, 0, NEVER, whole=True)
        check_number("bonus", self.bonus, 0, 1e6, whole=False)
        check_number("window", self.window, 2, NEVER, whole=True)
        check_choice("layout", self.layout, LAYOUTS)
        check_number("blend", self.blend, 0, 10, whole=False)

    def recipe(self) -> Recipe:
        selector = Selector(self.score, self.age_weight, self.oldest, self.bonus, self.window)
        tokens = dict(selector=selector, keep=lambda offset, depth, kind: self.keep, blend=self.blend)
        return replace(self._recipe(), **tokens)


_DEFAULTS: dict[str, Any] = dict(warmup=3, cooldown=1, max_skip=8, threshold=0.5)


def _released_drift(fit: Fit, moments: Moments, slopes: tuple[Slope, ...], horizon: Horizon) -> Tensor:
    assert isinstance(fit, HeterogeneousFit)
    return chaotic_drift(moments, fit.chaotic_slopes(horizon), fit.score, fit.chaotic)


def _turning_drift(fit: Fit, moments: Moments, slopes: tuple[Slope, ...], horizon: Horizon) -> Tensor:
    return turning_drift(moments, slopes)


def _sample_drift(fit: Fit, known: Totals, slopes: list[list[float]], horizon: None) -> list[float]:
    return sample_drift(known, slopes)
