"""Keys and values of every layer, addressed by absolute position."""

from __future__ import annotations

import torch
from torch import Tensor

from .rows import Rows


class PositionKVCache:
    """Post-RoPE keys and values ``[B, H_kv, N, d]`` a layer, written in place at the positions that were computed.

    A key carries its rotation, so it can be read in any order and is never rotated again. Bytes:
    ``2 * layers * B * N * H_kv * d * element_size``, allocated once.

    Args:
        capacity: positions, N.

    Attributes:
        version: rises when a row that was there is written again: what was derived from the old rows is stale.
        filled: positions ``[0, filled)`` have been written.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.version, self.filled = capacity, 0, 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def announce(self, rows: Rows, behind: int = 0) -> None:
        """Before a forward that writes ``rows``.

        Args:
            behind: rows from here on are the block under way, whose change makes nothing stale.
        """
        start, stop = (rows.start, rows.stop) if rows.index is None else (0, self.capacity)
        if start < min(self.filled, behind):
            self.version += 1
        self.filled = max(self.filled, stop)

    def grow(self, capacity: int) -> None:
        """Room for more positions; what is there stays."""
        if capacity <= self.capacity:
            return
        self.capacity = max(capacity, 2 * self.capacity)
        for layer, pair in self._layers.items():
            more = self.capacity - pair[0].shape[2]
            self._layers[layer] = tuple(torch.nn.functional.pad(t, (0, 0, 0, more)) for t in pair)

    def write(self, layer: int, rows: Rows, k: Tensor, v: Tensor) -> None:
        """Put ``[B, H_kv, T, d]`` at ``rows`` of a layer."""
        for held, new in zip(self._of(layer, k, v), (k, v)):
            rows.put(held, new, axis=2)

    def read(self, layer: int, stop: int) -> tuple[Tensor, Tensor]:
        """Keys and values at ``[0, stop)``, as views."""
        k, v = self._layers[layer]
        return k[:, :, :stop], v[:, :, :stop]

    def values(self, layer: int) -> Tensor:
        """The layer's values ``[B, H_kv, N, d]``; what is written to them stays."""
        return self._layers[layer][1]

    def exchange(self, layer: int, rows: Rows, k: Tensor, v: Tensor, stop: int) -> tuple[Tensor, Tensor]:
        """Write the rows, then read ``[0, stop)``."""
        self.write(layer, rows, k, v)
        return self.read(layer, stop)

    def _of(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if layer not in self._layers:
            self._layers[layer] = tuple(
                torch.zeros(*t.shape[:2], self.capacity, t.shape[3], dtype=t.dtype, device=t.device) for t in (k, v)
            )
        return self._layers[layer]

    @property
    def bytes(self) -> int:
        """Held now."""
        return sum(t.numel() * t.element_size() for pair in self._layers.values() for t in pair)
