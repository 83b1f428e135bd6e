"""Token maps: how a per-token method treats each token of the frame, looked at in the untimed warm-up run."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

GROUPS, DAMPING = "groups", "damping"
WORDS = {
    GROUPS: "dark: reused, middle: moved straight on, light: blended",
    DAMPING: "how far a token's motion is carried on, from dark (reused) to light (straight on)",
}
#: moments at which the map is kept, in shares of the run
MOMENTS = (0.25, 0.5, 0.75)
TILE = 64  # least pixels of a frame's map


class TokenMaps:
    """Looks at the first branch's fit after each denoiser call, and keeps it at :data:`MOMENTS`.

    Attributes:
        kind: ``groups``, ``damping``, or empty where the method does not treat tokens apart.
        found: values in [0, 1], ``[frames, height, width]`` in tokens, one a moment.
    """

    def __init__(self, pipe: Any, calls: int) -> None:
        self._pipe, self._due = pipe, [max(1, round(calls * share)) for share in MOMENTS]
        self.kind, self.found = "", []

    def __call__(self, count: int) -> None:
        if count in self._due:
            kind, values = _of_fit(_fit(self._pipe))
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


def _fit(pipe: Any) -> Any:
    """What the first denoiser's first branch was fitted with last, or None."""
    handle = pipe.__dict__.get("diffcache")
    for _, hook in handle.hooks.values() if handle is not None else ():
        for branch in hook.segment.branches.values() if hook.segment is not None else ():
            return next(iter(getattr(branch.cache, "fits", None) or ()), None)
    return None


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
