"""What every decoder does: tokens and confidences from logits, then its own rule for which ones hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...methods.checks import check_number
from ..state import SequenceState


@dataclass(frozen=True, eq=False)
class Choice:
    """Of one step.

    Attributes:
        tokens: ``[B, W]``.
        transfer: bool ``[B, W]``, True where the token is taken.
        edits: bool ``[B, W]``, those of them that replace a decoded token; None where a decoder never does.
    """

    tokens: Tensor
    transfer: Tensor
    edits: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Sight:
    """What a decoder sees of one step.

    Attributes:
        logits: ``[B, W, V]``.
        positions: ``[B or 1, W]``, ascending; a sample with fewer repeats its last one.
        open: bool ``[B, W]``, positions that may take a token; of repeated ones the first.
        budget: int ``[B, 1]``, tokens that this step should decode; 0 where the number of steps is free.
        state: the sequences.
        generator: of the noise.
    """

    logits: Tensor
    positions: Tensor
    open: Tensor
    budget: Tensor
    state: SequenceState
    generator: torch.Generator | None = None


@dataclass(frozen=True, kw_only=True)
class Decoder(ABC):
    """Frozen and without state; what changes from step to step comes with the call, or lives in what ``begin`` gives.

    Args:
        temperature: of Gumbel noise on the logits (LLaDA's sampler, in fp64); 0 takes the most likely token.
    """

    name: ClassVar[str] = ""

    temperature: float = 0.0

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, 0, 1e6, whole=False)
        self.validate()

    def validate(self) -> None:  # noqa: B027 - not all have more to check
        """Check the fields that the subclass adds."""

    @property
    def post_steps(self) -> int:
        """Most steps after a block is full, in which decoded tokens may still be replaced."""
        return 0

    def begin(self, state: SequenceState) -> Decoder:
        """The decoder of one generation."""
        return self

    def choose(self, sight: Sight) -> Choice:
        """Decide on the positions whose logits are given.

        Returns:
            Tokens, never the mask token, and a transfer that is within ``open``, with at least one position of each
            sample that has any.
        """
        logits, tokens = self.draft(sight)
        return Choice(tokens, self.select(logits, tokens, sight.open, sight.budget) & sight.open)

    def draft(self, sight: Sight) -> tuple[Tensor, Tensor]:
        """fp32 logits without the mask token, and the tokens they give."""
        logits = sight.logits.float()
        logits[..., sight.state.mask_id] = -torch.inf
        return logits, self._noisy(logits, sight.generator).argmax(-1)

    def _noisy(self, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.temperature == 0.0:
            return logits
        uniform = torch.rand(logits.shape, dtype=torch.float64, device=logits.device, generator=generator)
        return logits.double() - self.temperature * torch.log(-torch.log(uniform))

    @abstractmethod
    def select(self, logits: Tensor, tokens: Tensor, open: Tensor, budget: Tensor) -> Tensor:
        """The transfer ``[B, W]``, before it is cut to ``open``."""


def confidence(logits: Tensor, tokens: Tensor, open: Tensor) -> Tensor:
    """Probability of each token, fp32 ``[B, W]``; -1 where not open."""
    chosen = logits.gather(-1, tokens[..., None])[..., 0]
    return torch.where(open, torch.exp(chosen - logits.logsumexp(-1)), -1.0)


def ranks(scores: Tensor) -> Tensor:
    """0 for the largest score of each row, then 1, ...; equal scores keep their order."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return torch.empty_like(order).scatter_(
        -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
    )


def split_budget(count: Tensor, steps: int, step: int) -> Tensor:
    """Tokens of step ``step`` if ``count`` ``[B, 1]`` are shared out over ``steps``; the first ones take the rest.

    >>> [int(split_budget(torch.tensor([[7]]), 3, step)) for step in range(3)]
    [3, 2, 2]
    """
    return count // steps + (step < count % steps).long()
