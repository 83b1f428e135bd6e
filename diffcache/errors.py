"""The exceptions that diffcache raises, and the warnings that it gives."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class UnsupportedModelError(TypeError):
    """The object has no denoiser that diffcache can attach to, or the denoiser lacks the wanted site."""


class ScheduleFileError(ValueError):
    """A schedule or configuration file cannot be read, or was made for another model, step count or sampler."""


class ConfigError(ValueError):
    """A method name, a field or a value is not valid; the message names it and what would be right."""


class OutOfReachError(ConfigError):
    """A target that nothing that was measured on the model reaches."""


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


def calibrate_command(method: str, steps: int | None = None, more: str = "", out: str = "FILE.safetensors") -> str:
    """What measures a method's numbers; for a model that the reader knows.

    >>> calibrate_command("magcache", 30)
    'diffcache calibrate --model MODEL --method magcache --steps 30 --out FILE.safetensors'
    """
    parts = (f"--method {method}", "" if steps is None else f"--steps {steps}", more, f"--out {out}")
    return " ".join(filter(None, ("diffcache calibrate --model MODEL", *parts)))


def with_model(text: str, model: str, steps: int | None = None) -> str:
    """A message in which :func:`calibrate_command` is for a model, and for a number of steps if that is known.

    >>> with_model(calibrate_command("magcache"), "tiny-wan", 30)
    'diffcache calibrate --model tiny-wan --steps 30 --method magcache --out FILE.safetensors'
    """
    named = f"diffcache calibrate --model {model}"
    if steps is not None:
        text, named = re.sub(r" --steps \d+", "", text), f"{named} --steps {steps}"
    return text.replace("diffcache calibrate --model MODEL", named)
