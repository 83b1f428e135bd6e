"""Methods by name, from text and from files."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..errors import ConfigError, ScheduleFileError, unknown
from ..plugins import load_plugins
from .auto import AutoConfig
from .base import NamedConfig, NoneConfig
from .checks import check_choice
from .drift import EasyCacheConfig, FBCacheConfig, MagCacheConfig, TeaCacheConfig
from .exact import ExactConfig
from .forecast import IntervalConfig, PowerLawConfig, StepsConfig
from .language import (
    D2CacheConfig,
    DKVConfig,
    DLLMCacheConfig,
    ElasticConfig,
    FastDLLMConfig,
    FlashBlockConfig,
    FreeCacheConfig,
    SparseConfig,
    VanillaConfig,
    WindowConfig,
)
from .module import ForaConfig, HiCacheConfig, PABConfig, TaylorSeerConfig
from .sparse import DiffSparseConfig
from .token import DuCaConfig, ToCaConfig
from .worldcache import WorldCacheConfig, WorldCachePartialConfig

_BUILT_IN: dict[str, type[NamedConfig]] = {
    config.method: config
    for config in (
        WorldCacheConfig,
        AutoConfig,
        PowerLawConfig,
        IntervalConfig,
        StepsConfig,
        ForaConfig,
        TaylorSeerConfig,
        HiCacheConfig,
        PABConfig,
        ToCaConfig,
        DuCaConfig,
        DiffSparseConfig,
        WorldCachePartialConfig,
        FBCacheConfig,
        TeaCacheConfig,
        MagCacheConfig,
        EasyCacheConfig,
        ExactConfig,
        NoneConfig,
        VanillaConfig,
        FreeCacheConfig,
        FastDLLMConfig,
        ElasticConfig,
        WindowConfig,
        FlashBlockConfig,
        DKVConfig,
        DLLMCacheConfig,
        SparseConfig,
        D2CacheConfig,
    )
}


KINDS = ("denoiser", "language")

PLUGINS = "diffcache.methods"
"""Entry point group: a distribution that names a configuration class there adds a method."""


def list_methods(kind: str | None = None) -> dict[str, type[NamedConfig]]:
    """Every method's name and configuration class: built in, then those of installed plugins.

    Args:
        kind: only those that work on a ``denoiser``, or on a diffusion ``language`` model. None: all.

    Raises:
        ConfigError: unknown kind.
    """
    if kind is not None:
        check_choice("kind", kind, KINDS)
    return {name: config for name, config in {**_plugins(), **_BUILT_IN}.items() if kind in (None, config.kind)}


@cache
def _plugins() -> dict[str, type[NamedConfig]]:
    return load_plugins(PLUGINS, "method", "MethodConfig", _is_method)


def _is_method(plugin: Any, name: str) -> bool:
    return isinstance(plugin, type) and issubclass(plugin, NamedConfig) and plugin.method == name


def make_config(method: str | NamedConfig | Path, **overrides: Any) -> NamedConfig:
    """A validated configuration.

    Args:
        method: a name (``worldcache``), a name with settings (``worldcache:aether``, ``interval:interval=4``), a
            configuration object, or a path to ``.yaml`` or ``.json``.
        overrides: fields to set; ``preset`` names a preset of the method.

    Raises:
        ConfigError: unknown name or field (the closest known one is named), or a value out of range.
        ScheduleFileError: the file cannot be read as a configuration.
    """
    if isinstance(method, NamedConfig):
        return _build(type(method), {**_values(method), **overrides})
    if not isinstance(method, (str, Path)):
        raise ConfigError(f"method: {method!r} is not a name, a configuration or a path")
    if isinstance(method, Path) or Path(method).suffix in (".yaml", ".yml", ".json"):
        return load_config(method, **overrides)
    name, _, settings = method.partition(":")
    methods = list_methods()
    if name not in methods:
        raise ConfigError(unknown("method", name, methods))
    return _build(methods[name], {**parse_settings(settings), **overrides})


def load_config(path: str | Path, **overrides: Any) -> NamedConfig:
    """Read a configuration that :meth:`NamedConfig.save` wrote, or that was written by hand."""
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
    methods = list_methods()
    if not isinstance(name, str) or name not in methods:
        raise ConfigError(f"{path}: {unknown('method', str(name), methods)}")
    return _build(methods[name], {**data, **overrides})


def parse_settings(text: str) -> dict[str, Any]:
    """``"max_skip=6,threshold=0.1"`` or a preset's name, as fields; values are read as YAML."""
    settings: dict[str, Any] = {}
    for part in filter(None, re.split(r",(?![^\[]*\])", text)):  # commas inside a list belong to its value
        key, equals, value = (each.strip() for each in part.partition("="))
        name, value = (key, read_value(key, value)) if equals else ("preset", key)
        put_once(settings, name, value)
    return settings


def put_once(settings: dict[str, Any], name: str, value: Any) -> None:
    """Sets a field; raises ConfigError where it has been set to something else."""
    if name in settings and settings[name] != value:
        raise ConfigError(f"{name}: given twice, as {settings[name]!r} and {value!r}, must be given once")
    settings[name] = value


def read_value(key: str, text: str) -> Any:
    """A field's value as typed by a user, read as YAML; raises ConfigError that names the field."""
    try:
        return float("inf") if text.strip() == "inf" else yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: '{text}' is not a value") from error


def _values(config: NamedConfig) -> dict[str, Any]:
    return {f.name: getattr(config, f.name) for f in fields(config)}


def _build(cls: type[NamedConfig], values: dict[str, Any]) -> NamedConfig:
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
    return cls(**{name: _plain(value) for name, value in values.items()})


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy as Python's own, so that they are checked and written like those."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value
