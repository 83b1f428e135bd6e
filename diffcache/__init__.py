"""diffcache: diffusion models sample faster when what barely changes is predicted instead of computed."""

from .errors import ConfigError, NothingSkippedWarning, ScheduleFileError, UnsupportedModelError
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
    "ConfigError",
    "NothingSkippedWarning",
    "ScheduleFileError",
    "Support",
    "UnsupportedModelError",
    "accelerate_model",
    "accelerate_pipeline",
    "accelerated",
    "denoising",
    "list_methods",
    "list_models",
    "restore",
    "supports",
]
