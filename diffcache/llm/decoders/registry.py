"""Decoders by name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ...errors import ConfigError, unknown
from .base import Decoder
from .confidence import Factor, Threshold, TopK
from .edit import Edit
from .entropy import EntropyBound

DECODERS: dict[str, type[Decoder]] = {cls.name: cls for cls in (TopK, Threshold, Factor, EntropyBound, Edit)}


def make_decoder(decoder: str | Decoder, **settings: Any) -> Decoder:
    """A decoder from its name, or the one that is given.

    Raises:
        ConfigError: unknown name or setting, or a value out of range.
    """
    if isinstance(decoder, Decoder):
        if settings:
            raise ConfigError(f"{next(iter(settings))}: a decoder object has its settings already")
        return decoder
    if decoder not in DECODERS:
        raise ConfigError(unknown("decoder", str(decoder), DECODERS))
    cls = DECODERS[decoder]
    known = [f.name for f in fields(cls)]
    for name in settings:
        if name not in known:
            raise ConfigError(f"decoder {decoder}: {unknown('field', name, known)}")
    return cls(**settings)
