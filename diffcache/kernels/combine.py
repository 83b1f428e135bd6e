"""The prediction itself: a per-token linear combination of stored outputs, in fp32, rounded once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Weight = float | Tensor


def combine(values: Sequence[Tensor], weights: Sequence[Weight], out: Tensor | None = None) -> Tensor:
    """``sum_j weights[j] * values[j]``, accumulated in fp32 and rounded once to the dtype of ``out``.

    Args:
        values: stored outputs of one shape, newest first.
        weights: one per value; a float, or a tensor that broadcasts to the shape (one number per token).
        out: where to write; a view is fine. A new tensor of ``values[0]``'s dtype by default, never one of ``values``.

    Returns:
        ``out``.
    """
    first = values[0]
    if out is None:
        out = torch.empty_like(first)
    direct = first.dtype == torch.float32 and out.dtype == torch.float32
    total = out if direct else torch.empty_like(first, dtype=torch.float32)
    # A lone reused value is a copy: no multiplication, so it stays bit-identical.
    if len(values) == 1 and isinstance(weights[0], float) and weights[0] == 1.0:
        return out.copy_(first)
    torch.mul(first if direct else first.float(), weights[0], out=total)
    for value, weight in zip(values[1:], weights[1:], strict=True):
        _accumulate(total, value if direct else value.float(), weight)
    return out if direct else out.copy_(total)


def extrapolate(new: Tensor, old: Tensor, slope: Weight, out: Tensor) -> Tensor:
    """``new + slope * (new - old)``: :func:`combine` for a line through two values, in one pass.

    Exactly ``new`` wherever both are equal. fp32 inside, rounded once.

    Args:
        new, old: stored outputs of one shape.
        slope: a float, or a tensor that broadcasts to the shape (one number per token).
        out: where to write; a view is fine.

    Returns:
        ``out``.
    """
    if new.dtype == out.dtype == torch.float32:
        return torch.lerp(new, old, -slope, out=out)
    return out.copy_(torch.lerp(new.float(), old.float(), -slope))


def _accumulate(total: Tensor, value: Tensor, weight: Weight) -> None:
    if isinstance(weight, Tensor):
        total.addcmul_(value, weight)
    elif weight != 0.0:
        total.add_(value, alpha=weight)
