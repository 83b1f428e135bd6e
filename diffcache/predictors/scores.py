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
    change = moments.gram[1, 1] - 2 * moments.gram[1, 2] + moments.gram[2, 2]
    length = moments.gram[1, 1].sqrt() + moments.gram[2, 2].sqrt() + moments.noise_floor
    return change.clamp_min(0).sqrt() / length.clamp_min(torch.finfo(torch.float32).tiny)


def pooled_quantiles(scores: list[Tensor], levels: tuple[float, float]) -> Tensor:
    """Two quantiles of all tokens of all rows and modalities together (linear interpolation)."""
    flat = torch.cat([score.flatten() for score in scores])
    return torch.quantile(_subsample(flat), flat.new_tensor(levels))


def sample_quantiles(score: Tensor, levels: tuple[float, ...]) -> Tensor:
    """Quantiles of each sample's tokens on their own, shape ``[len(levels), batch, 1, ...]``."""
    flat = _subsample(score.flatten(1))
    found = torch.quantile(flat, flat.new_tensor(levels), dim=1)
    return found.reshape(len(levels), -1, *[1] * (score.dim() - 1))


def _subsample(flat: Tensor, most: int = 1 << 24) -> Tensor:
    """``torch.quantile`` takes at most 2**24 numbers; beyond, a fixed stride is as good."""
    stride = -(-flat.numel() // most)
    return flat[..., ::stride] if stride > 1 else flat
