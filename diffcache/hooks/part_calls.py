"""Calls of the modules inside an attention module, as they are seen while it runs once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .attending import Attention
from .outputs import Template, flatten
from .selection import Place


@dataclass(frozen=True)
class PartCall:
    """A call of a part of a module.

    Attributes:
        name: of the part.
        given, result: the tensor that it got, and the one that it returned.
        after: whether the attention was behind it.
    """

    name: str
    given: Tensor
    result: Tensor
    after: bool


class Watching:
    """Within: calls of a module's parts are noted, not those of parts of parts.

    Args:
        module: an attention module.

    Attributes:
        calls: in order.
        attention, mixed: torch's attention as it was called, and its result; None if it was not, or more than once.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module, self._hooks = module, []
        self._depth = self._times = 0
        self.calls: list[PartCall] = []
        self.attention: Attention | None = None
        self.mixed: Tensor | None = None

    def attend(self, attention: Attention, mixed: Tensor) -> None:
        """Torch's attention was called."""
        self._times += 1
        self.attention, self.mixed = (attention, mixed) if self._times == 1 else (None, None)

    def __enter__(self) -> Watching:
        for name, part in self._module.named_modules():
            if part is not self._module:
                self._hooks.append(part.register_forward_pre_hook(self._begin))
                self._hooks.append(part.register_forward_hook(partial(self._end, name), with_kwargs=True))
        return self

    def __exit__(self, *error: Any) -> None:
        for hook in self._hooks:
            hook.remove()

    def _begin(self, part: nn.Module, args: Any) -> None:
        self._depth += 1

    def _end(self, name: str, part: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        self._depth -= 1
        given, _ = flatten((args, kwargs))
        if self._depth == 0 and len(given) == 1 and isinstance(result, Tensor):
            self.calls.append(PartCall(name, given[0], result, self._times > 0))


@dataclass(frozen=True)
class Scene:
    """What was seen of one call of an attention module with the rows of some tokens.

    Attributes:
        name, module: of the unit or feeder.
        watching: its parts.
        tensors, template: its arguments.
        places: where the tokens are in the complete arguments.
        results: what it returned.
    """

    name: str
    module: nn.Module
    watching: Watching
    tensors: Sequence[Tensor]
    template: Template
    places: Sequence[Place | None]
    results: Sequence[Tensor]


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same values. Reads the device unless they are one."""
    return a is b or (a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b))
