"""Models: three small trained ones that ship inside the package, and the hub models that diffcache knows by name."""

from __future__ import annotations

from .loading import ModelNotAvailableError, load_pipeline
from .registry import ZooEntry, list_models

__all__ = ["ModelNotAvailableError", "ZooEntry", "list_models", "load_pipeline"]
