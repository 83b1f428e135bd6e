"""What hooks could leave on a model."""

from __future__ import annotations

from torch import nn


def attributes(module: nn.Module) -> dict[str, set[str]]:
    """Names of the instance attributes of every submodule."""
    return {name: set(part.__dict__) for name, part in module.named_modules()}


def forward_hooks(module: nn.Module) -> int:
    """How many of torch's forward hooks are registered."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())
