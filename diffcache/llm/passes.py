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

from .attention import attend
from .external import ExternalStore, ExternalWork, merged
from .kv import PositionKVCache
from .plan import StepPlan
from .rows import Rows

NAME = "diffcache"
"""Of the attention implementation, in transformers' registry."""

TILE = 128
"""Rows of a block-causal forward whose attention is computed at once, as far as whole blocks allow."""

KEYWORD = "diffcache_pass"
"""Of the forward's argument that carries the pass to every layer."""

_lock = threading.Lock()


class ForwardPass:
    """What the layers of one forward share.

    Args:
        plan: what is computed.
        kv: where keys and values live.
        padding: bool ``[B, N]``, True at real tokens, or None.
        store, work: of the external site, what is kept and what is counted.
    """

    def __init__(
        self,
        plan: StepPlan,
        kv: PositionKVCache,
        padding: Tensor | None,
        store: ExternalStore,
        work: ExternalWork,
    ) -> None:
        self.plan, self.kv, self.padding, self.store, self.work = plan, kv, padding, store, work
        self.rows = plan.rows  # a probe may widen them in the middle of a forward
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
            return merged(plan.external, self.store, self.work, layer, (q, k, v), scale, self.mask(q.device))
        if self._tiles:
            return self._by_tiles(q, k, v, scale)
        return attend(q, k, v, scale, self.mask(q.device))

    @property
    def _tiles(self) -> bool:
        """Many rows under a block-causal mask, over keys that begin at position 0."""
        plan, rows = self.plan, self.rows
        return (
            plan.triangular is not None and rows.index is None and rows.count > TILE and (plan.keep or not rows.start)
        )

    def _by_tiles(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Some blocks of rows at once, over the keys up to theirs: no mask of all rows by all keys is ever there."""
        size, rows, out = self.plan.triangular, self.rows, torch.empty_like(q)
        tile, begin = max(TILE // size, 1) * size, rows.start
        while begin < rows.stop:
            end = min(begin // tile * tile + tile, rows.stop)
            stop = min(-(-end // size) * size, k.shape[2])
            at = slice(begin - rows.start, end - rows.start)
            mask = self._make_mask(q.device, Rows(begin, end), stop)
            out[:, :, at] = attend(q[:, :, at], k[:, :, :stop], v[:, :, :stop], scale, mask)
            begin = end
        return out

    def mask(self, device: torch.device) -> Tensor | None:
        """Which keys the rows see, bool ``[B or 1, 1, T or 1, K]``, or None for all; made once a forward."""
        key = self.rows.count
        if key not in self._masks:
            self._masks[key] = self._make_mask(device, self.rows, self.plan.stop if self.plan.keep else None)
        return self._masks[key]

    def _make_mask(self, device: torch.device, rows: Rows, stop: int | None) -> Tensor | None:
        """Of these rows, over the keys ``[0, stop)``; None: over the keys of all rows of the forward."""
        plan, mask = self.plan, None
        keys = self.rows.positions(device) if stop is None else torch.arange(stop, device=device)[None]
        for allowed in (self.padding, plan.seen):
            if allowed is not None:
                part = allowed.gather(1, keys.expand(len(allowed), -1))[:, None, None, :]
                mask = part if mask is None else mask & part
        size = plan.triangular
        if size is None or (mask is None and stop is not None and _in_last_block(rows, stop, size)):
            return mask
        at = rows.positions(device)[:, :, None]
        lower = (at // size >= keys[:, None, :] // size)[:, None]
        # a padded row sees itself, or its softmax has nothing to sum over
        return lower if mask is None else (lower & mask) | (at == keys[:, None, :])[:, None]


def _in_last_block(rows: Rows, stop: int, size: int) -> bool:
    """Whether all rows lie in the block in which the keys end: they see every key."""
    return rows.index is None and rows.start // size == (stop - 1) // size


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
