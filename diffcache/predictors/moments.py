"""What a forecast needs to know of the stored outputs: a few inner products a token, measured in one place.

Every predictor here has the form ``y0 + b1*v1 + b2*v2 + ...`` with one number ``b`` per token, so drift, turning
score, energy and mean of *any* future prediction follow from inner products of ``y0, v1, v2, ...`` alone. They are
measured once at a computed step; predicted steps then cost one pass and no decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .layout import TokenLayout


@dataclass(frozen=True)
class Moments:
    """Per-token inner products of one modality. Tensors have the output's shape with the feature axis of size 1.

    Row 0 is the newest output ``y0``; row j is the velocity ``vj = (y[j-1] - y[j]) / gaps[j-1]``.

    Attributes:
        gaps: distances between stored outputs on the time axis, newest first (d2, d1, ... in the paper's order).
        steps: the same distances counted in sampler steps.
        width: features of one token; a number for each row of axis 0 where modalities are stacked there.
        gram: ``gram[i, j] = <row i, row j>`` for i <= j.
        sums: feature sum of each row (for the mean of a prediction).
        eps: rounding unit of the stored dtype.
        patch: windows along the last axes over which every per-token number is constant; ``()`` if none.
    """

    gaps: tuple[float, ...]
    steps: tuple[float, ...]
    width: float | Tensor
    gram: dict[tuple[int, int], Tensor]
    sums: tuple[Tensor, ...]
    eps: float
    patch: tuple[int, ...] = ()

    @property
    def velocities(self) -> int:
        """How many velocities are known."""
        return len(self.sums) - 1

    def tokens(self, score: Tensor) -> Tensor:
        """One number a token of a per-position ``score`` (a strided view): what a quantile must rank."""
        if not self.patch:
            return score
        return score[(..., *(slice(None, None, size) for size in self.patch))]

    @property
    def noise_floor(self) -> Tensor:
        """Length of a velocity that rounding alone explains: ``eps/2 * ||y0|| * (1/d1 + 1/d2)`` (per token)."""
        spread = sum(1.0 / abs(gap) for gap in self.gaps[:2])
        return self.gram[0, 0].sqrt() * (0.5 * self.eps * spread)


def measure(values: Sequence[Tensor], gaps: Sequence[float], steps: Sequence[float], layout: TokenLayout) -> Moments:
    """Moments of one modality's stored outputs, in fp32.

    Args:
        values: views of one modality, newest first.
        gaps: distances on the time axis, one fewer than values.
        steps: distances in sampler steps.
        layout: which axis holds the features, and the patch.
    """
    wide = [value.float() for value in values]
    rows = [wide[0]] + [(a - b) / gap for a, b, gap in zip(wide, wide[1:], gaps, strict=False)]
    gram = {(i, j): layout.per_token(rows[i] * rows[j]) for i in range(len(rows)) for j in range(i, len(rows))}
    return Moments(
        gaps=tuple(gaps),
        steps=tuple(steps),
        width=values[0].shape[layout.channel_dim],
        gram=gram,
        sums=tuple(layout.per_token(row) for row in rows),
        eps=torch.finfo(values[0].dtype).eps,
        patch=layout.patch_of(values[0]),
    )


def stack(parts: Sequence[Moments]) -> Moments:
    """The moments of several modalities as one, stacked as more samples: everything measured from them is per sample.

    Args:
        parts: of the same stored outputs, modality by modality, so that gaps, steps and eps are equal.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    rows = first.gram[0, 0].shape[0]
    return Moments(
        gaps=first.gaps,
        steps=first.steps,
        width=torch.tensor([float(m.width) for m in parts for _ in range(rows)], device=first.gram[0, 0].device),
        gram={key: torch.cat([m.gram[key] for m in parts]) for key in first.gram},
        sums=tuple(torch.cat(row) for row in zip(*(m.sums for m in parts), strict=True)),
        eps=first.eps,
        patch=first.patch,
    )


def energy(moments: Moments, slopes: Sequence[float | Tensor]) -> Tensor:
    """Variance of ``y0 + sum_j slopes[j] * v[j+1]`` over each sample, from moments alone.

    ``slopes`` may carry leading axes (one entry per horizon); the result has these axes and then the batch.
    """
    square, total = moments.gram[0, 0], moments.sums[0]
    for i, slope in enumerate(slopes, 1):
        cross = moments.gram[0, i]
        for j in range(1, i):
            cross = cross + slopes[j - 1] * moments.gram[j, i]
        square = square + slope * (2.0 * cross + slope * moments.gram[i, i])
        total = total + slope * moments.sums[i]
    inner = tuple(range(1 - moments.sums[0].dim(), 0))
    return square.mean(inner) / moments.width - (total.mean(inner) / moments.width) ** 2
