"""P: what follows the QKV projection of chosen rows: bias, norm and RoPE of q and k; K and V into the cache."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigError
from .dispatch import kernel
from .index import batched
from .rows import norm_kind, normalise, put, take, target

#: how q and k are normalised, as the operator's number
NORMS = {None: 0, "rms": 1, "layer": 2}


@kernel(
    "(Tensor? q, Tensor? k, Tensor? v, Tensor? index, Tensor? q_bias, Tensor? k_bias, Tensor? v_bias, Tensor? q_weight,"
    " Tensor? k_weight, Tensor? q_norm_bias, Tensor? k_norm_bias, Tensor? cos, Tensor? sin, Tensor(a!)? q_out,"
    " Tensor(b!)? k_cache, Tensor(c!)? v_cache, float eps, int norm, bool across_heads, bool interleaved,"
    " bool packed)"
)
def _project_epilogue(
    q, k, v, index, q_bias, k_bias, v_bias, q_weight, k_weight, q_norm_bias, k_norm_bias, cos, sin, q_out, k_cache,
    v_cache, eps, norm, across_heads, interleaved, packed,
) -> None:  # fmt: skip
    turn, width = None, (q if k is None else k).shape[-1]
    if cos is not None:
        turn = [_widened(t if packed else take(t, index), width, interleaved) for t in (cos, sin)]

    def finished(rows: Tensor, bias: Tensor | None, weight: Tensor | None, norm_bias: Tensor | None) -> Tensor:
        rows = _biased(rows, bias)
        if norm:
            rows = normalise(rows, norm == NORMS["rms"], weight, norm_bias, eps, axes=2 if across_heads else 1)
        if turn is not None:
            rows = rows.float()
            rows = rows * turn[0] + _turned(rows, interleaved) * turn[1]
        return rows

    if q is not None:
        q_out.copy_(finished(q, q_bias, q_weight, q_norm_bias))
    if k is not None:
        put(k_cache, index, finished(k, k_bias, k_weight, k_norm_bias).to(k_cache.dtype))
        put(v_cache, index, _biased(v, v_bias).to(v_cache.dtype))


def _biased(rows: Tensor, bias: Tensor | None) -> Tensor:
    return rows if bias is None else rows.float() + bias.float().view(rows.shape[-2:])


def _widened(table: Tensor, width: int, interleaved: bool) -> Tensor:
    """A table of angles as it multiplies a head, ``[B or 1, k, 1, d]``."""
    table = table.float()[:, :, None]
    if table.shape[-1] == width:
        return table
    return table.repeat_interleave(2, -1) if interleaved else torch.cat([table, table], -1)


def _turned(rows: Tensor, interleaved: bool) -> Tensor:
    """A quarter turn of every pair: ``(a, b) -> (-b, a)``."""
    if interleaved:
        a, b = rows.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([-b, a], -1).flatten(-2)
    a, b = rows.chunk(2, -1)
    return torch.cat([-b, a], -1)


@torch.no_grad()
def project_epilogue(
    q: Tensor | None = None,
    k: Tensor | None = None,
    v: Tensor | None = None,
    k_cache: Tensor | None = None,
    v_cache: Tensor | None = None,
    index: Tensor | None = None,
    *,
    biases: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None),
    norm: str | None = None,
    norm_weights: tuple[Tensor | None, Tensor | None] = (None, None),
    norm_biases: tuple[Tensor | None, Tensor | None] = (None, None),
    across_heads: bool = False,
    eps: float = 1e-6,
    rope: tuple[Tensor, Tensor] | None = None,
    interleaved: bool = True,
    packed: bool = False,
    q_out: Tensor | None = None,
) -> Tensor | None:
    """Finish the projections of k rows: ``+ bias``, norm, RoPE; q packed, K and V at their tokens in the cache.

    K is cached after norm and RoPE, for a token's position never changes. V only gets its bias (none: its bits).
    fp32 inside, one rounding out. Bytes per sample: ``6*k*D*e``. Heads need not be contiguous: a fused projection
    is passed as three views of it, and a cache ``[B, H, N, d]`` as ``cache.transpose(1, 2)``; a cache that begins
    with M text rows as ``cache[:, M:]``.

    Args:
        q: ``[B, k, H, d]``, or None where only K and V are wanted.
        k, v: ``[B, k, Hkv, d]``, or None where only q is (cross-attention).
        k_cache, v_cache: ``[B, N, Hkv, d]``; their rows ``index`` are written, no others.
        index: ``[k]``, ``[1, k]`` or ``[B, k]`` distinct tokens; None: the first k.
        biases: of q, k and v, ``[H * d]``, where the projection has left them out.
        norm: of q and k: None, ``"rms"`` or ``"layer"``.
        norm_weights, norm_biases: of q's and k's norm, ``[d]``, or ``[H * d]`` where it goes across heads.
        across_heads: whether one norm spans all heads of a row, as in Wan, or each head has its own.
        rope: cosine and sine of every token, ``[N, d]`` or ``[N, d / 2]``, or with a leading batch axis; rows are
            taken by ``index``. None: no RoPE.
        packed: whether ``rope`` holds the angles of the k rows alone, in their order.
        interleaved: whether elements 2i and 2i + 1 are a pair (FLUX, Wan), or i and i + d / 2.
        q_out: ``[B, k, H, d]`` to write to, any strides of the first three axes, none of the inputs' memory.

    Returns:
        ``q_out``; None without q.

    Raises:
        ConfigError: a shape, an index dtype or ``norm`` that is not right, or K without V or cache.
    """
    if norm is not None:
        norm_kind(norm)
    rows = _check(q, k, v, k_cache, v_cache)
    cos, sin = (None, None) if rope is None else (_table(t, rows, interleaved) for t in rope)
    size = k_cache.shape[1] if k is not None else rows.shape[1] if cos is None else cos.shape[1]
    index = batched("index", index, len(rows), size)
    if packed and cos is not None and cos.shape[1] != rows.shape[1]:
        raise ConfigError(f"rope: {cos.shape[1]} packed rows of angles for {rows.shape[1]} rows")
    if (rows.shape[1] if index is None else index.shape[1]) != rows.shape[1]:
        raise ConfigError(f"index: {index.shape[1]} tokens for {rows.shape[1]} rows")
    if index is None:  # the first rows
        cos, sin, k_cache, v_cache = (t if t is None else t[:, : rows.shape[1]] for t in (cos, sin, k_cache, v_cache))
    q_out = None if q is None else target("q_out", q_out, tuple(q.shape), q)
    if rows.shape[1]:
        _project_epilogue(
            q, k, v, index, *biases, *norm_weights, *norm_biases, cos, sin, q_out, k_cache, v_cache, eps, NORMS[norm],
            across_heads, interleaved, packed,
        )  # fmt: skip
    return q_out


def _check(q, k, v, k_cache, v_cache) -> Tensor:
    """One of q and k."""
    together = [t is None for t in (k, v, k_cache, v_cache)]
    if any(together) != all(together):
        raise ConfigError("k: must come together with v, k_cache and v_cache")
    rows = q if q is not None else k
    if rows is None:
        raise ConfigError("q, k: one of them must be given")
    if k is not None:
        want = (len(rows), rows.shape[1], *k.shape[2:])
        for name, t in (("k", k), ("v", v)):
            if tuple(t.shape) != want:
                raise ConfigError(f"{name}: shape {list(t.shape)} is not right, must be {list(want)}")
        for name, t in (("k_cache", k_cache), ("v_cache", v_cache)):
            if len(t) != len(k) or t.shape[2:] != k.shape[2:] or t.shape[1] < k.shape[1]:
                b, n, h, d = k.shape
                raise ConfigError(f"{name}: shape {list(t.shape)} is not right, must be [{b}, >= {n}, {h}, {d}]")
    return rows


def _table(table: Tensor, rows: Tensor, interleaved: bool) -> Tensor:
    """Angles as ``[B or 1, N, d or d / 2]``."""
    table = table[None] if table.dim() == 2 else table
    d = rows.shape[-1]
    if table.dim() != 3 or len(table) not in (1, len(rows)) or table.shape[-1] not in (d, d // 2) or d % 2:
        raise ConfigError(f"rope: shape {list(table.shape)} is not right, must be [N, {d}] or [N, {d // 2}] (even)")
    return table
