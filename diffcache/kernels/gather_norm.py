"""G: the head of a partial sub-layer. Chosen rows -> LayerNorm or RMSNorm -> scale and shift -> packed rows."""

from __future__ import annotations

import torch
from torch import Tensor

from .dispatch import kernel
from .index import batched
from .rows import norm_kind, normalise, per_row, take, target


@kernel(
    "(Tensor x, Tensor? index, Tensor? weight, Tensor? bias, Tensor? scale, Tensor? shift, Tensor(a!) out, float eps,"
    " bool rms)"
)
def _gather_norm(x, index, weight, bias, scale, shift, out, eps, rms) -> None:
    rows = normalise(take(x, index), rms, weight, bias, eps)
    if scale is not None:
        rows.mul_(1.0 + take(scale, index).float())
    if shift is not None:
        rows.add_(take(shift, index).float())
    out.copy_(rows)


@torch.no_grad()
def gather_norm(
    x: Tensor,
    index: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-6,
    kind: str = "layer",
    out: Tensor | None = None,
) -> Tensor:
    """``norm(x[b, index[b, r]]) * (1 + scale) + shift`` as packed rows; fp32 inside, one rounding out.

    Bytes per sample: ``2*k*D*e`` (read and write k rows).

    Args:
        x: ``[B, N, D]``, any strides of the first two axes.
        index: ``[k]``, ``[1, k]`` or ``[B, k]`` distinct rows, int32 or int64. None: all rows in order, which serves
            a stream in rank order, ``gather_norm(x[:, :k])``.
        weight, bias: of the norm, ``[D]``.
        scale, shift: ``[D]``, ``[B, D]``, ``[B, 1, D]``, or for each token ``[B, N, D]``, in the order of ``x``.
        kind: ``"layer"`` or ``"rms"``.
        out: ``[B, k, D]`` to write to, of any of the dtypes; one of ``x``'s dtype by default.

    Returns:
        ``out``.

    Raises:
        ConfigError: a shape, an index dtype or ``kind`` that is not right.
    """
    rms = norm_kind(kind)
    index = batched("index", index, len(x), x.shape[1])
    scale, shift = per_row("scale", scale, x), per_row("shift", shift, x)
    count = x.shape[1] if index is None else index.shape[1]
    out = target("out", out, (len(x), count, x.shape[2]), x)
    if out.numel():
        _gather_norm(x, index, weight, bias, scale, shift, out, eps, rms)
    return out
