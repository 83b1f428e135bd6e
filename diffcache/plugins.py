"""Other installed distributions: what they add through entry points (docs/plugins.md), and their versions."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import Any


def version_of(distribution: str) -> str | None:
    """Its version, or None where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def load_plugins(group: str, kind: str, wanted: str, fits: Callable[[Any, str], bool]) -> dict[str, Any]:
    """The objects that installed distributions name in an entry point group, by name.

    Args:
        group: the entry point group.
        kind: what one of them is called in a warning.
        wanted: what it must be, for a warning.
        fits: (object, name) -> whether it is that.
    """
    found = {}
    for point in entry_points(group=group):
        try:
            plugin = point.load()
        except Exception as error:  # somebody else's code: whatever it is, the others must stay usable
            warnings.warn(f"{kind} {point.name}: its plugin cannot be loaded: {error}", stacklevel=2)
            continue
        if fits(plugin, point.name):
            found[point.name] = plugin
        else:
            warnings.warn(f"{kind} {point.name}: {point.value} is no {wanted} of that name", stacklevel=2)
    return found
