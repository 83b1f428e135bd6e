"""Noticing that modules were put into a model or taken out of it: LoRA layers, quantised layers."""

from __future__ import annotations

import weakref
from operator import is_

from torch import nn


class ModuleTree:
    """The modules that a model is made of."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._known: list[weakref.ref[nn.Module]] = []
        self.look_again()

    def look_again(self) -> bool:
        """Whether it is made of others than it was at the last look."""
        modules = list(self._model.modules())
        same = len(modules) == len(self._known) and all(map(is_, modules, (known() for known in self._known)))
        if not same:
            self._known = [weakref.ref(module) for module in modules]
        return not same
