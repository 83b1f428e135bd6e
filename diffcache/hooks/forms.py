"""Which input of a denoiser an output is the noise or the velocity of, and the part of it that the output is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .anatomy import Anatomy


@dataclass(frozen=True)
class Form:
    """Shape of an output, and its channel axis."""

    shape: torch.Size
    axis: int

    def cut(self, sample: Tensor) -> Tensor | None:
        """The channels of ``sample`` that the output is about; None if they differ in more than channels.

        Pipelines put the noisy channels first and conditions behind them; a learned variance comes behind the noise.
        """
        if sample.shape == self.shape:
            return sample
        if sample.dim() != len(self.shape):
            return None
        cut = sample.narrow(self.axis, 0, min(sample.shape[self.axis], self.shape[self.axis]))
        others = [i for i in range(sample.dim()) if i != self.axis]
        return cut if all(cut.shape[i] == self.shape[i] for i in others) else None

    def less(self, output: Tensor, base: Tensor | None) -> Tensor:
        """What the output has over its base."""
        return self._add(output, base, -1)

    def onto(self, difference: Tensor, base: Tensor | None) -> Tensor:
        """The output from its base."""
        return self._add(difference, base, 1)

    def _add(self, value: Tensor, base: Tensor | None, sign: int) -> Tensor:
        if base is None:
            return value
        if base.shape == value.shape:
            return torch.add(value, base, alpha=sign)
        value = value.clone()
        value.narrow(self.axis, 0, base.shape[self.axis]).add_(base, alpha=sign)
        return value


def counterparts(anatomy: Anatomy, inputs: Mapping[str, Any], forms: list[Form]) -> list[Tensor | None]:
    """For each output the input that it is the noise or the velocity of, or None: the sample's tensors in order, then
    other inputs of the output's shape (sound beside a film)."""
    fixed = {anatomy.sample, anatomy.timestep, *anatomy.conditioning}
    own = floating(inputs[anatomy.sample])
    others = [tensor for name, value in inputs.items() if name not in fixed for tensor in floating(value)]
    found: list[Tensor | None] = [form.cut(tensor) for form, tensor in zip(forms, own, strict=False)]
    for form in forms[len(own) :]:
        match = next((i for i, tensor in enumerate(others) if tensor.shape == form.shape), None)
        found.append(None if match is None else others.pop(match))
    return found


def floating(value: Any) -> list[Tensor]:
    """Tensors of numbers in an argument, in order."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    parts = value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in parts for tensor in floating(part)]
