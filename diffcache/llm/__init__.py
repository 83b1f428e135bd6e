"""Diffusion language models: steps that compute only the rows they need."""

from .calibrating import calibrate_heads
from .decoders import DECODERS, Decoder, Edit, EntropyBound, Factor, Guided, Threshold, TopK, make_decoder
from .driver import Generation, generate
from .families import FAMILIES, Facts, declare, read_facts
from .handle import LanguageHandle, custom_generate
from .heads import HeadMask
from .stats import GenerationStats

__all__ = [
    "DECODERS",
    "FAMILIES",
    "Decoder",
    "Edit",
    "EntropyBound",
    "Factor",
    "Facts",
    "Generation",
    "GenerationStats",
    "Guided",
    "HeadMask",
    "LanguageHandle",
    "Threshold",
    "TopK",
    "calibrate_heads",
    "custom_generate",
    "declare",
    "generate",
    "make_decoder",
    "read_facts",
]
