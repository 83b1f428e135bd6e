"""Which branch a denoiser call belongs to: its label, or the identity of its conditioning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from diffusers.hooks.hooks import BaseState, StateManager
from torch import Tensor


class BranchLabel(StateManager):
    """Hears the name that a pipeline gives a call with ``model.cache_context(name)``; None outside.

    Args:
        hear: called with the name, in the thread or task that gives it.
    """

    def __init__(self, hear: Callable[[str | None], None]) -> None:
        super().__init__(BaseState)
        self._hear = hear

    def set_context(self, context: Any) -> None:
        # A string in older diffusers, an object with a name in newer ones.
        self._hear(getattr(context, "name", context))


class Conditioning:
    """The conditioning of one call, comparable without touching the device in the usual case.

    Tensors are told apart by identity; what is written as a number, a word or a flag (a cache mode, layers to skip, a
    modality left out) by value. Holds references, so that an address cannot be reused by another tensor meanwhile.
    """

    def __init__(self, values: Iterable[Any]) -> None:
        self.tensors: list[Tensor] = []
        self.switches: list[Any] = []
        for value in values:
            self._add(value)
        self.versions = list(map(version, self.tensors))

    def _add(self, value: Any) -> None:
        """Tensors and plain values in containers; other objects tell nothing and are left out."""
        if isinstance(value, Tensor):
            self.tensors.append(value)
        elif isinstance(value, (str, int)) or value is None:
            self.switches.append(value)
        elif isinstance(value, Mapping):
            for key in value:
                self.switches.append(str(key))
                self._add(value[key])
        elif isinstance(value, (list, tuple)):
            for part in value:
                self._add(part)

    def same_objects(self, other: Conditioning) -> bool:
        """Same storage, shape and version: no value is read."""
        return (
            len(self.tensors) == len(other.tensors)
            and self.versions == other.versions
            and self.switches == other.switches
            and all(map(same_object, self.tensors, other.tensors))
        )

    def same_content(self, other: Conditioning) -> bool:
        """Same shapes and values: reads the device. For pipelines that build the conditioning anew each step.

        A tensor that was written to since we saw it is not the same, whatever it holds: the old values are gone.
        """
        if len(self.tensors) != len(other.tensors) or self.switches != other.switches:
            return False
        pairs = zip(self.tensors, self.versions, other.tensors, other.versions, strict=True)
        return all(_equal(a, b) and (a.data_ptr() != b.data_ptr() or i == j) for a, i, b, j in pairs)

    def adopt(self, other: Conditioning) -> None:
        """Remember the newest objects that carry this content."""
        self.tensors, self.versions = other.tensors, other.versions


def same_object(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one and the same memory, read alike."""
    return a is b or (a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.dtype == b.dtype)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


def version(tensor: Tensor) -> int:
    """How often the tensor was written to; 0 where torch does not count."""
    return 0 if tensor.is_inference() else tensor._version
