"""Diffusion language models: steps that compute only the rows they need."""

from .decoders import DECODERS, Decoder, EntropyBound, Factor, Threshold, TopK, make_decoder
from .driver import Generation, generate
from .families import FAMILIES, Facts, declare, read_facts
from .handle import LanguageHandle, custom_generate
from .stats import GenerationStats

__all__ = [
    "DECODERS",
    "FAMILIES",
    "Decoder",
    "EntropyBound",
    "Factor",
    "Facts",
    "Generation",
    "GenerationStats",
    "LanguageHandle",
    "Threshold",
    "TopK",
    "custom_generate",
    "declare",
    "generate",
    "make_decoder",
    "read_facts",
]
