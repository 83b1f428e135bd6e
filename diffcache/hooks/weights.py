"""Noticing that a model's weights or adapters are not those that the cached values came from."""

from __future__ import annotations

from itertools import chain
from operator import attrgetter, is_
from typing import Any

from torch import nn

from .tree import ModuleTree

_VERSION = attrgetter("_version")


class WeightsWatch:
    """A cheap fingerprint of a model's weights: version counters, identities, and the state of PEFT adapters."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._tree = model, ModuleTree(model)
        self._adapters: tuple[Any, ...] | None = None
        self._layers: list[nn.Module] = []
        self._slots: list[dict[str, nn.Parameter | None]] = []
        self._seen: list[nn.Parameter | None] = []
        self._identity = 0
        self._counted: list[nn.Parameter] = []

    def fingerprint(self) -> tuple[Any, ...]:
        """Equal while nothing changed in place, was replaced, and no adapter was loaded, switched or rescaled.

        Moving weights between devices changes nothing: that is what offloading does. Weights that accelerate brings
        for one call only, as new parameters each time, are not looked at.
        """
        adapters = self._loaded()
        if adapters != self._adapters:
            self._adapters = adapters
            self._walk()
        state = tuple(
            (m.disable_adapters, tuple(m.active_adapters), tuple(m.scaling.items()), tuple(m.merged_adapters))
            for m in self._layers
        )
        return adapters, state, self._stamp()

    @property
    def adapted(self) -> bool:
        """Whether there are adapters, which can be switched and switched back: that is no version's doing."""
        return bool(self._model.__dict__.get("peft_config"))

    def _loaded(self) -> tuple[Any, ...]:
        return tuple(self._model.__dict__.get("peft_config") or ())  # past the modules' own slow attributes

    def look_again(self) -> None:
        """Modules may have been put in or taken out, or offloaded, since."""
        self._adapters = None

    def _walk(self) -> None:
        self._layers, self._slots = [], []
        for module in self._tree.modules():
            attributes = vars(module)
            if "scaling" in attributes and "merged_adapters" in attributes:
                self._layers.append(module)
            if attributes["_parameters"] and not _offloaded(attributes.get("_hf_hook")):
                self._slots.append(attributes["_parameters"])

    def _stamp(self) -> int:
        """Sum of the identities and versions of all parameters that have them. Runs at many steps: kept short."""
        parameters = list(chain.from_iterable(map(dict.values, self._slots)))
        if len(parameters) != len(self._seen) or not all(map(is_, parameters, self._seen)):
            # An offloaded parameter stands on the meta device, and a new one stands there each time.
            self._seen = parameters
            self._counted = [p for p in parameters if p is not None and not p.is_meta and not p.is_inference()]
            self._identity = sum(map(id, self._counted))
        return self._identity + sum(map(_VERSION, self._counted))


def _offloaded(hook: Any) -> bool:
    """Whether accelerate's hook on a module, or None, brings its weights for one call only."""
    return hook is not None and any(getattr(part, "offload", False) for part in getattr(hook, "hooks", (hook,)))
