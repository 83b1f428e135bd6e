"""What hooks could leave on a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


def attributes(module: nn.Module) -> dict[str, set[str]]:
    """Names of the instance attributes of every submodule."""
    return {name: set(part.__dict__) for name, part in module.named_modules()}


def forward_hooks(module: nn.Module) -> int:
    """How many of torch's forward hooks are registered."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def with_own_forward(module: nn.Module) -> tuple[Callable[..., Any], list[int]]:
    """Put a forward of the user's own on the instance; it, and a list that grows with each of its calls."""
    inner, calls = module.forward, []

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return inner(*args, **kwargs)

    module.forward = forward
    return forward, calls
