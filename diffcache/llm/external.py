"""The external site: attention outside the block, kept with its log-sum-exp and merged with the one inside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import starmap

import torch
from torch import Tensor

from ..hooks.instants import Instant, instants, seconds_between
from ..kernels import merge_attention
from .attention import attend_lse, attend_outside
from .plan import External


class ExternalStore:
    """Attention outside the block with its log-sum-exp, of each layer: ``A [B, H, b, d]`` fp32, ``lse [B, H, b]``.

    Bytes: ``4 * layers * B * b * H * (d + 1)``, whatever the length of the sequence.
    """

    def __init__(self) -> None:
        self.parts: dict[int, tuple[Tensor, Tensor]] = {}
        self.version = -1

    @property
    def bytes(self) -> int:
        """Held now."""
        return sum(4 * (a.numel() + lse.numel()) for a, lse in self.parts.values())


class ExternalWork:
    """What attention outside the block cost, and what memory saved of it.

    Attributes:
        forwards: those that took it from memory for at least one sequence.
        computed, spared, inside: products of a query and a key, over heads, layers and sequences: outside the block,
            those of them that memory saved, and inside it.
        shares: mean weight of the part outside, of each layer of those forwards.
        times: when computing it began and ended.
    """

    def __init__(self) -> None:
        self.forwards = self.computed = self.spared = self.inside = 0
        self.shares: list[Tensor] = []
        self.times: list[tuple[Instant, Instant]] = []

    @property
    def saved(self) -> float | None:
        """Share of the work outside the block that memory saved; None without any."""
        return self.spared / (self.spared + self.computed) if self.spared + self.computed else None

    @property
    def saved_of_all(self) -> float | None:
        """The same, of the work outside and inside."""
        whole = self.spared + self.computed + self.inside
        return self.spared / whole if whole else None

    @property
    def seconds(self) -> float:
        """Spent in computing it. Waits for a GPU."""
        return sum(starmap(seconds_between, self.times))

    @property
    def share(self) -> float | None:
        """Mean weight of the part outside where memory had some of it. Reads the device once."""
        return float(torch.stack(self.shares).mean()) if self.shares else None

    def count(self, ext: External, layer: int, q: Tensor, keys: int) -> None:
        """One layer of a forward with queries ``[B, H, T, d]`` over ``keys`` keys."""
        batch, heads, queries, _ = q.shape
        within = ext.inner[1] - ext.inner[0]
        whole = batch * heads
        done = whole if ext.fresh is None else len(ext.fresh) * heads
        if ext.heads is not None:
            done += (batch * heads - done) // heads * ext.heads[layer].numel()
        self.computed += done * queries * (keys - within)
        self.spared += (whole - done) * queries * (keys - within)
        self.inside += whole * queries * within


def merged(
    ext: External,
    store: ExternalStore,
    work: ExternalWork,
    layer: int,
    qkv: tuple[Tensor, Tensor, Tensor],
    scale: float,
    mask: Tensor | None = None,
) -> Tensor:
    """A layer's attention ``[B, H, T, d]`` from the parts outside and inside the keys ``ext.inner``.

    Args:
        ext: of which sequences and heads the part outside is computed; of the others it is taken from ``store``.
        qkv: ``[B, H, T, d]`` and twice ``[B, H_kv, K, d]``.
        mask: as in :func:`diffcache.llm.attention.attend`.
    """
    q, k, v = qkv
    now = instants(q.device)
    began = now()
    out, lse = _outside(ext, store, layer, qkv, scale, mask)
    work.times.append((began, now()))
    work.count(ext, layer, q, k.shape[2])
    first, last = ext.inner
    within = None if mask is None else mask[..., first:last]
    own, own_lse = attend_lse(q, k[:, :, first:last], v[:, :, first:last], scale, within)
    whole, total = merge_attention(out.float(), lse, own.float(), own_lse)
    if ext.use:
        work.shares.append(torch.exp(lse - total).nan_to_num(0.0).mean())
    return whole.to(q.dtype)


def _outside(
    ext: External,
    store: ExternalStore,
    layer: int,
    qkv: tuple[Tensor, Tensor, Tensor],
    scale: float,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    if ext.fresh is None:
        out, lse = attend_outside(*qkv, scale, ext.inner, mask)
        if ext.listener is not None:
            ext.listener.hear(layer, out.float(), lse)
        if ext.store:
            store.parts[layer] = out.float(), lse
        return out, lse
    parts = store.parts[layer]
    _renew(parts, ext.fresh, None, qkv, scale, ext.inner, mask)
    if ext.heads is not None and ext.heads[layer].numel():
        others = sorted(set(range(len(qkv[0]))) - set(ext.fresh))
        _renew(parts, others, ext.heads[layer], qkv, scale, ext.inner, mask)
    return parts


def _renew(
    parts: tuple[Tensor, Tensor],
    samples: Sequence[int],
    heads: Tensor | None,
    qkv: tuple[Tensor, Tensor, Tensor],
    scale: float,
    inner: tuple[int, int],
    mask: Tensor | None,
) -> None:
    """Compute the part outside for some samples, ascending, and of them for some heads (int64) or all."""
    for span in _spans(samples):  # slices: keys are not copied
        q, k, v = (t[span] for t in qkv)
        if heads is not None:
            of = heads // (q.shape[1] // k.shape[1])
            q, k, v = q.index_select(1, heads), k.index_select(1, of), v.index_select(1, of)
        seen = mask if mask is None or len(mask) == 1 else mask[span]
        for held, new in zip(parts, attend_outside(q, k, v, scale, inner, seen)):
            if heads is None:
                held[span].copy_(new)
            else:
                held[span].index_copy_(1, heads, new.to(held.dtype))


def _spans(samples: Sequence[int]) -> Iterator[slice]:
    """Runs of neighbours."""
    begin = 0
    for at in range(1, len(samples) + 1):
        if at == len(samples) or samples[at] != samples[at - 1] + 1:
            yield slice(samples[begin], samples[at - 1] + 1)
            begin = at
