"""Models: small trained ones that ship inside the package, and the hub models that diffcache knows by name."""

from __future__ import annotations

from .language import LanguageEntry, find_language_model, is_language_model, list_language_models
from .language_loading import load_language_model
from .loading import ModelNotAvailableError, load_pipeline
from .problems import Problem, ProblemsNotAvailableError, draw_problems, load_problems
from .registry import ZooEntry, list_models

__all__ = [
    "LanguageEntry",
    "ModelNotAvailableError",
    "Problem",
    "ProblemsNotAvailableError",
    "ZooEntry",
    "draw_problems",
    "find_language_model",
    "is_language_model",
    "list_language_models",
    "list_models",
    "load_language_model",
    "load_pipeline",
    "load_problems",
]
