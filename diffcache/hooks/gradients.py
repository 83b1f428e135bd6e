"""Working on tensors beside the model, without a graph of gradients."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch

_NOTHING = nullcontext()
_Made = TypeVar("_Made")


def without_gradients() -> AbstractContextManager[Any]:
    """``torch.no_grad()``; nothing where that holds already, for entering it costs more than a small operation."""
    return torch.no_grad() if torch.is_grad_enabled() else _NOTHING


def detached(work: Callable[..., _Made], *given: Any) -> _Made:
    """``work(*given)`` under :func:`without_gradients`, in fewer calls: for what runs at every step."""
    if not torch.is_grad_enabled():
        return work(*given)
    with torch.no_grad():
        return work(*given)
