"""Selectors: which tokens a partial step recomputes, ranked without attention maps. Tensors in, one ranking out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Evidence:
    """What is known of the tokens when a partial step begins. All of shape ``[tokens]``, fp32, on the device.

    Attributes:
        age: partial steps since each token was computed last, this one included.
        scores: further measures by name, each worked out when it is asked for.
        grid: rows and columns of the tokens of a frame, where they are known.
    """

    age: Tensor
    scores: Mapping[str, Callable[[], Tensor]]
    grid: tuple[int, int] | None = None


#: score -> what it measures
SCORES = {
    "input": "how far the token's hidden state has moved since the token was computed last",
    "output": "how far the denoiser's output moved at the token between the last two steps",
    "turning": "how much the output's velocity at the token turns (worldcache's chaotic tokens)",
    "value": "how small the token's values are in the last attention (DuCa)",
    "random": "nothing: a random order, the control",
}


@dataclass(frozen=True)
class Selector:
    """``score_i / mean(score) + age_weight * age_i``, the largest first (DiffSparse's ranking with a map-free score).

    Args:
        score: one of :data:`SCORES`.
        age_weight: weight of the age; without it tokens that never look urgent starve.
        oldest: tokens of this age come first, whatever they score; 0 for no bound.
        bonus: added, as a share of itself, to the best score of each ``window x window`` tokens of a frame (ToCa).
        window: see there.
    """

    score: str = "input"
    age_weight: float = 1.0
    oldest: int = 8
    bonus: float = 0.0
    window: int = 2

    def rank(self, evidence: Evidence) -> Tensor:
        """All tokens, the most urgent first; ``[tokens]``, int64. Ties keep the tokens' order. Reads no value."""
        score = self.scores(evidence)
        return score.argsort(descending=True, stable=True)

    def scores(self, evidence: Evidence) -> Tensor:
        """What the tokens are ranked by, ``[tokens]``; what is not finite counts as most urgent."""
        score = evidence.scores[self.score]().float()
        mean = score.nan_to_num(0.0, 0.0, 0.0).mean()
        score = score / mean.clamp_min(torch.finfo(torch.float32).tiny)
        score = score + self.age_weight * evidence.age
        if self.bonus > 0.0 and evidence.grid is not None:
            score = _with_bonus(score, evidence.grid, self.window, self.bonus)
        score = score.nan_to_num_(torch.inf, torch.inf)
        return torch.where(evidence.age >= self.oldest, torch.inf, score) if self.oldest else score


def _with_bonus(score: Tensor, grid: tuple[int, int], window: int, bonus: float) -> Tensor:
    """The best token of each window gets ``bonus`` times its score on top; a rim without a whole window gets none."""
    rows, columns = grid
    frames = score.view(-1, rows, columns).clone()
    inner = frames[:, : rows - rows % window, : columns - columns % window]
    if inner.numel():
        tiles = inner.unfold(1, window, window).unfold(2, window, window)
        best = tiles.amax((-2, -1), keepdim=True)
        tiles.add_(torch.where(tiles == best, bonus * tiles, 0.0))
    return frames.flatten()
