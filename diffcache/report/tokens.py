"""Token maps: how a per-token method treats each token of the frame, looked at in the untimed warm-up run."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UnsupportedModelError
from ..hooks.grid import Grid

GROUPS, DAMPING, AGES = "groups", "damping", "ages"
WORDS = {
    AGES: "light: recomputed at this step, the darker the longer ago",
    GROUPS: "dark: reused, middle: moved straight on, light: blended",
    DAMPING: "how far a token's motion is carried on, from dark (reused) to light (straight on)",
}
#: moments at which the map is kept, in shares of the run
MOMENTS = (0.25, 0.5, 0.75)
TILE = 64  # least pixels of a frame's map


class TokenMaps:
    """Looks at the first branch's fit after each denoiser call, and keeps it at :data:`MOMENTS`.

    Attributes:
        kind: ``groups``, ``damping``, ``ages``, or empty where the method does not treat tokens apart.
        found: values in [0, 1], ``[frames, height, width]`` in tokens, one a moment.
    """

    def __init__(self, pipe: Any, calls: int) -> None:
        self._pipe, self._due = pipe, [max(1, round(calls * share)) for share in MOMENTS]
        self.kind, self.found = "", []

    def __call__(self, count: int) -> None:
        if count not in self._due:
            return
        kind, values = _look(self._pipe)
        if kind == AGES and values is None:
            self._due.append(count + 1)  # all tokens were computed: the next step may be a partial one
        frames = None if values is None else _frames(values)
        if frames is not None:
            self.kind = kind
            self.found.append(frames)

    @property
    def picture(self) -> np.ndarray:
        """A line a moment, frame beside frame, ``[height, width]`` in [0, 1]."""
        scale = -(-TILE // self.found[0].shape[-1])
        lines = [
            np.concatenate([np.pad(f, 1, constant_values=0) for f in _large(frames, scale)], 1) for frames in self.found
        ]
        return np.concatenate(lines)


def _large(frames: np.ndarray, scale: int) -> np.ndarray:
    return frames.repeat(scale, -1).repeat(scale, -2)


def _look(pipe: Any) -> tuple[str, Tensor | None]:
    """What the first denoiser's first branch shows."""
    handle = pipe.__dict__.get("diffcache")
    for _, hook in handle.hooks.values() if handle is not None else ():
        for branch in hook.segment.branches.values() if hook.segment is not None else ():
            tokens = getattr(branch.cache, "tokens", branch.cache)
            if hasattr(tokens, "age"):
                return AGES, _ages(hook.anatomy, branch.signature, tokens.age)
            return _of_fit(next(iter(getattr(branch.cache, "fits", None) or ()), None))
    return "", None


def _ages(anatomy: Any, signature: Any, age: Tensor | None) -> Tensor | None:
    """How lately each token was computed, ``[1, *grid]`` in [0, 1]; None while all are of one age."""
    if age is None or not age.any():
        return None
    sample = torch.empty(signature[0][0][0], device="meta")  # the noisy sample comes first, and lies on the same grid
    try:
        grid = Grid.of(anatomy, sample, len(age)).shape(sample)
    except UnsupportedModelError:
        return None
    return (1.0 - age / age.max()).view(1, *grid)


def _of_fit(fit: Any) -> tuple[str, Tensor | None]:
    if hasattr(fit, "chaotic") and hasattr(fit, "moving"):
        return GROUPS, (fit.moving + fit.chaotic) / 2
    ratio = getattr(fit, "ratio", None)
    return DAMPING, ratio.clamp(0, 1) if isinstance(ratio, Tensor) else None


def _frames(values: Tensor) -> np.ndarray | None:
    """The first sample's tokens as frames; None where they do not lie on a grid."""
    grid = values[0].detach().to(torch.float32).squeeze().cpu().numpy()
    if grid.ndim == 2:
        return grid[None]
    return grid if grid.ndim == 3 else None
