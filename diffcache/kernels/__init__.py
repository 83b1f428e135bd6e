"""Fused tensor kernels: a torch reference of each, which is also the CPU path."""

from .combine import combine

__all__ = ["combine"]
