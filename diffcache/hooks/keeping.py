"""Tensors that a model keeps beside its weights: buffers, plain attributes, and what its helper objects hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .given import version

#: torch's own bookkeeping, and that of hooks
_ASIDE = frozenset(vars(nn.Module())) | {"_diffusers_hook", "_hf_hook", "diffcache"}
_DEPTH = 3

#: a container, the key in it, and what stood there
Link = tuple[Any, Any, Any]


@dataclass(frozen=True)
class Kept:
    """One tensor, and the way to it from its module.

    Attributes:
        tensor: as it was found.
        counted: its version then.
        links: from the module's attributes down to the tensor.
    """

    tensor: Tensor
    counted: int
    links: tuple[Link, ...]

    @property
    def intact(self) -> bool:
        """Whether the same tensor still stands in the same place, and nobody has written to it."""
        return version(self.tensor) == self.counted and all(
            _at(owner, key) is value for owner, key, value in self.links
        )


def kept_tensors(model: nn.Module) -> Iterator[Kept]:
    """Everything that is kept by the model and its parts, parameters apart."""
    for module in model.modules():
        yield from _in(module._buffers, ())
        yield from _in({name: v for name, v in vars(module).items() if name not in _ASIDE}, (), vars(module))


def _in(items: dict[Any, Any], links: tuple[Link, ...], owner: Any = None) -> Iterator[Kept]:
    for key, value in items.items():
        way = (*links, (items if owner is None else owner, key, value))
        if isinstance(value, Tensor):
            if not value.is_meta:
                yield Kept(value, version(value), way)
        elif len(way) < _DEPTH and not isinstance(value, (nn.Module, type)):
            inside, holder = _contents(value)
            yield from _in(inside, way, holder)


def _contents(value: Any) -> tuple[dict[Any, Any], Any]:
    if isinstance(value, dict):
        return value, value
    if isinstance(value, (list, tuple)):
        return dict(enumerate(value)), value
    attributes = getattr(value, "__dict__", None)
    return (attributes, attributes) if isinstance(attributes, dict) else ({}, None)


def _at(owner: Any, key: Any) -> Any:
    try:
        return owner[key]
    except (KeyError, IndexError):
        return None
