"""Inner products of a few rows, token by token: all that a predictor needs to know of what is stored."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gram(rows: Tensor, features: Sequence[int]) -> Tensor:
    """``<row i, row j>`` for i <= j, then the sum of each row, over the feature axes; fp32.

    Args:
        rows: ``[n, *shape]``, fp32.
        features: the axes of ``rows`` that hold a token's features, none of them 0.

    Returns:
        ``[n * (n + 1) / 2 + n, *shape]`` with the feature axes of size 1: (0, 0), (0, 1), ...,
        (1, 1), ..., and the sums.
    """
    axes = tuple(features)
    parts = [(rows[i] * rows[i:]).sum(axes, keepdim=True) for i in range(len(rows))]
    return torch.cat([*parts, rows.sum(axes, keepdim=True)])
