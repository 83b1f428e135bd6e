"""The exceptions that diffcache raises, and the warnings that it gives."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UnsupportedModelError(TypeError):
    """The object has no denoiser that diffcache can attach to, or the denoiser lacks the wanted site."""


class ScheduleFileError(ValueError):
    """A schedule or configuration file cannot be read, or was made for another model, step count or sampler."""


class ConfigError(ValueError):
    """A method name, a field or a value is not valid; the message names it and what would be right."""


class NothingSkippedWarning(UserWarning):
    """A method that may skip was on for a whole trajectory and computed every step."""


class CalibratingWarning(UserWarning):
    """A generation is computed in full because a method measures the model in it."""


class UncompiledWarning(UserWarning):
    """A compiled module runs uncompiled because the method caches something inside it."""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """One line for an unknown name: what it is, the closest known one first, then the rest.

    >>> unknown("method", "wordcache", ["none", "worldcache"])
    "unknown method 'wordcache': did you mean 'worldcache'? known: worldcache, none"
    """
    names = list(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    ordered = close + [n for n in names if n not in close]
    hint = f" did you mean '{close[0]}'?" if close else ""
    return f"unknown {kind} '{name}':{hint} known: {', '.join(ordered) or 'none'}"
