"""One forward under way: the attention function that transformers' layers call, and what it reads and writes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ..kernels import merge_attention
from .attention import attend, attend_lse, attend_split
from .kv import PositionKVCache
from .plan import External, StepPlan

NAME = "diffcache"
"""Of the attention implementation, in transformers' registry."""

KEYWORD = "diffcache_pass"
"""Of the forward's argument that carries the pass to every layer."""

_lock = threading.Lock()


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


class ForwardPass:
    """What the layers of one forward share.

    Args:
        plan: what is computed.
        kv: where keys and values live.
        padding: bool ``[B, N]``, True at real tokens, or None.
        store: of the external site.
    """

    def __init__(self, plan: StepPlan, kv: PositionKVCache, padding: Tensor | None, store: ExternalStore) -> None:
        self.plan, self.kv, self.padding, self.store = plan, kv, padding, store
        self.rows = plan.rows  # a probe may widen them in the middle of a forward
        self.shares: list[Tensor] = []
        self._masks: dict[Any, Tensor | None] = {}

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
        """The layer's attention ``[B, H, T, d]``; writes its keys and values. Its mask is the plan's."""
        plan = self.plan
        if plan.probe is not None:
            plan.probe.hear_before(self, layer, q, k, scale)
        if plan.keep:
            k, v = (plan.source or self.kv).exchange(layer, self.rows, k, v, plan.stop)
        if plan.probe is not None:
            plan.probe.hear_after(self, layer, q, k, scale)
        if plan.external is not None:
            return self._merged(layer, q, k, v, scale)
        return attend(q, k, v, scale, self.mask(q.device))

    def _merged(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        ext = self.plan.external
        out, share = merged(ext, ext.inner, self.store, layer, (q, k, v), scale, self.mask(q.device))
        self.shares.append(share)
        return out

    def mask(self, device: torch.device) -> Tensor | None:
        """Which keys the rows see, bool ``[B or 1, 1, T or 1, K]``, or None for all; made once a forward."""
        key = self.rows.count
        if key not in self._masks:
            self._masks[key] = self._make_mask(device)
        return self._masks[key]

    def _make_mask(self, device: torch.device) -> Tensor | None:
        plan, mask = self.plan, None
        keys = torch.arange(plan.stop, device=device)[None] if plan.keep else self.rows.positions(device)
        for allowed in (self.padding, plan.seen):
            if allowed is not None:
                part = allowed.gather(1, keys.expand(len(allowed), -1))[:, None, None, :]
                mask = part if mask is None else mask & part
        if plan.triangular is not None:
            rows = self.rows.positions(device)[:, :, None]
            lower = (rows // plan.triangular >= keys[:, None, :] // plan.triangular)[:, None]
            # a padded row sees itself, or its softmax has nothing to sum over
            mask = lower if mask is None else (lower & mask) | (rows == keys[:, None, :])[:, None]
        return mask


def attention_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """The attention function in transformers' registry; a call that carries no pass of ours is plain SDPA."""
    current: ForwardPass | None = kwargs.pop(KEYWORD, None)
    if current is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    scale = kwargs.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return current.attend(module.layer_idx, query, key, value, scale, attention_mask).transpose(1, 2), None


def merged(
    ext: External,
    inner: tuple[int, int],
    store: ExternalStore,
    layer: int,
    qkv: tuple[Tensor, Tensor, Tensor],
    scale: float,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Attention of a layer from the parts outside and inside ``inner``, and the mean weight of the one outside."""
    q, k, v = qkv
    if not ext.use:
        out, lse, *inside = attend_split(q, k, v, scale, inner, mask)
        if ext.listener is not None:
            ext.listener.hear(layer, out.float(), lse)
        if ext.store:
            store.parts[layer] = out.float(), lse
    else:
        if ext.heads is not None:
            _renew(ext.heads[layer], inner, store.parts[layer], qkv, scale, mask)
        out, lse = store.parts[layer]
        first, last = inner
        within = None if mask is None else mask[..., first:last]
        inside = attend_lse(q, k[:, :, first:last], v[:, :, first:last], scale, within)
    whole, total = merge_attention(out.float(), lse, inside[0].float(), inside[1])
    return whole.to(q.dtype), torch.exp(lse - total).mean()


def _renew(
    heads: Tensor,
    inner: tuple[int, int],
    parts: tuple[Tensor, Tensor],
    qkv: tuple[Tensor, Tensor, Tensor],
    scale: float,
    mask: Tensor | None,
) -> None:
    """Compute the part outside for some heads (positions, int64), over what is stored of them."""
    if heads.numel() == 0:
        return
    q, k, v = qkv
    of = heads // (q.shape[1] // k.shape[1])
    fresh = attend_split(
        q.index_select(1, heads), k.index_select(1, of), v.index_select(1, of), scale, inner, mask, inside=False
    )
    for held, new in zip(parts, fresh):
        held.index_copy_(1, heads, new.to(held.dtype))


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def attending(model: nn.Module) -> Iterator[None]:
    """Inside, the model's layers call :func:`attention_forward`; afterwards they call what they did before.

    Generations of one model may overlap: the last one to leave puts the implementation back.
    """
    with _lock:
        count, before = model.__dict__.get("_diffcache_attending", (0, model.config._attn_implementation))
        model.__dict__["_diffcache_attending"] = count + 1, before
        if count == 0:
            model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        with _lock:
            count, before = model.__dict__.pop("_diffcache_attending")
            if count > 1:
                model.__dict__["_diffcache_attending"] = count - 1, before
            else:
                model.set_attn_implementation(before)
