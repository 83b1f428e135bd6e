"""Where the tokens are in a denoiser's output: the feature axis, the modalities along it, and the patch grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Modality:
    """A range of channels that belongs together (RGB, depth, pose). ``stop=None`` means to the end."""

    name: str
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class TokenLayout:
    """How to read an output tensor as tokens without moving it.

    Attributes:
        channel_dim: the feature axis (negative counts from the end).
        modalities: channel ranges, each with statistics of its own.
        patch: window sizes along the last ``len(patch)`` axes that form one token; ``()`` where a position is a token.
            Statistics are summed over a window and spread over it again, so every position of a patch shares one
            weight.
    """

    channel_dim: int = -1
    modalities: tuple[Modality, ...] = (Modality("all"),)
    patch: tuple[int, ...] = ()

    def split(self, output: Tensor) -> list[Tensor]:
        """One view per modality; no copy."""
        width = output.shape[self.channel_dim]
        return [
            output.narrow(self.channel_dim, m.start, (width if m.stop is None else m.stop) - m.start)
            for m in self.modalities
        ]

    def per_token(self, features: Tensor) -> Tensor:
        """Sum over the feature axis (kept with size 1), pooled over the patch. fp32."""
        total = features.sum(self.channel_dim, keepdim=True)
        return self._pool(total) if self.patch_of(features) else total

    def patch_of(self, output: Tensor) -> tuple[int, ...]:
        """The patch, or ``()`` where a position is a token: no patch, or a grid that has no whole number of them."""
        if all(size == 1 for size in self.patch):
            return ()
        grid = output.shape[-len(self.patch) :]
        return () if any(length % size for length, size in zip(grid, self.patch, strict=True)) else self.patch

    def _pool(self, total: Tensor) -> Tensor:
        n = len(self.patch)
        grid = total.shape[-n:]
        flat = total.reshape(-1, 1, *grid)
        pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[n - 1]
        pooled = pool(flat, self.patch)
        for axis, size in enumerate(self.patch):
            pooled = pooled.repeat_interleave(size, dim=axis + 2)
        return pooled.reshape(total.shape)
