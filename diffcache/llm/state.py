"""The sequences under way: ids, what is still masked, and when it was decoded."""

from __future__ import annotations

import torch
from torch import Tensor


class SequenceState:
    """Of one generation.

    Args:
        prompt: ids ``[B, P]``.
        length: positions in all, N.
        mask_id: the mask token.
        eos_id: the end token; positions behind the first one that was decoded are not decoded any more.
        padding: bool ``[B, P]``, True at real tokens, or None.

    Attributes:
        ids: ``[B, N]``.
        masked: bool ``[B, N]``, still to be decoded, whatever stands before.
        decoded_at: int ``[B, N]``, step of the generation at which it was decoded; prompt -2, masked a large number.
        step, block_step: steps done, in all and in the block.
        block: ``(start, stop)`` of the block under way.
    """

    NEVER = 2**30

    def __init__(
        self, prompt: Tensor, length: int, mask_id: int, eos_id: int | None = None, padding: Tensor | None = None
    ) -> None:
        batch, self.prompt_length = prompt.shape
        self.length, self.mask_id, self.eos_id = length, mask_id, eos_id
        self.ids = torch.full((batch, length), mask_id, dtype=torch.long, device=prompt.device)
        self.ids[:, : self.prompt_length] = prompt
        self.positions = torch.arange(length, device=prompt.device)
        self.masked = (self.positions >= self.prompt_length).expand(batch, -1).clone()
        self.decoded_at = torch.where(self.masked, self.NEVER, -2)
        self.end = torch.full((batch, 1), length, dtype=torch.long, device=prompt.device)
        self.step = self.block_step = 0
        self.block = (self.prompt_length, length)
        self.padding = None
        if padding is not None:
            self.padding = torch.ones_like(self.masked)
            self.padding[:, : self.prompt_length] = padding

    @property
    def open(self) -> Tensor:
        """Bool ``[B, N]``: masked, and not behind an end token."""
        return self.masked & (self.positions < self.end)

    def write(self, positions: Tensor, tokens: Tensor, transfer: Tensor) -> None:
        """Decode: ``tokens`` ``[B, W]`` go to ``positions`` ``[B or 1, W]`` where ``transfer`` is True.

        Positions may repeat (padded rows), but ``transfer`` is True at one of the repeats at most.
        """
        new = torch.full_like(self.ids, -1)
        new.scatter_reduce_(1, positions.expand_as(tokens), torch.where(transfer, tokens, -1), "amax")
        now = new >= 0
        self.ids = torch.where(now, new, self.ids)
        self.masked &= ~now
        self.decoded_at.masked_fill_(now, self.step)
        if self.eos_id is not None:
            ends = (self.ids == self.eos_id) & (self.positions >= self.prompt_length) & ~self.masked
            self.end = torch.where(ends, self.positions, self.length).amin(1, keepdim=True)

    def finished_ids(self) -> Tensor:
        """``ids`` with the end token behind the first one; a position that was never decoded is the end token, too."""
        if self.eos_id is None:
            return self.ids
        return torch.where((self.positions > self.end) | self.masked, self.eos_id, self.ids)
