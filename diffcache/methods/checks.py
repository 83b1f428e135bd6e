"""Checks of a configuration's fields: the message names the field, the value and what would be right."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite
from typing import Any

from ..errors import ConfigError, unknown
from ..schedules import NEVER
from ..sizes import read_size


def check_number(name: str, value: Any, low: float, high: float, whole: bool) -> None:
    """Raises ConfigError unless ``low <= value <= high``; NEVER as ``high`` is no limit, and inf lets inf pass."""
    kind = "a whole number" if whole else "a number" if high < NEVER or high == inf else "a finite number"
    wanted = f"{kind} from {low:g} to {high:g}" if high < NEVER else f"{kind} >= {low:g}"
    good = isinstance(value, int) if whole else isinstance(value, (int, float))
    if isinstance(value, bool) or not good or not low <= value <= high:
        raise ConfigError(f"{name}: {value!r} is out of range, must be {wanted}")


def check_finite(name: str, value: Any) -> None:
    """Raises ConfigError unless the value is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
        raise ConfigError(f"{name}: {value!r} is out of range, must be a finite number")


def check_choice(name: str, value: Any, known: Sequence[str]) -> None:
    """Raises ConfigError unless the value is one of the known ones."""
    if value not in known:
        raise ConfigError(f"{name}: {unknown('value', str(value), known)}")


def check_size(name: str, value: Any) -> None:
    """Raises ConfigError unless the value is None or reads as a size of memory."""
    if value is not None and read_size(value) is None:
        raise ConfigError(f"{name}: {value!r} is not a size, must be a number of bytes or like '200MB', '1.5GiB'")


def check_as_it_is(config: Any) -> None:
    """Partial steps write into what is cached, row by row: it cannot rest in another dtype or place."""
    for name in ("cache_dtype", "offload"):
        if getattr(config, name):
            raise ConfigError(
                f"{name}: {getattr(config, name)!r} is out of range, must be unset: {config.method} renews what it "
                "caches token by token"
            )
