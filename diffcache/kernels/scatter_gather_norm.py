"""F: the tail of one partial sub-layer and the head of the next in one pass over the stream."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigError
from .dispatch import kernel
from .gather_norm import _gather_norm
from .index import batched
from .rows import norm_kind, per_row, target
from .scatter_update import _scatter_update, checked_inverse, checked_update


@kernel(
    "(Tensor(a!) x, Tensor fresh, Tensor(b!) cache, Tensor? index, Tensor? inverse, Tensor? gate, bool ranked,"
    " Tensor? next_index, Tensor? next_inverse, Tensor? weight, Tensor? bias, Tensor? scale, Tensor? shift,"
    " Tensor(c!) out, float eps, bool rms)"
)
def _scatter_gather_norm(
    x, fresh, cache, index, inverse, gate, ranked, next_index, next_inverse, weight, bias, scale, shift, out, eps, rms
) -> None:
    _scatter_update.reference(x, fresh, cache, index, inverse, gate, ranked)
    first = out.shape[1]
    if first == 0:
        return
    if next_index is None:
        x, scale, shift = (t if t is None or t.shape[1] == 1 else t[:, :first] for t in (x, scale, shift))
    _gather_norm.reference(x, next_index, weight, bias, scale, shift, out, eps, rms)


@torch.no_grad()
def scatter_gather_norm(
    x: Tensor,
    fresh: Tensor,
    cache: Tensor,
    index: Tensor | None = None,
    gate: Tensor | None = None,
    next_index: Tensor | int | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-6,
    kind: str = "layer",
    ranked: bool = False,
    inverse: Tensor | None = None,
    next_inverse: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """:func:`scatter_update`, then :func:`gather_norm` of the updated ``x``; the same values as the two in turn.

    The norm sees the stream as it is stored, rounded. Bytes per sample: ``(3*N + k + k2)*D*e``; in two passes it is
    ``k2*D*e`` more.

    Args:
        x, fresh, cache, index, gate, ranked, inverse: as for :func:`scatter_update`; ``next_inverse`` is that of
            ``next_index``.
        next_index: rows of ``x`` for the next sub-layer, as ``index`` of :func:`gather_norm`; or a number: the first
            so many; or None: all.
        weight, bias, scale, shift, eps, kind: as for :func:`gather_norm`.
        out: ``[B, k2, D]`` to write to.

    Returns:
        ``out``.

    Raises:
        ConfigError: as of both.
    """
    rms = norm_kind(kind)
    index, gate = checked_update(x, fresh, cache, index, gate, ranked)
    inverse = checked_inverse("inverse", inverse, x)
    next_inverse = checked_inverse("next_inverse", next_inverse, x)
    first = next_index if isinstance(next_index, int) else None
    following = None if first is not None else batched("next_index", next_index, len(x), x.shape[1])
    scale, shift = per_row("scale", scale, x), per_row("shift", shift, x)
    if first is not None and not 0 <= first <= x.shape[1]:
        raise ConfigError(f"next_index: {first} is out of range, must be from 0 to {x.shape[1]}")
    count = following.shape[1] if following is not None else x.shape[1] if first is None else first
    out = target("out", out, (len(x), count, x.shape[2]), x)
    _scatter_gather_norm(
        x,
        fresh,
        cache,
        index,
        inverse,
        gate,
        ranked,
        following,
        next_inverse,
        weight,
        bias,
        scale,
        shift,
        out,
        eps,
        rms,
    )
    return out
