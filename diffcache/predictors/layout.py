"""Where the tokens are in a denoiser's output: the feature axis, the modalities along it, and the patch grid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

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
        channel_dim: the feature axis (negative counts from the end; not where there is a patch).
        modalities: channel ranges, each with statistics of its own.
        patch: window sizes along the last ``len(patch)`` axes that form one token; ``()`` where a position is a token.
    """

    channel_dim: int = -1
    modalities: tuple[Modality, ...] = (Modality("all"),)
    patch: tuple[int, ...] = ()

    @cached_property
    def whole(self) -> bool:
        """Whether there is one modality, which takes every channel."""
        return len(self.modalities) == 1 and self.modalities[0].stop is None and self.modalities[0].start == 0

    def split(self, output: Tensor) -> list[Tensor]:
        """One view per modality, each patched axis unfolded into (windows, window); no copy."""
        return self.channels(self._unfold(output))

    def channels(self, output: Tensor) -> list[Tensor]:
        """One view per modality; no copy."""
        if self.whole:
            return [output]
        return [
            output.narrow(self.channel_dim, m.start, width)
            for m, width in zip(self.modalities, self.widths(output), strict=True)
        ]

    def widths(self, output: Tensor) -> list[int]:
        """Channels of each modality."""
        width = output.shape[self.channel_dim]
        return [(width if m.stop is None else m.stop) - m.start for m in self.modalities]

    def features(self, output: Tensor) -> tuple[int, ...]:
        """The axes of a :meth:`split` view of ``output`` that hold one token's features, the channels first."""
        axes, axis = [self.channel_dim % output.dim()], output.dim() - len(self.patch)
        for size in self._patch_of(output):
            axis += 1
            if size > 1:
                axes.append(axis)
                axis += 1
        return tuple(axes)

    def _unfold(self, output: Tensor) -> Tensor:
        patch = self._patch_of(output)
        if not patch:
            return output
        shape = list(output.shape[: -len(patch)])
        for length, size in zip(output.shape[-len(patch) :], patch, strict=True):
            shape += [length // size, size] if size > 1 else [length]
        return output.view(shape)

    def _patch_of(self, output: Tensor) -> tuple[int, ...]:
        """The patch, or ``()`` where a position is a token: no patch, or a grid that has no whole number of them."""
        if all(size == 1 for size in self.patch):
            return ()
        grid = output.shape[-len(self.patch) :]
        return () if any(length % size for length, size in zip(grid, self.patch, strict=True)) else self.patch
