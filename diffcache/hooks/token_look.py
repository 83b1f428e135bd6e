"""What a block shows of its gates and norms where every token has its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .lessons import BlockLesson
from .look import Look
from .outputs import Template
from .selection import Place, Unfit
from .symbols import Meaning, Part, Symbol
from .token_passes import Call, Lesson, Memory


@dataclass
class TokenLook(Look):
    """Gates ``[B, N, D]``, or with one row where all tokens have the same, in the order of the stream."""

    def norm_of(self, tensor: Tensor) -> tuple[str, float] | None:
        return tensor.meaning.norm or ("stream", 0.0)

    def modulation(self, tensor: Tensor, place: Place, eps: float) -> tuple[Tensor | None, Tensor | None]:
        scale, shift = tensor.meaning.scale, tensor.meaning.shift
        return None if scale is None else _rows(scale).float() - 1.0, None if shift is None else _rows(shift)


def stream_of(tensor: Tensor, place: Place, tokens: int) -> Symbol:
    """The symbol of a stream."""
    return Symbol.of(tensor, Meaning(place, tokens))


def answer(call: Call, lesson: Lesson, held: Memory, tokens: int) -> Any:
    """What a unit returns to a block on symbols."""
    found = [
        old if place is None else Symbol.of(old, Meaning(place, tokens, False, {(call, number): None}))
        for number, (old, place) in enumerate(zip(held.results, lesson.results or [None] * len(held.results)))
    ]
    return held.template.rebuild(found)


def seen(
    lesson: BlockLesson, parts: Sequence[Part], calls: list[tuple[Any, ...]], results: tuple[list[Tensor], Template]
) -> TokenLook:
    """What a run on symbols has shown.

    Raises:
        Unfit: the block does not return its stream with all parts added.
    """
    end = results[0][lesson.result]
    meaning = end.meaning if isinstance(end, Symbol) else None
    if meaning is None or not meaning.stream or meaning.norm or meaning.gates.keys() != set(parts):
        raise Unfit("it does more than adding up results")
    width, ones = end.shape[2], torch.ones((), dtype=end.dtype, device=end.device)
    gates = {part: _rows(ones if gate is None else gate, width) for part, gate in meaning.gates.items()}
    return TokenLook({part: gates[part] for part in parts}, calls, results, {})


def _rows(value: Tensor, width: int | None = None) -> Tensor:
    """A modulation as kernels take it, ``[1 or B, 1 or N, D]``."""
    if value.dim() > 3:
        raise Unfit("its modulation has too many axes")
    value = value[(None,) * (3 - value.dim())]
    return value if width is None else value.expand(*value.shape[:2], width)
