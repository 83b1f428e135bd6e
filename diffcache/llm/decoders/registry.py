"""Decoders by name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ...errors import ConfigError, unknown
from ...methods.registry import parse_settings
from .base import Decoder
from .confidence import Factor, Threshold, TopK
from .edit import Edit
from .entropy import EntropyBound

DECODERS: dict[str, type[Decoder]] = {cls.name: cls for cls in (TopK, Threshold, Factor, EntropyBound, Edit)}


def make_decoder(decoder: str | Decoder, **settings: Any) -> Decoder:
    """A decoder from its name, with settings behind a colon (``threshold:threshold=0.8``) or not, or the one given.

    Raises:
        ConfigError: unknown name or setting, or a value out of range.
    """
    if isinstance(decoder, Decoder):
        if settings:
            raise ConfigError(f"{next(iter(settings))}: a decoder object has its settings already")
        return decoder
    decoder, _, written = str(decoder).partition(":")
    settings = {**parse_settings(written), **settings}
    if decoder not in DECODERS:
        raise ConfigError(unknown("decoder", decoder, DECODERS))
    cls = DECODERS[decoder]
    known = [f.name for f in fields(cls)]
    for name in settings:
        if name not in known:
            raise ConfigError(f"decoder {decoder}: {unknown('field', name, known)}")
    return cls(**settings)
