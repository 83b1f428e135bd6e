"""Inner products of whole samples, as plain numbers on the host: all that a predictor per sample needs to know.

A trajectory has a handful of samples: plain numbers are quicker than arrays here, and far quicker than small tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from .layout import TokenLayout


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample (a row of one modality) of the newest output ``y0`` and its two newest velocities ``v1``, ``v2``.

    Attributes:
        count: numbers in the sample.
        size, cross, new, along, old: ``<y0, y0>``, ``<y0, v1>``, ``<v1, v1>``, ``<v1, v2>`` and ``<v2, v2>``.
        sums: of ``y0`` and of ``v1``.
    """

    count: int
    size: float
    cross: float
    new: float
    along: float
    old: float
    sums: tuple[float, float]

    def energy(self, slope: float = 0.0) -> float:
        """Variance of ``y0 + slope * v1``."""
        square = self.size + slope * (2.0 * self.cross + slope * self.new)
        return square / self.count - ((self.sums[0] + slope * self.sums[1]) / self.count) ** 2

    def turning(self, floor: float) -> float:
        """``||v1 - v2|| / (||v1|| + ||v2|| + floor * ||y0||)``: see :func:`diffcache.predictors.scores.turning`."""
        length = sqrt(self.new) + sqrt(self.old) + floor * sqrt(self.size)
        return sqrt(max(self.new + self.old - 2.0 * self.along, 0.0)) / length if length > 0.0 else 0.0


@dataclass(frozen=True)
class Totals:
    """All samples of outputs that were stored at the same times.

    Attributes:
        gaps: distances between stored outputs on the time axis, newest first.
        steps: the same distances counted in sampler steps.
        samples: in order of branch, modality, row of the batch.
        eps: rounding unit of the stored dtype.
    """

    gaps: tuple[float, ...]
    steps: tuple[float, ...]
    samples: tuple[Sample, ...]
    eps: float

    @property
    def noise_floor(self) -> float:
        """Length of a velocity that rounding alone explains, for ``||y0|| = 1``: ``eps/2 * (1/d1 + 1/d2)``."""
        return 0.5 * self.eps * sum(1.0 / abs(gap) for gap in self.gaps[:2])


class Sums:
    """What :class:`Totals` are made of: measured on the device, read by the host with other numbers, made sense of.

    Args:
        branches: for each branch its three newest outputs, newest first, all of one shape.
        layout: where the modalities are.
        gaps, steps: as in :class:`Totals`.

    Attributes:
        parts: of each modality ``[branches * batch, 12]``, fp32: the gram matrix of the newest output and the two
            differences behind it, and their sums.
    """

    def __init__(
        self,
        branches: Sequence[Sequence[Tensor]],
        layout: TokenLayout,
        gaps: Sequence[float],
        steps: Sequence[float],
    ) -> None:
        first = branches[0][0]
        self._branches, self._rows, self._gaps, self._steps = len(branches), len(first), tuple(gaps), tuple(steps)
        self._eps = torch.finfo(first.dtype).eps
        split = [[layout.channels(value) for value in values[:3]] for values in branches]
        self._counts = [view[0].numel() for view in split[0][0]]
        self.parts = [
            _measured([values[j][m] for j in range(3) for values in split], len(branches) * len(first))
            for m in range(len(self._counts))
        ]

    def read(self, parts: Sequence[Sequence[float]]) -> Totals:
        """Totals from :attr:`parts` on the host, each as one flat list. Called once: frees them."""
        self.parts = []
        samples = tuple(
            self._sample(parts[m], branch * self._rows + row, count)
            for branch in range(self._branches)
            for m, count in enumerate(self._counts)
            for row in range(self._rows)
        )
        return Totals(self._gaps, self._steps, samples, self._eps)

    def _sample(self, part: Sequence[float], index: int, count: int) -> Sample:
        size, cross, _, _, new, along, _, _, old, first, second, _ = part[12 * index : 12 * index + 12]
        a, b = self._gaps
        return Sample(count, size, cross / a, new / (a * a), along / (a * b), old / (b * b), (first, second / a))


def _measured(views: Sequence[Tensor], samples: int) -> Tensor:
    rows = torch.cat(views).float().view(3, samples, -1)
    rows[1:] = rows[:-1] - rows[1:]
    rows = rows.transpose(0, 1)
    return torch.cat([torch.bmm(rows, rows.mT).flatten(1), rows.sum(2)], 1)
