"""From a diffusion language model to text: prompts, answers, the text as it unmasks, files of many prompts."""

from .answers import Answer, agreement
from .prompts import Prompt
from .session import TextSession, open_text

__all__ = ["Answer", "Prompt", "TextSession", "agreement", "open_text"]
