"""Attention as a module computes it: its queries, keys and values at the one place through which all of them go.

Whatever a processor does before (projections, norms, rotary positions, text beside the picture), torch's attention is
called with finished queries, keys and values. There a partial call can be given all keys although only some were
computed, and no processor has to be known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Attention:
    """One call of ``scaled_dot_product_attention``.

    Attributes:
        query, key, value: ``[..., length, head width]``.
        mask: broadcast to ``[..., queries, keys]``, or None.
        rest: dropout, causality, scale.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    rest: dict[str, Any]

    def run(self) -> Tensor:
        """``[..., queries, head width]``."""
        return F.scaled_dot_product_attention(self.query, self.key, self.value, attn_mask=self.mask, **self.rest)

    def over(self, key: Tensor, value: Tensor, mask: Tensor | None) -> Attention:
        """The same queries over other keys."""
        return replace(self, key=key, value=value, mask=mask)


class Attending(TorchFunctionMode):
    """Within: every attention goes through ``attend``.

    Args:
        attend: (number of the call within, the call) -> its result.
    """

    def __init__(self, attend: Callable[[int, Attention], Tensor]) -> None:
        super().__init__()
        self._attend = attend
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        number, self.calls = self.calls, self.calls + 1
        return self._attend(number, _bound(*args, **(kwargs or {})))


def _bound(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *plain: Any, **rest: Any
) -> Attention:
    named = dict(zip(("dropout_p", "is_causal"), plain, strict=False))
    return Attention(query, key, value, attn_mask, {**named, **rest})
