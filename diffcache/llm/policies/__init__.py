"""Policies: the methods for diffusion language models, as plans for each forward."""

from .base import Policy, Task
from .registry import make_policy, refusal

__all__ = ["Policy", "Task", "make_policy", "refusal"]
