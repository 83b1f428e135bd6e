"""Decoders that rank positions by the probability of their token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...methods.checks import check_number
from .base import Decoder, confidence, ranks


@dataclass(frozen=True, kw_only=True)
class TopK(Decoder):
    """LLaDA's low-confidence remasking: the most confident positions, as many as the step's budget."""

    name: ClassVar[str] = "topk"

    def select(self, logits: Tensor, tokens: Tensor, open: Tensor, budget: Tensor) -> Tensor:
        return ranks(confidence(logits, tokens, open)) < budget.clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class Threshold(Decoder):
    """All positions at least that confident; where fewer, the step's budget of the most confident (at least one).

    Fast-dLLM (arXiv 2505.22618), SDAR's ``low_confidence_dynamic``, Elastic-Cache's rule ``min(threshold, best)``.

    Args:
        threshold: probability, in [0, 1].
    """

    name: ClassVar[str] = "threshold"

    threshold: float = 0.9

    def validate(self) -> None:
        check_number("threshold", self.threshold, 0, 1, whole=False)

    def select(self, logits: Tensor, tokens: Tensor, open: Tensor, budget: Tensor) -> Tensor:
        scores = confidence(logits, tokens, open)
        return (scores >= self.threshold) | (ranks(scores) < budget.clamp(min=1))


@dataclass(frozen=True, kw_only=True)
class Factor(Decoder):
    """The most confident ``n``, with ``n`` the largest for which ``(n + 1) * (1 - c_n) < factor`` (Fast-dLLM).

    Args:
        factor: > 0; more decodes more at once.
    """

    name: ClassVar[str] = "factor"

    factor: float = 1.0

    def validate(self) -> None:
        check_number("factor", self.factor, 0, 1e6, whole=False)

    def select(self, logits: Tensor, tokens: Tensor, open: Tensor, budget: Tensor) -> Tensor:
        scores = confidence(logits, tokens, open)
        ordered = scores.sort(dim=-1, descending=True).values
        number = torch.arange(1, ordered.shape[-1] + 1, device=ordered.device)
        holds = ((number + 1) * (1.0 - ordered) < self.factor) & (ordered >= 0)
        count = torch.where(holds, number, 0).amax(-1, keepdim=True)
        return ranks(scores) < count.clamp(min=1)
