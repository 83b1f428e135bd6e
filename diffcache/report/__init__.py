"""Methods measured on a model, beside dense, the same sampler with fewer steps, and the caches of other packages.

from diffcache import report

found = report.run("tiny-wan", methods="worldcache,taylorseer,diffusers:mag", seeds=8, out="out/report")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .baseline import Loss, losses
    from .data import Report, load_report
    from .metrics import Fidelity, fidelity
    from .running import render, run

__all__ = ["Fidelity", "Loss", "Report", "fidelity", "load_report", "losses", "render", "run"]

_FILES = {
    "Fidelity": "metrics",
    "fidelity": "metrics",
    "Report": "data",
    "load_report": "data",
    "Loss": "baseline",
    "losses": "baseline",
    "render": "running",
    "run": "running",
}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module 'diffcache.report' has no attribute '{name}'")
    return getattr(import_module(f".{_FILES[name]}", __name__), name)
