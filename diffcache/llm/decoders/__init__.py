"""Decoders: which masked positions take a token at this step."""

from .base import Choice, Decoder
from .confidence import Factor, Threshold, TopK
from .entropy import EntropyBound
from .registry import DECODERS, make_decoder

__all__ = ["DECODERS", "Choice", "Decoder", "EntropyBound", "Factor", "Threshold", "TopK", "make_decoder"]
