"""Noticing that modules were put into a model or taken out of it: LoRA layers, quantised layers."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from itertools import chain

from torch import nn


class ModuleTree:
    """The modules that a model is made of."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._known: list[weakref.ref[nn.Module]] = []
        self._parts: list[int] = []
        self.look_again()

    def look_again(self) -> bool:
        """Whether it is made of others than it was at the last look."""
        if self._same():
            return False
        modules = list(self._model.modules())
        self._known, self._parts = list(map(weakref.ref, modules)), _parts(modules)
        return True

    def modules(self) -> list[nn.Module]:
        """All of them, looked at anew."""
        self.look_again()
        return [known() for known in self._known]

    def _same(self) -> bool:
        # Much quicker than to walk through the model. While all are alive, an identity can be nobody else's.
        modules = [known() for known in self._known]
        return bool(modules) and all(module is not None for module in modules) and _parts(modules) == self._parts


def _parts(modules: Iterable[nn.Module]) -> list[int]:
    """Identities of what each module has directly below it."""
    return list(map(id, chain.from_iterable(module._modules.values() for module in modules)))
