"""Working on tensors beside the model, without a graph of gradients."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

_NOTHING = nullcontext()


def without_gradients() -> AbstractContextManager[Any]:
    """``torch.no_grad()``; nothing where that holds already, for entering it costs more than a small operation."""
    return torch.no_grad() if torch.is_grad_enabled() else _NOTHING
