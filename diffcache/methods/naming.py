"""A method with its settings as a user writes it, for titles and rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .base import NamedConfig

#: fields that are paths
_FILES = ("schedule", "heads")


def named(method: str, settings: Mapping[str, Any]) -> str:
    """The method with its settings, a preset first.

    >>> named("fast-dllm", {"every": 4, "preset": "prefix"})
    'fast-dllm:prefix,every=4'
    """
    given = [settings["preset"]] if settings.get("preset") else []
    given += [f"{key}={_word(value)}" for key, value in settings.items() if key != "preset"]
    return method + (":" + ",".join(given) if given else "")


def changed(config: NamedConfig) -> dict[str, Any]:
    """The fields that differ from the defaults."""
    return _differing(config, type(config)())


def label(config: NamedConfig) -> str:
    """The method with its preset, where it is one of them, and else with :func:`changed`; files without folders."""
    for preset, fields in config.presets.items():
        if not _differing(config, type(config)(**fields)):
            return named(config.method, {"preset": preset})
    fields = changed(config)
    return named(config.method, {k: Path(v).name if k in _FILES else v for k, v in fields.items()})


def _differing(config: NamedConfig, other: NamedConfig) -> dict[str, Any]:
    plain = other.to_dict()
    return {key: value for key, value in config.to_dict().items() if plain.get(key) != value}


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
