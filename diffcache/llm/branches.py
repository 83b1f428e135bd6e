"""Classifier-free guidance: every sequence a second time, without its prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .state import SequenceState

_OF_EACH = ("masked", "open", "decoded_at", "end")


class Branches:
    """What policies and the runner see under guidance: the sequences ``[2B, N]``, then the same with masked prompts.

    All but the ids is alike in both, so that what is decoded and where is the same; keys, values and whatever else a
    policy keeps are of one row each, and no branch sees the other's.

    Args:
        state: the sequences ``[B, N]`` under way; decoders see them alone.
    """

    def __init__(self, state: SequenceState) -> None:
        self._state = state

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._state, name)
        return twice(value) if name in _OF_EACH else value

    @property
    def ids(self) -> Tensor:
        """``[2B, N]``."""
        state = self._state
        return torch.cat([state.ids, state.ids.masked_fill(state.positions < state.prompt_length, state.mask_id)])

    @property
    def padding(self) -> Tensor | None:
        """Bool ``[2B, N]``, or None."""
        return None if self._state.padding is None else twice(self._state.padding)


def twice(values: Tensor) -> Tensor:
    """``[2B, ...]``, once for each branch."""
    return torch.cat([values, values])


def guided(logits: Tensor, scale: float) -> Tensor:
    """``u + (scale + 1) * (l - u)`` ``[B, W, V]`` in fp32, from ``l`` and ``u`` ``[2B, W, V]`` (LLaDA's sampler)."""
    with_prompt, without = logits.float().chunk(2)
    return without + (scale + 1.0) * (with_prompt - without)
