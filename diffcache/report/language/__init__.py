"""Methods for diffusion language models measured on problems: who is faster, who stays right, who is only faster.

from diffcache.report.language import run

found = run("tiny-llada", methods="freecache,fast-dllm:dual", problems=40, out="out/report-tiny-llada")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .baseline import text_losses
    from .data import TextReport
    from .running import run

__all__ = ["TextReport", "run", "text_losses"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    files = {"TextReport": "data", "run": "running", "text_losses": "baseline"}
    if name not in files:
        raise AttributeError(f"module 'diffcache.report.language' has no attribute '{name}'")
    return getattr(import_module(f".{files[name]}", __name__), name)
