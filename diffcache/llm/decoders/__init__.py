"""Decoders: which masked positions take a token at this step."""

from .base import Choice, Decoder
from .confidence import Factor, Threshold, TopK
from .edit import Edit
from .entropy import EntropyBound
from .guided import Guided
from .registry import DECODERS, make_decoder

__all__ = [
    "DECODERS",
    "Choice",
    "Decoder",
    "Edit",
    "EntropyBound",
    "Factor",
    "Guided",
    "Threshold",
    "TopK",
    "make_decoder",
]
