"""A denoiser's output seen as the tokens that its blocks work on: token by token, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor

from ..errors import UnsupportedModelError
from .anatomy import Anatomy


@dataclass(frozen=True)
class Grid:
    """Where each token's numbers are in an output.

    Attributes:
        channel: axis of the features.
        patch: sizes of a token's window along the axes behind the features; ``()`` where tokens stand in a row.
    """

    channel: int
    patch: tuple[int, ...]

    @classmethod
    def of(cls, anatomy: Anatomy, output: Tensor, tokens: int) -> Grid:
        """The grid of an output of so many tokens, row by row as patch embeddings flatten it.

        Raises:
            UnsupportedModelError: the output has not one window for each token.
        """
        channel = anatomy.layout(output).channel_dim % output.dim()
        axes = output.dim() - 2
        grid = cls(channel, () if channel == output.dim() - 1 else (*(1,) * axes, *anatomy.patch)[-axes:])
        if any(size % p for size, p in zip(grid._extent(output), grid._window, strict=True)) or (
            prod(grid.shape(output)) != tokens
        ):
            raise UnsupportedModelError(
                f"site output by tokens: {anatomy.model_class} returns {tuple(output.shape)}, and its blocks work on "
                f"{tokens} tokens: which belong together is not known"
            )
        return grid

    def shape(self, output: Tensor) -> list[int]:
        """Tokens along each axis."""
        return [size // p for size, p in zip(self._extent(output), self._window, strict=True)]

    def sums(self, values: Tensor) -> Tensor:
        """The sum over each token's features, mean over the batch; ``[tokens]``."""
        view = self._view(values)
        return view.sum([1, *self._inner(view)]).mean(0).flatten()

    def spread(self, mask: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        """A view of ``output``, and ``[tokens]`` shaped to be broadcast to it."""
        view, shape = self._view(output), self.shape(output)
        if self.patch:
            shape = [n for size in shape for n in (size, 1)]
        return view, mask.view(1, 1, *shape)

    @property
    def _window(self) -> Sequence[int]:
        return self.patch or (1,)

    def _extent(self, output: Tensor) -> list[int]:
        return [size for axis, size in enumerate(output.shape) if axis not in (0, self.channel)]

    def _view(self, output: Tensor) -> Tensor:
        """``[batch, channels, tokens along an axis, window, ...]``; no copy."""
        view = output.movedim(self.channel, 1)
        for axis in reversed(range(len(self.patch))):
            view = view.unflatten(2 + axis, (-1, self.patch[axis]))
        return view

    def _inner(self, view: Tensor) -> list[int]:
        return list(range(3, view.dim(), 2)) if self.patch else []
