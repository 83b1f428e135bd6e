"""From a diffusion language model to text: prompts, answers, the text as it unmasks, files of many prompts."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .answers import Answer, agreement
    from .prompts import Prompt
    from .session import TextSession, open_text

_FILES = {"Answer": "answers", "agreement": "answers", "Prompt": "prompts"}
_FILES |= {"TextSession": "session", "open_text": "session"}

__all__ = ["Answer", "Prompt", "TextSession", "agreement", "open_text"]


def __getattr__(name: str) -> Any:  # torch is loaded for what needs it, not for checking arguments
    if name not in _FILES:
        raise AttributeError(f"module 'diffcache.text' has no attribute '{name}'")
    return getattr(import_module(f".{_FILES[name]}", __name__), name)
