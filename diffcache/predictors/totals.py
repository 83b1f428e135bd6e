"""Inner products of whole samples, on the host: a few numbers tell all that a predictor per sample can use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement

import numpy as np
import torch
from torch import Tensor

from ..kernels import gram
from .layout import TokenLayout
from .moments import Moments


@dataclass(frozen=True)
class Totals:
    """As :class:`~diffcache.predictors.moments.Moments`, summed over each sample's tokens: arrays ``[samples]``, fp64.

    Attributes:
        gaps: distances between stored outputs on the time axis, newest first.
        steps: the same distances counted in sampler steps.
        count: numbers in one sample, ``[samples]``.
        table: inner products and sums of the rows, ``[n * (n + 1) / 2 + n, samples]``.
        eps: rounding unit of the stored dtype.
    """

    gaps: tuple[float, ...]
    steps: tuple[float, ...]
    count: np.ndarray
    table: np.ndarray
    eps: float

    @classmethod
    def of(cls, moments: Moments) -> Totals:
        """From moments; reads the host."""
        table = moments.total.table.flatten(1).double().cpu().numpy()
        count = np.broadcast_to(np.asarray(moments.total.width, dtype=float), table.shape[1:])
        return cls(moments.gaps, moments.steps, count, table, moments.eps)

    @cached_property
    def gram(self) -> dict[tuple[int, int], np.ndarray]:
        """``gram[i, j] = <row i, row j>`` for i <= j."""
        return dict(zip(_pairs(len(self.gaps)), self.table, strict=False))

    @property
    def sums(self) -> np.ndarray:
        """Sum of each row."""
        return self.table[-len(self.gaps) - 1 :]

    def energy(self, slope: np.ndarray | float = 0.0) -> np.ndarray:
        """Variance of ``y0 + slope * v1`` over each sample; ``slope`` may carry leading axes."""
        square = self.gram[0, 0] + slope * (2.0 * self.gram[0, 1] + slope * self.gram[1, 1])
        return square / self.count - ((self.sums[0] + slope * self.sums[1]) / self.count) ** 2


def sample_products(branches: Sequence[Sequence[Tensor]], layout: TokenLayout) -> list[Tensor]:
    """What :func:`totals` reads of outputs of one shape: a gram table for each modality, fp32.

    Args:
        branches: for each branch its stored outputs, newest first.
        layout: where the modalities are.

    Returns:
        ``[m, branches * batch]`` for each modality, of the newest output and the differences behind it.
    """
    depth = len(branches[0])
    modalities = zip(*(zip(*map(layout.split, values), strict=True) for values in branches), strict=True)
    return [_products(parts, depth) for parts in modalities]


def _products(parts: Sequence[Sequence[Tensor]], depth: int) -> Tensor:
    samples = len(parts) * len(parts[0][0])
    rows = torch.cat([views[j] for j in range(depth) for views in parts]).float().view(depth, samples, -1)
    rows[1:] = rows[:-1] - rows[1:]
    return gram(rows, (2,)).view(-1, samples)


def totals(
    products: Sequence[np.ndarray],
    branches: int,
    counts: Sequence[int],
    gaps: Sequence[float],
    steps: Sequence[float],
    eps: float,
) -> Totals:
    """:func:`sample_products` on the host, made sense of. Samples are in order of branch, modality, row of the batch.

    Args:
        products: of each modality, on the host, of any shape.
        branches: how many.
        counts: numbers in one sample of each modality.
        gaps, steps, eps: as in :class:`Totals`.
    """
    unit = [1.0, *gaps]
    scale = np.array([unit[i] * unit[j] for i, j in _pairs(len(gaps))] + unit)
    table = np.stack([p.reshape(len(scale), branches, -1) for p in products], axis=2)
    rows = table.shape[-1]
    table = table.reshape(len(scale), -1) / scale[:, None]
    return Totals(tuple(gaps), tuple(steps), np.tile(np.repeat(np.array(counts, float), rows), branches), table, eps)


def _pairs(velocities: int) -> list[tuple[int, int]]:
    return list(combinations_with_replacement(range(velocities + 1), 2))
