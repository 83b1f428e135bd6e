"""The entropy-bound decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...methods.checks import check_number
from .base import Decoder


@dataclass(frozen=True, kw_only=True)
class EntropyBound(Decoder):
    """Positions in order of entropy, while the sum of theirs less the largest stays within ``bound``.

    That sum bounds the mutual information of what is decoded at once (EB sampler, arXiv 2505.24857).

    Args:
        bound: nats, >= 0.
    """

    name: ClassVar[str] = "entropy"

    bound: float = 0.1

    def validate(self) -> None:
        check_number("bound", self.bound, 0, 1e6, whole=False)

    def select(self, logits: Tensor, tokens: Tensor, open: Tensor, budget: Tensor) -> Tensor:
        logs = logits.log_softmax(-1)
        entropy = -(logs.exp() * logs.clamp(min=torch.finfo(logs.dtype).min)).sum(-1)
        ordered, order = torch.where(open, entropy, torch.inf).sort(dim=-1, stable=True)
        joint = torch.where(ordered.isinf(), 0.0, ordered).cumsum(-1) - ordered
        return torch.zeros_like(open).scatter_(-1, order, joint <= self.bound)
