"""Some samples of a batch: taken out of the arguments of a call, and put back into what the whole batch returned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: in place of an axis: a list has one entry a sample
ENTRIES = -1

#: way to a value in the arguments of a call -> its batch axis; None, or not named: it has none
Cut = dict[tuple[Any, ...], int | None]


def batch_axis(value: Tensor, size: int) -> int:
    """Where the samples are in what a batch of ``size`` made: on the first axis, each once or several times in a row.

    Behind it only where a model has its tokens first (ERNIE).
    """
    return 1 if value.dim() > 2 and value.shape[0] != size == value.shape[1] else 0


class Rows:
    """Some samples of a batch.

    Args:
        size: samples of the batch.
        chosen: their numbers.
        apart: whether of several tensors each is one sample's; else each holds the whole batch, see :func:`batch_axis`.
    """

    def __init__(self, size: int, chosen: Sequence[int], apart: bool = False) -> None:
        self.size, self.chosen, self.apart = size, list(chosen), apart
        self._indices: dict[torch.device, Tensor] = {}

    def __len__(self) -> int:
        return len(self.chosen)

    def index(self, device: torch.device) -> Tensor:
        """Their numbers on a device; nobody waits for them."""
        if device not in self._indices:
            self._indices[device] = torch.tensor(self.chosen).to(device, non_blocking=True)
        return self._indices[device]

    def cut(self, value: Tensor, axis: int | None = None) -> Tensor:
        """Their part of a tensor with the samples on ``axis``, each with as many neighbouring entries as the others."""
        axis = batch_axis(value, self.size) if axis is None else axis
        if value.shape[axis] == self.size:
            return value.index_select(axis, self.index(value.device))
        parts = value.unflatten(axis, (self.size, -1)).index_select(axis, self.index(value.device))
        return parts.flatten(axis, axis + 1)

    def cut_all(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Their part of what is held for the whole batch."""
        return [values[i] for i in self.chosen] if self.apart else [self.cut(value) for value in values]

    def replace(self, values: Sequence[Tensor], parts: Sequence[Tensor]) -> bool:
        """Write their part of what is held for the whole batch, in place; False if it has other shapes."""
        if self.apart:
            values = [values[i] for i in self.chosen]
        if len(values) != len(parts) or not all(map(self._fits, values, parts)):
            return False
        for value, part in zip(values, parts, strict=True):
            value.copy_(part) if self.apart else self.put(value, part)
        return True

    def _fits(self, value: Tensor, part: Tensor) -> bool:
        shape = list(value.shape)
        if not self.apart:
            axis = batch_axis(value, self.size)
            if shape[axis] % self.size:
                return False
            shape[axis] = shape[axis] // self.size * len(self)
        return shape == list(part.shape)

    def put(self, value: Tensor, part: Tensor) -> None:
        """Write their part of a tensor, in place."""
        axis = batch_axis(value, self.size)
        rows, parts = value.unflatten(axis, (self.size, -1)), part.unflatten(axis, (len(self), -1))
        rows.index_copy_(axis, self.index(value.device), parts.to(value))

    def merge(self, whole: Any, part: Any) -> Any:
        """A return value of the whole batch with theirs in place of what it says about them."""
        if isinstance(whole, Tensor):
            whole = whole.clone()
            self.put(whole, part)
            return whole
        if isinstance(whole, Mapping):  # diffusers' BaseOutput is an ordered dict
            return type(whole)(**{name: self.merge(value, part[name]) for name, value in whole.items()})
        if type(whole) not in (list, tuple):
            return whole
        if self._by_entry(whole, part):
            theirs = dict(zip(self.chosen, part, strict=True))
            return type(whole)(theirs.get(i, value) for i, value in enumerate(whole))
        return type(whole)(self.merge(a, b) for a, b in zip(whole, part, strict=True))

    def pairs(self, whole: Any, part: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """Their tensors in a return value of the whole batch, each with what they returned by themselves."""
        if isinstance(whole, Tensor):
            yield self.cut(whole), part
        elif isinstance(whole, Mapping):
            for name in whole:
                yield from self.pairs(whole[name], part[name])
        elif type(whole) in (list, tuple) and self._by_entry(whole, part):
            for i, value in zip(self.chosen, part, strict=True):
                yield whole[i], value
        elif type(whole) in (list, tuple):
            for a, b in zip(whole, part, strict=True):
                yield from self.pairs(a, b)

    def _by_entry(self, whole: Sequence[Any], part: Sequence[Any]) -> bool:
        return len(whole) == self.size and len(part) == len(self) != self.size


@dataclass(frozen=True)
class Place:
    """A value in the arguments of a call that may carry the batch.

    Attributes:
        path: position or name of the argument, and the way to the value within.
        choices: what its batch axis may be, the likeliest first; None: it has none.
    """

    path: tuple[Any, ...]
    choices: tuple[int | None, ...]


def find_places(path: tuple[Any, ...], value: Any, size: int, likely: bool, sure: bool) -> list[Place]:
    """Where an argument may carry a batch of ``size``.

    Args:
        path: the way to the value.
        value: the argument, or a part of it.
        likely: whether conditioning is held there.
        sure: whether the sample or its time is.
    """
    if isinstance(value, Tensor):
        choices = _axes(value, size, likely)
        return [Place(path, choices[:1] if sure else choices)] if choices else []
    if isinstance(value, Mapping):
        inner = [(key, part) for key, part in value.items()]
    elif isinstance(value, (list, tuple)):
        inner = list(enumerate(value))
    else:
        return []
    within = [place for key, part in inner for place in find_places((*path, key), part, size, likely, sure)]
    if isinstance(value, Mapping) or len(value) != size:
        return within
    return [Place(path, _entries(value, within, sure)), *within]


def _axes(value: Tensor, size: int, likely: bool) -> tuple[int | None, ...]:
    """Behind the first axis the batch stands only where features of several layers are stacked (HiDream)."""
    at = [axis for axis in range(min(value.dim() - 1, 2) or 1) if value.dim() > axis and value.shape[axis] == size]
    if not at:
        return ()
    if at[0] == 0:
        return (*at,) if likely else (*at, None)
    return (*at, None) if likely else (None, *at)


def _entries(value: Sequence[Any], within: Sequence[Place], sure: bool) -> tuple[int | None, ...]:
    if sure:
        return (ENTRIES,)
    # Features of several layers, or residuals of a ControlNet, are a list as well: each holds the whole batch.
    whole = sum(place.choices[0] is not None for place in within) >= len(value)
    return (None, ENTRIES) if whole or isinstance(value, tuple) else (ENTRIES, None)


def take(path: tuple[Any, ...], value: Any, cut: Cut, rows: Rows) -> Any:
    """An argument, or a part of it, for some samples."""
    axis = cut.get(path)
    if isinstance(value, Tensor):
        return value if axis is None else rows.cut(value, axis)
    if axis == ENTRIES:
        return type(value)(value[i] for i in rows.chosen)
    if type(value) in (list, tuple):
        return type(value)(take((*path, i), part, cut, rows) for i, part in enumerate(value))
    if type(value) is dict:
        return {key: take((*path, key), part, cut, rows) for key, part in value.items()}
    return value
