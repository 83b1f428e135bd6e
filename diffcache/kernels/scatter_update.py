"""S: the tail of a partial sub-layer. Fresh rows into the cache, and every row of the stream gets gate * cache."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigError
from .dispatch import kernel
from .index import batched
from .rows import add_gated, per_row, put, take


@kernel("(Tensor(a!) x, Tensor fresh, Tensor(b!) cache, Tensor? index, Tensor? inverse, Tensor? gate, bool ranked)")
def _scatter_update(x, fresh, cache, index, inverse, gate, ranked) -> None:
    count = fresh.shape[1]
    put(cache, index[:, :count] if ranked else index, fresh)
    if not ranked:
        return add_gated(x, cache, gate)
    each = gate is not None and gate.shape[1] > 1
    add_gated(x[:, :count], fresh, gate[:, :count] if each else gate)
    add_gated(x[:, count:], take(cache, index[:, count:]), gate[:, count:] if each else gate)


@torch.no_grad()
def scatter_update(
    x: Tensor,
    fresh: Tensor,
    cache: Tensor,
    index: Tensor | None = None,
    gate: Tensor | None = None,
    ranked: bool = False,
    inverse: Tensor | None = None,
) -> Tensor:
    """``cache[index] = fresh; x += gate * cache`` for all rows, in place.

    Each program owns one row of ``x`` and the one row of ``cache`` that belongs to it, so there are no atomics.
    The cache gets the bits of ``fresh``; its other rows are not written. k = 0 adds what is cached.
    Bytes per sample: ``(3*N + k)*D*e``.

    Args:
        x: the residual stream ``[B, N, D]``; updated. Where ``ranked``, its first m rows may stand for it.
        fresh: a module's output before its gate, ``[B, k, D]``, of the cache's dtype.
        cache: that output of all tokens, ``[B, N, D]``; updated.
        index: ``[k]``, ``[1, k]`` or ``[B, k]`` distinct tokens: row r of ``fresh`` belongs to token ``index[r]``.
            None: k = N, in order. Where ``ranked``, the tokens of all rows of ``x`` in their order.
        gate: ``[D]``, ``[B, D]``, ``[B, 1, D]``, or for each row of ``x`` ``[B, N, D]``; none is 1.
        ranked: whether ``x`` is in rank order: its row r is token ``index[r]``, and its first k rows are fresh.
            ``cache`` stays in token order.
        inverse: :func:`~.index.inverse` of ``index``, where the caller has it already: one for all layers of a step
            saves a GPU four small launches a call. Not used on the CPU, nor where ``ranked``.

    Returns:
        ``x``.

    Raises:
        ConfigError: a shape, or a dtype of ``fresh`` or the index, that is not right.
    """
    index, gate = checked_update(x, fresh, cache, index, gate, ranked)
    inverse = checked_inverse("inverse", inverse, x)
    _scatter_update(x, fresh, cache, index, inverse, gate, ranked)
    return x


def checked_update(x, fresh, cache, index, gate, ranked) -> tuple[Tensor | None, Tensor | None]:
    """The index and the gate as the kernels take them."""
    tokens = max(x.shape[1], cache.shape[1]) if ranked else x.shape[1]
    index = batched("index", index, len(x), tokens)
    if ranked and (index is None or index.shape[1] != x.shape[1]):
        raise ConfigError(f"index: a ranked stream needs all its {x.shape[1]} tokens in their order")
    count = fresh.shape[1] if ranked else x.shape[1] if index is None else index.shape[1]
    if tuple(fresh.shape) != (len(x), count, x.shape[2]) or count > x.shape[1]:
        raise ConfigError(
            f"fresh: shape {list(fresh.shape)} is not right, must be {[len(x), min(count, x.shape[1]), x.shape[2]]}"
        )
    if tuple(cache.shape) != (len(x), tokens, x.shape[2]):
        raise ConfigError(f"cache: shape {list(cache.shape)} is not right, must be that of x, {list(x.shape)}")
    if fresh.dtype != cache.dtype:
        raise ConfigError(f"fresh: {fresh.dtype} is not right, must be the cache's {cache.dtype}")
    return index, per_row("gate", gate, x)


def checked_inverse(name: str, inverse: Tensor | None, x: Tensor) -> Tensor | None:
    """An inverse as the kernels take it.

    Raises:
        ConfigError: not int32 of shape ``[1 or B, N]``.
    """
    if inverse is None or (inverse.dtype == torch.int32 and inverse.shape in ((1, x.shape[1]), tuple(x.shape[:2]))):
        return inverse
    b, n = x.shape[:2]
    raise ConfigError(
        f"{name}: {inverse.dtype} {list(inverse.shape)} is not right, must be torch.int32 [1, {n}] or [{b}, {n}]"
    )
