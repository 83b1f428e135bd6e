"""What a forecast needs to know of the stored outputs: a few inner products a token, measured in one place.

Every predictor here has the form ``y0 + b1*v1 + b2*v2 + ...`` with one number ``b`` per token, so drift, turning
score, energy and mean of *any* future prediction follow from inner products of ``y0, v1, v2, ...`` alone. They are
measured once at a computed step; predicted steps then cost one pass and no decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement
from math import prod

import torch
from torch import Tensor

from ..kernels import gram
from .layout import TokenLayout


@dataclass(frozen=True)
class Moments:
    """Per-token inner products. Tensors have the output's shape (patches unfolded) with the feature axes of size 1.

    Row 0 is the newest output ``y0``; row j is the velocity ``vj = (y[j-1] - y[j]) / gaps[j-1]``. Axis 0 of a row
    counts samples; where several outputs are measured together (modalities, branches) theirs follow each other there.

    Attributes:
        gaps: distances between stored outputs on the time axis, newest first (d2, d1, ... in the paper's order).
        steps: the same distances counted in sampler steps.
        width: features of one token; a tensor ``[samples]`` where they differ.
        table: what :func:`diffcache.kernels.gram` returns for the rows.
        eps: rounding unit of the stored dtype.
    """

    gaps: tuple[float, ...]
    steps: tuple[float, ...]
    width: float | Tensor
    table: Tensor
    eps: float

    @cached_property
    def gram(self) -> dict[tuple[int, int], Tensor]:
        """``gram[i, j] = <row i, row j>`` for i <= j (views)."""
        pairs = combinations_with_replacement(range(self.velocities + 1), 2)
        return dict(zip(pairs, self.table.unbind(), strict=False))

    @cached_property
    def sums(self) -> tuple[Tensor, ...]:
        """Feature sum of each row, for the mean of a prediction (views)."""
        return self.table[-self.velocities - 1 :].unbind()

    @cached_property
    def total(self) -> Moments:
        """The same summed over each sample's tokens: a sample is one token of ``tokens`` times the width."""
        inner = tuple(range(2, self.table.dim()))
        return Moments(self.gaps, self.steps, self.width * self.tokens, self.table.sum(inner, keepdim=True), self.eps)

    @property
    def tokens(self) -> int:
        """Tokens of one sample."""
        return prod(self.table.shape[2:])

    @property
    def velocities(self) -> int:
        """How many velocities are known."""
        return len(self.gaps)

    @property
    def noise_floor(self) -> Tensor:
        """Length of a velocity that rounding alone explains: ``eps/2 * ||y0|| * (1/d1 + 1/d2)`` (per token)."""
        spread = sum(1.0 / abs(gap) for gap in self.gaps[:2])
        return self.gram[0, 0].sqrt() * (0.5 * self.eps * spread)


def measure(values: Sequence[Tensor], gaps: Sequence[float], steps: Sequence[float], layout: TokenLayout) -> Moments:
    """Moments of the stored values of one output, newest first: :func:`measure_all` of a single branch."""
    return measure_all([values], gaps, steps, layout)


def measure_all(
    branches: Sequence[Sequence[Tensor]], gaps: Sequence[float], steps: Sequence[float], layout: TokenLayout
) -> Moments:
    """Moments of outputs of one shape that were stored at the same times, in fp32.

    Samples follow each other branch by branch, within a branch modality by modality.

    Args:
        branches: for each branch its stored outputs, newest first.
        gaps: distances on the time axis, one fewer than outputs of a branch.
        steps: distances in sampler steps.
        layout: where the tokens and modalities are.
    """
    first = branches[0][0]
    axes = layout.features(first)
    # For each branch and modality: its views, newest first.
    parts = [views for values in branches for views in zip(*map(layout.split, values), strict=True)]
    alike = len({views[0].shape for views in parts}) == 1
    tables = [_table(group, gaps, axes) for group in ([parts] if alike else [[views] for views in parts])]
    widths = [prod(views[0].shape[axis] for axis in axes) for views in parts]
    return Moments(
        gaps=tuple(gaps),
        steps=tuple(steps),
        width=widths[0] if alike else torch.tensor(widths, device=first.device).repeat_interleave(len(first)),
        table=tables[0] if alike else torch.cat(tables, 1),
        eps=torch.finfo(first.dtype).eps,
    )


def _table(parts: Sequence[Sequence[Tensor]], gaps: Sequence[float], axes: Sequence[int]) -> Tensor:
    """The gram table of views of one shape, their samples one after the other."""
    depth, shape = len(gaps) + 1, parts[0][0].shape
    rows = torch.cat([views[j] for j in range(depth) for views in parts]).float()
    rows = rows.view(depth, -1, *shape[1:])
    if gaps:
        velocities = rows[:-1] - rows[1:]
        for velocity, gap in zip(velocities, gaps, strict=True):
            if gap != 1.0:
                velocity /= gap
        rows[1:] = velocities
    return gram(rows, [axis + 1 for axis in axes])


def spread(moments: Moments, slopes: Sequence[float | Tensor]) -> tuple[Tensor, Tensor]:
    """Square sum and sum of ``y0 + sum_j slopes[j] * v[j+1]`` over each sample, from moments alone.

    ``slopes`` may carry leading axes (one entry per horizon); the results have these axes and then the samples.
    """
    square, total = moments.gram[0, 0], moments.sums[0]
    for i, slope in enumerate(slopes, 1):
        cross = 2.0 * moments.gram[0, i]
        for j in range(1, i):
            cross = cross + slopes[j - 1] * (2.0 * moments.gram[j, i])
        square = square + slope * (cross + slope * moments.gram[i, i])
        total = total + slope * moments.sums[i]
    inner = tuple(range(1 - moments.sums[0].dim(), 0))
    return square.sum(inner), total.sum(inner)


def energy(moments: Moments, slopes: Sequence[float | Tensor]) -> Tensor:
    """Variance of ``y0 + sum_j slopes[j] * v[j+1]`` over each sample; axes as in :func:`spread`."""
    square, total = spread(moments, slopes)
    count = moments.width * moments.tokens
    return square / count - (total / count) ** 2
