"""Fused tensor kernels: a torch reference of each, which is also the CPU path."""

from .combine import combine, extrapolate
from .gram import gram

__all__ = ["combine", "extrapolate", "gram"]
