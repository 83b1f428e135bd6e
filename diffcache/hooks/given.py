"""What a denoiser call was given, comparable with the next call's without reading the device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from .flow import leaves

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.memory_format, Enum)


def is_plain(value: Any) -> bool:
    """Whether a value is all that it says: no tensor, and nothing that somebody may change behind its name."""
    return isinstance(value, _PLAIN)


@dataclass(frozen=True)
class Given:
    """The arguments of one call.

    Attributes:
        still: (argument, tensor, version) of what is taken to stay the same for a trajectory.
        form: everything else that must be equal: numbers, words and flags by value, shape, dtype and device of what
            moves, other objects by identity, torch's modes.
    """

    still: tuple[tuple[str, Tensor, int], ...]
    form: tuple[Any, ...]

    @classmethod
    def of(cls, inputs: Mapping[str, Any], moving: Iterable[str]) -> Given:
        """Read the arguments; those named in ``moving`` may have other values at every call."""
        still, form = [], [_modes()]
        for name, value in inputs.items():
            for leaf in (value,) if isinstance(value, Tensor) else leaves(value):
                if not isinstance(leaf, Tensor):
                    form.append((name, type(leaf), leaf if is_plain(leaf) else _Shown(leaf)))
                elif name in moving:
                    form.append((name, leaf.shape, leaf.dtype, leaf.device))
                else:
                    still.append((name, leaf, version(leaf)))
        return cls(tuple(still), tuple(form))

    @property
    def shape(self) -> tuple[Any, ...]:
        """What a plan depends on: the form, and the shapes of what stays the same."""
        return self.form, tuple((name, t.shape, t.stride(), t.dtype, t.device) for name, t, _ in self.still)

    @property
    def portable(self) -> bool:
        """Whether the form says all about a call, and holds on to nothing."""
        return not any(isinstance(part[-1], _Shown) for part in self.form)

    def changed(self, now: Given) -> set[str] | None:
        """Arguments whose tensors are not the same as ``now``, or None if the calls are of another form."""
        if self.form != now.form or len(self.still) != len(now.still):
            return None
        pairs = zip(self.still, now.still, strict=True)
        return {name for (name, a, i), (_, b, j) in pairs if i != j or not (a is b or _same_memory(a, b))}


def version(tensor: Tensor) -> int:
    """How often the tensor was written to; -1 where torch does not count (inference mode)."""
    return -1 if tensor.is_inference() else tensor._version


class _Shown:
    """An object that is neither tensor nor plain: the same one, with the same attributes."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.parts = tuple((name, id(part)) for name, part in getattr(value, "__dict__", {}).items())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Shown) and self.value is other.value and self.parts == other.parts

    def __hash__(self) -> int:
        return id(self.value)


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype


def _modes() -> tuple[Any, ...]:
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), _autocast("cpu"), _autocast("cuda")


def _autocast(device: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
