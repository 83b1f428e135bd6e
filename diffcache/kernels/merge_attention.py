"""M: attention over two disjoint sets of keys, merged by their log-sum-exp."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigError
from .dispatch import kernel
from .rows import target


@kernel("(Tensor a, Tensor lse_a, Tensor b, Tensor lse_b, Tensor(c!) out, Tensor(d!) lse_out)")
def _merge_attention(a, lse_a, b, lse_b, out, lse_out) -> None:
    left, right = lse_a.float(), lse_b.float()
    shift = torch.maximum(left, right)
    shift.masked_fill_(shift == -torch.inf, 0.0)  # both are empty: exp(-inf - 0) is 0, -inf - -inf is NaN
    left, right = torch.exp(left - shift), torch.exp(right - shift)
    total = left + right
    norm = total.masked_fill(total == 0.0, 1.0)
    merged = _weighed(a, left / norm).add_(_weighed(b, right / norm))
    out.copy_(merged)
    lse_out.copy_(shift.add_(norm.log_()).masked_fill_(total == 0.0, -torch.inf))


def _weighed(part: Tensor, weight: Tensor) -> Tensor:
    """An empty part counts 0, whatever its values are."""
    weight = weight[..., None]
    return (part.float() * weight).masked_fill_(weight == 0.0, 0.0)


@torch.no_grad()
def merge_attention(
    a: Tensor,
    lse_a: Tensor,
    b: Tensor,
    lse_b: Tensor,
    out: Tensor | None = None,
    lse_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention over the union of two disjoint key sets, from the two results; fp32 inside.

    ``w = exp(lse - max)``, ``out = (w_a*a + w_b*b) / (w_a + w_b)``, ``lse_out = max + log(w_a + w_b)``. A part with
    ``lse = -inf`` is empty and its values are not used; both empty give 0 and -inf.
    Bytes: ``3*B*H*q*d*e + 12*B*H*q``.

    Args:
        a, b: ``[B, H, q, d]``, normalised over their own keys.
        lse_a, lse_b: ``[B, H, q]``, natural logarithm of the sum of exponentials.
        out: ``[B, H, q, d]`` to write to; may be ``a`` or ``b`` itself.
        lse_out: ``[B, H, q]`` to write to; may be ``lse_a`` or ``lse_b`` itself. fp32 by default.

    Returns:
        ``out`` and ``lse_out``.

    Raises:
        ConfigError: shapes that do not agree.
    """
    for name, t, want in (("b", b, a.shape), ("lse_a", lse_a, a.shape[:-1]), ("lse_b", lse_b, a.shape[:-1])):
        if a.dim() != 4 or t.shape != want:
            raise ConfigError(f"{name}: shape {list(t.shape)} does not belong to a of shape {list(a.shape)}")
    out = target("out", out, tuple(a.shape), a)
    lse_out = target("lse_out", lse_out, tuple(lse_a.shape), lse_a.float())
    if out.numel():
        _merge_attention(a, lse_a, b, lse_b, out, lse_out)
    return out, lse_out
