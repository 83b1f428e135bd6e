"""Noticing that a model's weights or adapters are not those that the cached values came from."""

from __future__ import annotations

from typing import Any

from torch import nn


class WeightsWatch:
    """A cheap fingerprint of a model's weights: version counters, and the state of PEFT adapters if there are any."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._adapters: Any = ()
        self._layers: list[nn.Module] = []
        self._parameters = list(model.parameters())

    def fingerprint(self) -> tuple[Any, ...]:
        """Equal while nothing changed in place and no adapter was loaded, removed, switched or rescaled."""
        adapters = tuple(getattr(self._model, "peft_config", None) or ())
        if adapters != self._adapters:
            self._adapters = adapters
            self._parameters = list(self._model.parameters())
            self._layers = [m for m in self._model.modules() if hasattr(m, "scaling") and hasattr(m, "active_adapters")]
        state = tuple(
            (tuple(m.active_adapters), tuple(m.scaling.items()), tuple(getattr(m, "merged_adapters", ())))
            for m in self._layers
        )
        return adapters, state, sum(0 if p.is_inference() else p._version for p in self._parameters)
