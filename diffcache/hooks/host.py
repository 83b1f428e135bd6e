"""What the host may read at once, and what it has to wait for."""

from __future__ import annotations

from torch import Tensor


def waits(value: Tensor) -> bool:
    """Whether the host has to wait for a device before it can read ``value``."""
    return not value.is_cpu
