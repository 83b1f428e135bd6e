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

NAME = "diffcache"
"""Of the attention implementation, in transformers' registry."""

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
        return attend(q, k, v, scale, self.mask(q.device))

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
