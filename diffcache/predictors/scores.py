"""Per-token scores that tell how hard a token is to predict, from moments alone."""

from __future__ import annotations

import torch
from torch import Tensor

from .moments import Moments


def curvature(moments: Moments, eps: float = 1e-8) -> Tensor:
    """``||a|| / (||v1||^2 + eps)`` with ``a = (v1 - v2) / d2`` (WorldCache, arXiv 2603.06331, Eqs. 5-7). Unbounded."""
    change = moments.gram[1, 1] - 2 * moments.gram[1, 2] + moments.gram[2, 2]
    return change.clamp_min(0).sqrt() / (abs(moments.gaps[0]) * (moments.gram[1, 1] + eps))


def turning(moments: Moments) -> Tensor:
    """``||v1 - v2|| / (||v1|| + ||v2|| + noise floor)`` in [0, 1]: scale-free and symmetric.

    0 is a straight, steady token; 1 one that turned back or stopped dead. A token slower than rounding noise
    scores 0 as far as the floor allows.
    """
    return turning_square(moments).sqrt()


def turning_square(moments: Moments) -> Tensor:
    """:func:`turning`, squared."""
    new, old = moments.gram[1, 1], moments.gram[2, 2]
    length = new.sqrt() + old.sqrt() + moments.noise_floor
    change = (new + old).sub_(moments.gram[1, 2], alpha=2.0).clamp_min_(0.0)
    return change / length.square_().clamp_min_(torch.finfo(torch.float32).tiny)


def pooled_quantiles(score: Tensor, levels: tuple[float, float]) -> Tensor:
    """Two quantiles of all tokens of all rows and modalities together (linear interpolation)."""
    return torch.quantile(_subsample(score.flatten()), score.new_tensor(levels))


def _subsample(flat: Tensor, most: int = 1 << 24) -> Tensor:
    """``torch.quantile`` takes at most 2**24 numbers; beyond, a fixed stride is as good."""
    stride = -(-flat.numel() // most)
    return flat[..., ::stride] if stride > 1 else flat
