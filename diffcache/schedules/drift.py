"""How far a run of predictions will have drifted: known at the computed step, because nothing in it is new later.

The drift of WorldCache (arXiv 2603.06331, section 4.2) depends only on the stored outputs, so the whole sequence
E(1..n) and with it the length of the next run is known when the step is computed: one host read there, none after.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..predictors.base import Slope
from ..predictors.moments import Moments


def displacement(moments: Moments, slopes: tuple[Slope, ...]) -> Tensor:
    """Length of the move from prediction k-1 to prediction k, per token; ``slopes`` have a leading axis k = 1..n."""
    # The first move starts at y0, where every slope is 0.
    moves = [torch.cat([s[:1], s[1:] - s[:-1]]) for s in slopes]
    square: Tensor | float = 0.0
    for i, move in enumerate(moves):
        square = square + move.square() * moments.gram[i + 1, i + 1]
        for j in range(i + 1, len(moves)):
            square = square + 2.0 * move * moves[j] * moments.gram[i + 1, j + 1]
    return square.clamp_min(0).sqrt()


def chaotic_drift(
    moments: Sequence[Moments],
    slopes: Sequence[tuple[Slope, ...]],
    scores: Sequence[Tensor],
    chaotic: Sequence[Tensor],
) -> Tensor:
    """E(k) of the released code: sum over chaotic tokens of score x displacement, over the number of *all* tokens.

    All rows and modalities count together. Divide a threshold by ``1 - chaotic quantile`` to get the paper's units.
    Shape ``[n]``.
    """
    total, tokens = 0.0, 0
    for m, s, score, mask in zip(moments, slopes, scores, chaotic, strict=True):
        total = total + (displacement(m, s) * (score * mask)).flatten(1).sum(1)
        tokens += score.numel()
    return total / tokens


def relative_drift(moments: Sequence[Moments], slopes: Sequence[tuple[Slope, ...]], scores: Sequence[Tensor]) -> Tensor:
    """Expected relative error of prediction k: turning x displacement against the output's size; shape ``[n]``.

    Root mean square over a sample's tokens, then the worst sample and modality: a still neighbour hides nobody.
    """
    worst = None
    for m, s, score in zip(moments, slopes, scores, strict=True):
        moved = displacement(m, s) * score
        size = m.gram[0, 0].flatten(1).mean(1).clamp_min(torch.finfo(torch.float32).tiny)
        drift = (moved.square().flatten(2).mean(2) / size).sqrt().cumsum(0).amax(1)
        worst = drift if worst is None else torch.maximum(worst, drift)
    return worst
