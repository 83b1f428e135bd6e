"""A denoiser's return value as a list of tensors, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Template:
    """The shape of a return value: a tensor, a tuple or list (nested), or a diffusers output class.

    What is neither (a number, or the cache of keys that a model hands back) is held as it was.
    """

    kind: type
    fields: tuple[tuple[Any, Template | None], ...] = ()
    held: Any = None

    def rebuild(self, tensors: Sequence[Tensor]) -> Any:
        """The same structure around other tensors."""
        return self._build(iter(tensors))

    def _build(self, tensors: Any) -> Any:
        if self.kind is Tensor:
            return next(tensors)
        if self.kind is object:
            return self.held
        filled = [(name, None if part is None else part._build(tensors)) for name, part in self.fields]
        if self.kind in (tuple, list):
            return self.kind(value for _, value in filled)
        return self.kind(**dict(filled))


def flatten(output: Any) -> tuple[list[Tensor], Template]:
    """The tensors of a return value in order, and its template."""
    tensors: list[Tensor] = []
    return tensors, _template(output, tensors)


def tensors_in_order(output: Any) -> list[Tensor]:
    """The tensors of a return value in the order of :func:`flatten`, without a template."""
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output if type(output) in (tuple, list) else ()
    return [tensor for part in parts for tensor in tensors_in_order(part)]


def _template(output: Any, tensors: list[Tensor]) -> Template | None:
    if output is None:
        return None
    if isinstance(output, Tensor):
        tensors.append(output)
        return Template(Tensor)
    if type(output) in (tuple, list):
        return Template(type(output), tuple((i, _template(part, tensors)) for i, part in enumerate(output)))
    if isinstance(output, dict):  # diffusers' BaseOutput is an ordered dict
        return Template(type(output), tuple((name, _template(part, tensors)) for name, part in output.items()))
    return Template(object, held=output)


def owned(tensor: Tensor) -> Tensor:
    """The tensor itself if it has its memory for itself and counts its versions, else a copy."""
    tensor = tensor.detach() if tensor.requires_grad else tensor
    part = tensor.untyped_storage().nbytes() != tensor.nbytes
    return tensor.clone() if part or tensor.is_inference() else tensor
