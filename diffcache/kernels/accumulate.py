"""A: what several modules left in their caches onto the stream, in one pass; and the stream back into token order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ConfigError
from .dispatch import kernel
from .index import batched
from .rows import CHUNK, per_row, put, take, wide

#: modules of one pass; more take another one
MOST = 8


@kernel("(Tensor(a!) x, Tensor[] caches, Tensor[] gates, Tensor index, Tensor(b!)? into)")
def _accumulate(x, caches, gates, index, into) -> None:
    batch, size, width = x.shape
    step = size if torch.compiler.is_compiling() else max(1, CHUNK // (4 * batch * width))
    for start in range(0, size, step):
        part = x.narrow(1, start, min(step, size - start))
        tokens = index.narrow(1, start, part.shape[1])
        sums = part.to(wide(x), copy=into is not None)
        product = torch.empty_like(sums)
        for cache, gate in zip(caches, gates, strict=True):
            gate = gate if gate.shape[1] == 1 else gate.narrow(1, start, part.shape[1])
            torch.mul(take(cache, tokens).to(sums.dtype), gate.to(sums.dtype), out=product)
            sums.add_(product)
        if into is not None:
            put(into, tokens, sums.to(into.dtype))
        elif sums.dtype != x.dtype:
            part.copy_(sums)


@torch.no_grad()
def accumulate(
    x: Tensor, caches: Sequence[Tensor], gates: Sequence[Tensor], index: Tensor, into: Tensor | None = None
) -> Tensor:
    """``x[:, r] += gate * cache[:, index[r]]`` for each cache in turn, rounded once; in place, or ``into`` a tensor.

    For rows of a stream in rank order whose tokens no module has computed since. Bytes per sample for n caches and m
    rows: ``(2 + n)*m*D*e``, where one pass of :func:`scatter_update` for each moves ``3*n*m*D*e``.

    Args:
        x: ``[B, m, D]``, rows of the stream; updated, unless ``into`` is given.
        caches: n >= 0 of ``[B, N, D]``, in token order, N >= m.
        gates: one for each: ``[D]``, ``[B, D]``, ``[B, 1, D]`` or for each row of ``x`` ``[B, m, D]``.
        index: ``[m]``, ``[1, m]`` or ``[B, m]`` distinct tokens: row r of ``x`` is token ``index[r]``.
        into: ``[B, N, D]``, in token order: row ``index[r]`` of it gets the sum, and ``x`` keeps what it had.

    Returns:
        ``x``, or ``into``.

    Raises:
        ConfigError: a shape or an index that is not right.
    """
    written = [] if into is None else [into]
    tokens = max([t.shape[1] for t in (x, *caches, *written)])
    index = batched("index", index, len(x), tokens)
    if index.shape[1] != x.shape[1]:
        raise ConfigError(f"index: {index.shape[1]} tokens are not right, must be one for each of {x.shape[1]} rows")
    if len(caches) != len(gates):
        raise ConfigError(f"gates: {len(gates)} are not right, must be one for each of {len(caches)} caches")
    for name, given in [*(("caches", cache) for cache in caches), *(("into", t) for t in written)]:
        if tuple(given.shape) != (len(x), tokens, x.shape[2]):
            wanted = [len(x), tokens, x.shape[2]]
            raise ConfigError(f"{name}: shape {list(given.shape)} is not right, must be {wanted}")
    gates = [per_row("gates", gate, x) for gate in gates]
    for start in range(0, len(caches) if into is None else max(len(caches), 1), MOST):
        last = start + MOST >= len(caches)
        several = slice(start, start + MOST)
        _accumulate(x, [*caches[several]], gates[several], index, into if last else None)
    return x if into is None else into
