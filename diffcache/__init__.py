"""diffcache: diffusion models sample faster when what barely changes is predicted instead of computed.

The public names, nothing else. They are loaded when first used, so that ``diffcache --help`` need not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import (
    CalibratingWarning,
    ConfigError,
    NothingSkippedWarning,
    ScheduleFileError,
    UncompiledWarning,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from .memory import MemoryEstimate, estimate_memory
    from .methods import list_methods
    from .pipeline import (
        Support,
        accelerate_model,
        accelerate_pipeline,
        accelerated,
        denoising,
        restore,
        supports,
    )
    from .zoo import list_models

__version__ = "0.1.0"

__all__ = [
    "CalibratingWarning",
    "ConfigError",
    "MemoryEstimate",
    "NothingSkippedWarning",
    "ScheduleFileError",
    "Support",
    "UncompiledWarning",
    "UnsupportedModelError",
    "accelerate_model",
    "accelerate_pipeline",
    "accelerated",
    "denoising",
    "estimate_memory",
    "list_methods",
    "list_models",
    "restore",
    "supports",
]

_ROOMS = {"MemoryEstimate": "memory", "estimate_memory": "memory", "list_methods": "methods", "list_models": "zoo"}


def __getattr__(name: str) -> Any:
    if name == "report":  # a room of its own: diffcache.report.run(...)
        return import_module(".report", __name__)
    if name not in __all__:
        raise AttributeError(f"module 'diffcache' has no attribute '{name}'")
    return getattr(import_module(f".{_ROOMS.get(name, 'pipeline')}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "report"])
