"""What a model is beside its weights: its parts, its buffers, plain attributes, and what its helper objects hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from operator import is_
from typing import Any

from torch import Tensor, nn

from .given import version

#: torch's own bookkeeping, and that of hooks
OWN_NAMES = frozenset(vars(nn.Module())) | {"_diffusers_hook", "_hf_hook", "diffcache"}
_DEPTH = 3


class Parts:
    """The submodules of a model, to notice that one was replaced, added or taken away."""

    def __init__(self, model: nn.Module) -> None:
        self._owners = [module._modules for module in model.modules() if module._modules]
        self._seen = self._now()

    def _now(self) -> list[nn.Module | None]:
        # Runs at every step: kept short.
        return list(chain.from_iterable(map(dict.values, self._owners)))

    @property
    def same(self) -> bool:
        """Whether every part stands where it stood."""
        now = self._now()
        return len(now) == len(self._seen) and all(map(is_, now, self._seen))


@dataclass(frozen=True)
class Kept:
    """One tensor, and the way to it.

    Attributes:
        tensor: as it was found.
        counted: its version then.
        owner: where the way begins: a module's attributes, or its buffers.
        way: names and indices from there.
    """

    tensor: Tensor
    counted: int
    owner: dict[str, Any]
    way: tuple[Any, ...]

    @property
    def intact(self) -> bool:
        """Whether the same tensor still stands in the same place, and nobody has written to it."""
        return version(self.tensor) == self.counted and self._found() is self.tensor

    def _found(self) -> Any:
        value: Any = self.owner
        for key in self.way:
            try:
                value = _contents(value)[key]
            except (KeyError, IndexError):
                return None
        return value


def kept_tensors(model: nn.Module) -> Iterator[Kept]:
    """Everything that is kept by the model and its parts, parameters apart."""
    for module in model.modules():
        for owner in (module._buffers, vars(module)):
            yield from _in(owner, owner, ())


def _in(owner: dict[str, Any], value: Any, way: tuple[Any, ...]) -> Iterator[Kept]:
    contents = _contents(value)
    for key in contents if isinstance(contents, dict) else range(len(contents)):
        part = contents[key]
        if isinstance(part, Tensor):
            if not part.is_meta:
                yield Kept(part, version(part), owner, (*way, key))
        elif len(way) + 1 < _DEPTH and key not in OWN_NAMES and not isinstance(part, (nn.Module, type)):
            yield from _in(owner, part, (*way, key))


def _contents(value: Any) -> Any:
    """What can be looked up in a value by name or index; an object's attributes."""
    if isinstance(value, (dict, list, tuple)):
        return value
    attributes = getattr(value, "__dict__", None)
    return attributes if isinstance(attributes, dict) else ()
