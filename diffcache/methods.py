"""Methods by name: a small typed configuration each, and the recipe that it stands for."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import yaml

from .errors import ConfigError, ScheduleFileError, unknown
from .hooks.recipe import AXES, SITES, Recipe
from .predictors import Fit, Hermite, Heterogeneous, Horizon, Moments, Predictor, Taylor, Trend
from .predictors.hermite import HeterogeneousFit
from .predictors.scores import turning
from .schedules import (
    NEVER,
    ChaoticSkipping,
    Explicit,
    Guarded,
    Interval,
    PowerLaw,
    Schedule,
    chaotic_drift,
    relative_drift,
)

PREDICTORS: dict[str, Callable[[int], Predictor]] = {
    "reuse": lambda order: Taylor(0),
    "linear": lambda order: Taylor(1),
    "taylor": Taylor,
    "hermite": lambda order: Hermite(),
    "heterogeneous": lambda order: Heterogeneous(),
    "trend": lambda order: Trend(),
}


# -- validation --------------------------------------------------------------------------------------------------------


def _check_number(name: str, value: Any, low: float, high: float, whole: bool) -> None:
    kind = "a whole number" if whole else "a number"
    wanted = f"{kind} from {low:g} to {high:g}" if high < NEVER else f"{kind} >= {low:g}"
    good = isinstance(value, int) if whole else isinstance(value, (int, float))
    if isinstance(value, bool) or not good or not low <= value <= high:
        raise ConfigError(f"{name}: {value!r} is out of range, must be {wanted}")


def _check_choice(name: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigError(f"{name}: {unknown('value', str(value), known)}")


# -- configurations ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """What every method has.

    Args:
        warmup: first steps that are always computed.
        cooldown: last steps that are always computed.
        max_skip: longest run of predicted steps; 0 never skips.
    """

    method: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    warmup: int = 3
    cooldown: int = 1
    max_skip: int = 8

    def __post_init__(self) -> None:
        for name in ("warmup", "cooldown", "max_skip"):
            _check_number(name, getattr(self, name), 0, NEVER, whole=True)
        self.validate()

    def validate(self) -> None:
        """Check the fields that the subclass adds; raises ConfigError with field, value and what would be right."""

    def recipe(self) -> Recipe:
        """The site, schedule and predictor of this configuration."""
        raise NotImplementedError

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

    def _warmup(self, predictor: Predictor) -> int:
        # With fewer computed outputs than the predictor needs, every step is computed anyway.
        return max(self.warmup, predictor.least)


@dataclass(frozen=True, kw_only=True)
class NoneConfig(MethodConfig):
    """Never skips: the hooks are on and every step is computed. The control for overhead and for exactness."""

    method: ClassVar[str] = "none"
    summary: ClassVar[str] = "computes every step (control)"

    max_skip: int = 0

    def recipe(self) -> Recipe:
        return Recipe(self.method, self, "output", lambda: Schedule(max_skip=0), Taylor(0))


@dataclass(frozen=True, kw_only=True)
class ForecastConfig(MethodConfig):
    """What the methods with a placed schedule share: which value is cached and how it is predicted.

    Memory of one branch: ``depth * numel(value) * element_size + 8 * batch`` bytes, where the value is the output or
    the body's residual and depth is 1 for ``reuse``, order + 1 for ``linear`` and ``taylor``, 3 for ``hermite``,
    ``heterogeneous`` and ``trend``; ``heterogeneous`` adds 12 bytes a token and ``trend`` 4.

    Args:
        predictor: ``reuse``, ``linear``, ``taylor``, ``hermite``, ``heterogeneous`` or ``trend``.
        order: degree of ``taylor``, 0 to 4.
        site: ``output`` or ``body``.
        axis: time axis of the predictor: ``index``, ``sigma`` or ``logsnr``.
    """

    max_skip: int = 64
    predictor: str = "trend"
    order: int = 1
    site: str = "output"
    axis: str = "index"

    def validate(self) -> None:
        _check_choice("predictor", self.predictor, list(PREDICTORS))
        _check_choice("site", self.site, SITES)
        _check_choice("axis", self.axis, AXES)
        _check_number("order", self.order, 0, 4, whole=True)

    def schedule(self, warmup: int) -> Schedule:
        """A new schedule; ``warmup`` is at least what the predictor needs."""
        raise NotImplementedError

    def recipe(self) -> Recipe:
        predictor = PREDICTORS[self.predictor](self.order)
        warmup = self._warmup(predictor)
        limit = max(min(self.max_skip, self.run_length()), 1)
        return Recipe(
            self.method, self, self.site, lambda: self.schedule(warmup), predictor, axis=self.axis, limit=limit
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
        _check_number("interval", self.interval, 1, NEVER, whole=True)

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
        if isinstance(self.steps, (list, tuple)):
            object.__setattr__(self, "steps", tuple(self.steps))
        super().__post_init__()

    def validate(self) -> None:
        super().validate()
        if not isinstance(self.steps, tuple):
            raise ConfigError(f"steps: {self.steps!r} is not a list of step indices")
        for step in self.steps:
            _check_number("steps", step, 0, NEVER, whole=True)

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
        _check_computed(self.computed)
        _check_number("alpha", self.alpha, 0.1, 10, whole=False)

    def schedule(self, warmup: int) -> Schedule:
        return PowerLaw(self.computed, self.alpha, warmup, self.cooldown, self.max_skip)


def _check_computed(value: Any) -> None:
    _check_number("computed", value, 0, NEVER, whole=False)
    if value == 0 or (value >= 1 and value != int(value)):
        raise ConfigError(f"computed: {value!r} is out of range, must be a whole number >= 1 or a share in (0, 1)")


@dataclass(frozen=True, kw_only=True)
class WorldCacheConfig(MethodConfig):
    """WorldCache (arXiv 2603.06331) with measured prediction; ``faithful=True`` is the paper's released behaviour.

    Default: power-law placement of ``computed`` steps, the measured damped trend per token as predictor, and the
    drift, calibrated by the true error of past predictions, as a guard that computes earlier where needed.

    Faithful: per token reuse / linear / Hermite blend by curvature quantiles, and chaotic-prioritised adaptive
    skipping. ``computed`` and ``alpha`` have no effect there; warmup 10, max_skip 2, threshold 0.2 are its defaults.

    Memory of one branch: ``3 * numel(output) * element_size + 4 * tokens * modalities + 8 * batch * modalities``
    bytes (three outputs, one fp32 ratio a token, two variances a sample); faithful: ``12 * tokens * modalities`` in
    place of ``4 * tokens * modalities``.

    Args:
        warmup: first steps computed (None: 3, faithful 10).
        cooldown: last steps computed (None: 1).
        max_skip: longest run of predicted steps (None: 8, faithful 2).
        computed: number of computed steps (>= 1) or their share (in (0, 1)), before the guard adds any.
        alpha: exponent of the placement.
        threshold: None: 0.3, faithful 0.2. Default: largest relative error that a prediction may be expected to
            have (RMS over RMS); ``inf`` switches the guard off. Faithful: eta in the released code's units.
        share: how far a token's damping is pulled towards its sample's (see Trend).
        stable, chaotic: quantiles of the faithful grouping, 0 <= stable <= chaotic <= 1.
        axis: time axis of the predictor (faithful: always ``index``).
        modalities: channel widths of stacked modalities, e.g. (16, 16, 24) for Aether's RGB, depth and raymap.
        faithful: reproduce the released method.
    """

    method: ClassVar[str] = "worldcache"
    summary: ClassVar[str] = "measured per-token prediction, power-law placement, drift guard (default)"
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
    share: float = 1.0
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
        _check_computed(self.computed)
        _check_number("alpha", self.alpha, 0.1, 10, whole=False)
        _check_number("threshold", self.threshold, 0, math.inf, whole=False)
        _check_number("share", self.share, 0, math.inf, whole=False)
        _check_number("stable", self.stable, 0, 1, whole=False)
        _check_number("chaotic", self.chaotic, 0, 1, whole=False)
        if self.stable > self.chaotic:
            raise ConfigError(f"stable: {self.stable} is out of range, must be <= chaotic ({self.chaotic})")
        _check_choice("axis", self.axis, AXES)
        if not isinstance(self.modalities, tuple):
            raise ConfigError(f"modalities: {self.modalities!r} is not a list of channel widths")
        for width in self.modalities:
            _check_number("modalities", width, 1, NEVER, whole=True)

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
        predictor = Trend(self.share)
        warmup = self._warmup(predictor)
        return Recipe(
            self.method,
            self,
            "output",
            lambda: Guarded(self.computed, self.alpha, self.threshold, warmup, self.cooldown, self.max_skip),
            predictor,
            drift=_turning_drift if self.threshold < math.inf else None,
            axis=self.axis,
            limit=max(self.max_skip, 1),
            modalities=self.modalities,
        )


_DEFAULTS: dict[str, Any] = dict(warmup=3, cooldown=1, max_skip=8, threshold=0.3)


def _released_drift(fit: Fit, moments: Sequence[Moments], slopes: Sequence[Any], horizon: Horizon) -> Any:
    assert isinstance(fit, HeterogeneousFit)
    blended = [fit.chaotic_slopes(horizon) for _ in moments]
    return chaotic_drift(moments, blended, fit.scores, fit.chaotic)


def _turning_drift(fit: Fit, moments: Sequence[Moments], slopes: Sequence[Any], horizon: Horizon) -> Any:
    return relative_drift(moments, slopes, [turning(m) for m in moments])


_METHODS: dict[str, type[MethodConfig]] = {
    config.method: config for config in (WorldCacheConfig, PowerLawConfig, IntervalConfig, StepsConfig, NoneConfig)
}


# -- by name -----------------------------------------------------------------------------------------------------------


def list_methods() -> dict[str, type[MethodConfig]]:
    """Every method's name and configuration class."""
    return dict(_METHODS)


def make_config(method: str | MethodConfig | Path, **overrides: Any) -> MethodConfig:
    """A validated configuration.

    Args:
        method: a name (``worldcache``), a name with settings (``worldcache:aether``, ``interval:interval=4``), a
            configuration object, or a path to ``.yaml`` or ``.json``.
        overrides: fields to set; ``preset`` names a preset of the method.

    Raises:
        ConfigError: unknown name or field (the closest known one is named), or a value out of range.
        ScheduleFileError: the file cannot be read as a configuration.
    """
    if isinstance(method, MethodConfig):
        return _build(type(method), {**_values(method), **overrides})
    if not isinstance(method, (str, Path)):
        raise ConfigError(f"method: {method!r} is not a name, a configuration or a path")
    if isinstance(method, Path) or Path(method).suffix in (".yaml", ".yml", ".json"):
        return load_config(method, **overrides)
    name, _, settings = method.partition(":")
    if name not in _METHODS:
        raise ConfigError(unknown("method", name, _METHODS))
    return _build(_METHODS[name], {**parse_settings(settings), **overrides})


def load_config(path: str | Path, **overrides: Any) -> MethodConfig:
    """Read a configuration that :meth:`MethodConfig.save` wrote, or that was written by hand."""
    try:
        text = Path(path).read_text()
        data = json.loads(text) if Path(path).suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise ScheduleFileError(f"{path}: {error.strerror or error}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ScheduleFileError(f"{path}: not readable as {Path(path).suffix[1:].upper()}") from error
    if not isinstance(data, dict) or "method" not in data:
        raise ScheduleFileError(f"{path}: no field 'method'; a configuration names its method")
    name = data.pop("method")
    if not isinstance(name, str) or name not in _METHODS:
        raise ConfigError(f"{path}: {unknown('method', str(name), _METHODS)}")
    return _build(_METHODS[name], {**data, **overrides})


def parse_settings(text: str) -> dict[str, Any]:
    """``"max_skip=6,threshold=0.1"`` or a preset's name, as fields; values are read as YAML."""
    settings: dict[str, Any] = {}
    for part in filter(None, re.split(r",(?![^\[]*\])", text)):  # commas inside a list belong to its value
        key, equals, value = part.partition("=")
        if not equals:
            settings["preset"] = key.strip()
        else:
            settings[key.strip()] = read_value(key.strip(), value)
    return settings


def read_value(key: str, text: str) -> Any:
    """A field's value as typed by a user, read as YAML; raises ConfigError that names the field."""
    try:
        return float("inf") if text.strip() == "inf" else yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: '{text}' is not a value") from error


def _values(config: MethodConfig) -> dict[str, Any]:
    return {f.name: getattr(config, f.name) for f in fields(config)}


def _build(cls: type[MethodConfig], values: dict[str, Any]) -> MethodConfig:
    preset = values.pop("preset", None)
    if preset is not None:
        if preset not in cls.presets:
            known = ", ".join(cls.presets) or "none"
            raise ConfigError(f"preset: {cls.method} has no preset '{preset}', known: {known}")
        values = {**cls.presets[preset], **values}
    known = [f.name for f in fields(cls)]
    for name in values:
        if name not in known:
            raise ConfigError(f"{cls.method}: {unknown('field', str(name), known)}")
    return cls(**values)
