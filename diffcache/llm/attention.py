"""Attention that also gives its log-sum-exp, over grouped heads without repeating keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import merge_attention

_aten = torch.ops.aten


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Softmax attention.

    Args:
        q: ``[B, H, T, d]``.
        k, v: ``[B, H_kv, K, d]``, ``H`` a multiple of ``H_kv``.
        scale: factor of the scores.
        mask: bool ``[B or 1, 1, T or 1, K]``, True where a query sees a key. None: everywhere.

    Returns:
        ``[B, H, T, d]``.
    """
    folded, mask = _fold(q, k, mask)
    return F.scaled_dot_product_attention(folded, k, v, attn_mask=mask, scale=scale).view(q.shape)


def attend_lse(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """:func:`attend`, and the natural logarithm of the sum of exponentials, fp32 ``[B, H, T]``.

    A query that sees no key gives 0 and -inf.
    """
    if k.shape[2] == 0:
        return torch.zeros_like(q), q.new_full(q.shape[:3], -torch.inf, dtype=torch.float32)
    folded, mask = _fold(q, k, mask)
    out, lse = _backend(folded, k, v, scale, mask)
    return out.view(q.shape), lse.reshape(q.shape[:3])


def attend_outside(
    q: Tensor, k: Tensor, v: Tensor, scale: float, inner: tuple[int, int], mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`attend_lse` over all keys but ``[inner[0], inner[1])``."""
    first, last = inner
    part = (lambda a, b: mask) if mask is None else (lambda a, b: mask[..., a:b])
    out, lse = attend_lse(q, k[:, :, :first], v[:, :, :first], scale, part(0, first))
    if last < k.shape[2]:
        behind = attend_lse(q, k[:, :, last:], v[:, :, last:], scale, part(last, k.shape[2]))
        out, lse = merge_attention(out, lse, *behind)
    return out, lse


def probabilities(q: Tensor, k: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """The attention weights, fp32 ``[B, H, T, K]``: for policies that read them, on few rows."""
    folded, mask = _fold(q, k, mask)
    scores = torch.matmul(folded.float(), k.float().transpose(2, 3)) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1).view(*q.shape[:3], k.shape[2])


def _fold(q: Tensor, k: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Queries of one group become rows of one head, ``[B, H_kv, g*T, d]``: keys need no repeating."""
    groups = q.shape[1] // k.shape[1]
    if groups == 1:
        return q, mask
    if mask is not None and mask.shape[2] > 1:
        mask = mask.repeat(1, 1, groups, 1)
    return q.reshape(q.shape[0], k.shape[1], groups * q.shape[2], q.shape[3]), mask


def _backend(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    if q.device.type == "cpu" and mask is None:
        return _aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scale)
    if q.is_cuda and mask is None and q.dtype in (torch.float16, torch.bfloat16):
        return _aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)[:2]
    scores = torch.matmul(q.float(), k.float().transpose(2, 3)) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    lse = scores.logsumexp(-1)
    weights = torch.exp(scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None])
    return torch.matmul(weights, v.float()).to(q.dtype), lse
