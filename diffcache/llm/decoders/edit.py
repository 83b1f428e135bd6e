"""The decoder that may replace what it has decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...methods.checks import check_number
from .base import Choice, Sight, confidence
from .confidence import Threshold


@dataclass(frozen=True, kw_only=True)
class Edit(Threshold):
    """LLaDA2.1: commits at ``threshold``, and replaces a committed token of the block by a more likely other one.

    A replaced token is a changed one for every policy: its row is computed again, and it counts for FlashBlock.

    Args:
        edit: least probability of a token that replaces another.
        refine: most further steps after a block is full; they end when nothing is replaced.
    """

    name: ClassVar[str] = "edit"

    threshold: float = 0.7
    edit: float = 0.5
    refine: int = 16

    def validate(self) -> None:
        super().validate()
        check_number("edit", self.edit, 0, 1, whole=False)
        check_number("refine", self.refine, 0, 10_000, whole=True)

    @property
    def post_steps(self) -> int:
        return self.refine

    def choose(self, sight: Sight) -> Choice:
        logits, tokens = self.draft(sight)
        transfer = self.select(logits, tokens, sight.open, sight.budget) & sight.open
        edits = self._edits(sight, logits, tokens)
        return Choice(tokens, transfer | edits, edits)

    def _edits(self, sight: Sight, logits: Tensor, tokens: Tensor) -> Tensor:
        """Decoded positions of the block whose best token is another one, and likely enough."""
        state, positions = sight.state, sight.positions.expand_as(tokens)
        first = torch.ones_like(sight.open)
        first[:, 1:] = positions.diff(dim=1) != 0
        decoded = ~state.masked & (state.positions >= max(state.block[0], state.prompt_length))
        decoded = (decoded & (state.positions <= state.end)).gather(1, positions)
        other = tokens != state.ids.gather(1, positions)
        return decoded & other & first & (confidence(logits, tokens, decoded) > self.edit)
