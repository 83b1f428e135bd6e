"""What a block shows of its gates and norms on a few rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .outputs import Template, flatten
from .selection import Place
from .steady import Products
from .token_passes import Call

#: rows behind those of the parts: zeros, and ones of both signs
ZERO, SIGNS = 0, 1


@dataclass
class Look:
    """What a block showed on a few rows.

    Attributes:
        gates: of each part by call and number of the result, ``[B, 1, D]``.
        calls: its units' calls in order: what :meth:`.TokenPass.unit` gets.
        results: what it returned, and how.
        products: what need not be computed again where it runs on.
    """

    gates: dict[tuple[Call, int], Tensor]
    calls: list[tuple[Any, ...]]
    results: tuple[list[Tensor], Template]
    products: Products

    def tensors_of(self, call: Call) -> list[Tensor]:
        """Arguments of a unit."""
        return next(flatten(tuple(asked[5:]))[0] for asked in self.calls if asked[0] == call)

    def norm_of(self, tensor: Tensor) -> tuple[str, float] | None:
        """Kind and ``eps`` of the norm that made an argument, or ``stream``; None where rows do not tell it."""
        return None

    def modulation(self, tensor: Tensor, place: Place, eps: float) -> tuple[Tensor, Tensor]:
        """Scale and shift of the norm that made an argument, ``[B, 1, D]`` each, fp32."""
        rows = tensor.narrow(place.axis, place.offset + len(self.gates), 2).float()
        zero, ones = rows.split(1, dim=1)
        scale = (ones - zero) * signs(ones) * (1.0 + eps) ** 0.5
        return scale.sub_(1.0), zero


def signs(like: Tensor) -> Tensor:
    """``[D]``: 1, -1, 1, -1, ...; neither LayerNorm nor RMSNorm changes it but by ``eps``."""
    values = torch.ones(like.shape[-1], dtype=like.dtype, device=like.device)
    values[1::2] = -1.0
    return values
