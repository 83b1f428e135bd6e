"""How far a run of predictions will have drifted: known at the computed step, because nothing in it is new later.

The drift of WorldCache (arXiv 2603.06331, section 4.2) depends only on the stored outputs, so the whole sequence
E(1..n) and with it the length of the next run is known when the step is computed: one host read there, none after.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan, sqrt

import torch
from torch import Tensor

from ..predictors.base import Slope
from ..predictors.moments import Moments
from ..predictors.scores import turning_square
from ..predictors.totals import Totals


def moved(slopes: Tensor) -> Tensor:
    """How much a slope grows from prediction k-1 to prediction k; the leading axis is k = 1..n."""
    # The first move starts at y0, where every slope is 0.
    return torch.cat([slopes[:1], slopes[1:] - slopes[:-1]])


def displacement(moments: Moments, slopes: tuple[Slope, ...]) -> Tensor:
    """Length of the move from prediction k-1 to prediction k, per token; ``slopes`` have a leading axis k = 1..n."""
    moves = [moved(s) for s in slopes]
    square: Tensor | float = 0.0
    for i, move in enumerate(moves):
        square = square + move.square() * moments.gram[i + 1, i + 1]
        for j in range(i + 1, len(moves)):
            square = square + 2.0 * move * moves[j] * moments.gram[i + 1, j + 1]
    return square.clamp_min(0).sqrt()


def chaotic_drift(moments: Moments, slopes: tuple[Slope, ...], score: Tensor, chaotic: Tensor) -> Tensor:
    """E(k) of the released code: sum over chaotic tokens of score x displacement, over the number of *all* tokens.

    All rows and modalities count together. Divide a threshold by ``1 - chaotic quantile`` to get the paper's units.
    Shape ``[n]``.
    """
    return (displacement(moments, slopes) * (score * chaotic)).flatten(1).sum(1) / score.numel()


def turning_drift(moments: Moments, slopes: tuple[Slope, ...]) -> Tensor:
    """Expected relative error of prediction k: turning x displacement against the output's size; shape ``[n]``.

    Root mean square over a sample's tokens, then the worst sample and modality: a still neighbour hides nobody.

    Args:
        moments: of at least three stored outputs.
        slopes: of a predictor along the newest velocity alone, with a leading axis k = 1..n.
    """
    (slope,) = slopes
    weight = turning_square(moments) * moments.gram[1, 1]
    square = moved(slope).square_() * weight
    size = moments.total.gram[0, 0].clamp_min(torch.finfo(torch.float32).tiny)
    inner = tuple(range(2, square.dim()))
    return (square.sum(inner, keepdim=True) / size).sqrt_().flatten(1).cumsum(0).amax(1)


def sample_drift(known: Totals, slopes: Sequence[Sequence[float]]) -> list[float]:
    """:func:`turning_drift` with one turning a sample, on the host.

    Args:
        known: of at least three stored outputs.
        slopes: ``[n][samples]``.
    """
    shares = [s.turning(known.noise_floor) * sqrt(s.new / s.size) if s.size > 0.0 else 0.0 for s in known.samples]
    drifts, way, before = [], [0.0] * len(shares), [0.0] * len(shares)
    for now in slopes:
        way = [w + abs(b - a) for w, a, b in zip(way, before, now, strict=True)]
        before = now
        drifts.append(largest([w * share for w, share in zip(way, shares, strict=True)]))
    return drifts


def largest(numbers: Sequence[float]) -> float:
    """The largest number; NaN if one of them is NaN (``max`` would drop it)."""
    if len(numbers) == 1:
        return numbers[0]
    for number in numbers:
        if isnan(number):
            return number
    return max(numbers)
