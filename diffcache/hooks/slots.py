"""What sites ``block`` and ``module`` hold: the last values of every call of a unit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..kernels import combine
from ..predictors import Horizon, Rest
from ..predictors.resting import Home, fetch, home_of, waken
from .cache import Cache, Holding, Moment
from .outputs import owned
from .ports import placeholder
from .recipe import Recipe
from .streams import Passage

_AS_THEY_ARE = Rest()

#: a unit's name, and how often it had been called before in the pass
Call = tuple[str, int]
#: of a call that returned one tensor, what its passage depends on: shape, dtype and device of that, and the inputs'
Form = tuple[Any, ...]


class Slot:
    """The last values of one call of a unit, newest first, with their times.

    The tensors are the module's own, not copies, unless they rest as something else. One that somebody writes to after
    it left its module is noticed by its version and never used again.

    Attributes:
        form: what the call that was stored last looked like, where :meth:`take` can store another one like it.
    """

    def __init__(self, depth: int, rest: Rest) -> None:
        self.depth, self.rest = depth, rest
        self.values: list[list[Tensor]] = []
        self.versions: list[list[int]] = []
        self.moments: list[Moment] = []
        self.homes: list[Home] = []
        self.passage = Passage(None, (), ())
        self.form: Form | None = None
        self._as_they_are = rest == _AS_THEY_ARE

    def take(self, streams: Mapping[str, Tensor], result: Any, moment: Moment) -> bool:
        """Store the result of a call that looks as the one before it; False if there is more to find out about it.

        Runs for many units at a computed step: no call more than needed.
        """
        if self.form is None or not _has_form(self.form, streams, result):
            return False
        source = self.passage.sources[0]
        value = result if source is None else result - streams[source]
        if not self._as_they_are or value.is_inference():
            (value,) = self._kept([value])
        elif source is None or value.requires_grad:  # a difference is nobody else's
            value = owned(value)
        self._push([value], [value._version], moment)
        return True

    def push(self, tensors: list[Tensor], passage: Passage, moment: Moment) -> None:
        kept = self._kept(tensors)
        self._push(kept, [t._version for t in kept], moment)
        self.passage = passage

    def _push(self, kept: list[Tensor], versions: list[int], moment: Moment) -> None:
        if len(self.values) == self.depth:
            self.values.pop()
            self.versions.pop()
            self.moments.pop()
        self.values.insert(0, kept)
        self.versions.insert(0, versions)
        self.moments.insert(0, moment)

    def amend(self, tensors: list[Tensor], passage: Passage) -> None:
        """Another reading of the newest results."""
        kept = self._kept(tensors)
        self.values[0], self.versions[0], self.passage = kept, [t._version for t in kept], passage

    def _kept(self, tensors: list[Tensor]) -> list[Tensor]:
        self.homes = [home_of(t) for t in tensors]
        if any(t.is_inference() for t in tensors):  # copies that are made outside inference mode count their versions
            with torch.inference_mode(False), torch.no_grad():
                return [self.rest.keep(t) for t in tensors]
        return [self.rest.keep(t) if self.rest.moves(t) else owned(t) for t in tensors]

    @property
    def intact(self) -> bool:
        return all(
            t._version == v
            for tensors, versions in zip(self.values, self.versions, strict=True)
            for t, v in zip(tensors, versions, strict=True)
        )

    def fits(self, streams: Mapping[str, Tensor]) -> bool:
        """Whether the streams that the values are added to are there, in the values' shapes."""
        return all(
            source is None or (source in streams and streams[source].shape == shape)
            for source, shape in zip(self.passage.sources, self.passage.shapes, strict=True)
        )

    def newest(self) -> list[Tensor]:
        """The newest values as they were; those that rest as they were are handed out themselves."""
        return self.awake(1)[0]

    def awake(self, count: int) -> list[list[Tensor]]:
        """The ``count`` newest values as they were."""
        return [[fetch(t, home) for t, home in zip(v, self.homes, strict=True)] for v in self.values[:count]]

    def combined(self, weights: Sequence[float]) -> list[Tensor]:
        """``sum_j weights[j] * values[j]`` of each tensor."""
        stored = zip(*self.values[: len(weights)], strict=True)
        return [_combined(values, weights, home) for values, home in zip(stored, self.homes, strict=True)]

    def placeholder(self, shape: tuple[int, ...]) -> Tensor:
        """Some tensor of a shape, without memory of its own: one number of a value everywhere."""
        value, home = self.values[0][0], self.homes[0]
        if not value.numel() or home_of(value) != home:
            return torch.zeros((), dtype=home.dtype, device=home.device).expand(shape)
        return placeholder(value, shape)


def form_of(streams: Mapping[str, Tensor], result: Any) -> Form | None:
    """The form of a unit's call; None where it returned something else than one tensor."""
    if type(result) is not Tensor:
        return None
    inputs = [(name, stream.shape, stream.dtype) for name, stream in streams.items()]
    return result.shape, result.dtype, result.device, *inputs


def _has_form(form: Form, streams: Mapping[str, Tensor], result: Any) -> bool:
    """Whether ``form`` is :func:`form_of` a call; runs for every unit, so nothing is built."""
    if type(result) is not Tensor or len(form) != 3 + len(streams):
        return False
    if result.shape != form[0] or result.dtype is not form[1] or result.device != form[2]:
        return False
    for at, (name, stream) in enumerate(streams.items(), 3):
        known, size, kind = form[at]
        if name != known or stream.shape != size or stream.dtype is not kind:
            return False
    return True


def _combined(stored: Sequence[Tensor], weights: Sequence[float], home: Home) -> Tensor:
    awake = [waken(t, home.device) for t in stored]
    return combine(awake, weights, torch.empty_like(awake[0], dtype=home.dtype))


class UnitCache(Cache):
    """Values of all units of one branch. Memory: ``depth * sum over units of numel(value) * element_size`` bytes."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.forget()

    def forget(self) -> None:
        self.slots: dict[Call, Slot] = {}
        self.feeds: dict[Call, Passage] = {}  # what feeders return
        self.spoilt: str | None = None
        self.pending = None
        self._weights: dict[tuple[float, ...], list[float]] = {}

    @property
    def ready(self) -> bool:
        least = self.recipe.predictor.least
        return bool(self.slots) and all(len(slot.values) >= least for slot in self.slots.values())

    @property
    def fault(self) -> str | None:
        """Why what is held must not be used, or None."""
        intact = all(slot.intact for slot in self.slots.values())
        return self.spoilt or (None if intact else "a stored result was written to by the model")

    def held(self) -> Iterator[Tensor]:
        return (t for slot in self.slots.values() for tensors in slot.values for t in tensors)

    def holdings(self) -> Iterator[Holding]:
        for slot in self.slots.values():
            for t, home in zip(slot.values[0], slot.homes, strict=True):
                yield Holding(t.numel(), home, slot.depth)

    def narrowed(self) -> list[Tensor]:
        """The newest values of each unit that rest in a narrower dtype: not all may have survived that."""
        if self.recipe.rest.dtype is None:
            return []
        newest = [zip(slot.values[0], slot.homes, strict=True) for slot in self.slots.values()]
        return [waken(t, home.device) for pairs in newest for t, home in pairs if t.dtype != home.dtype]

    def put(self, call: Call, tensors: list[Tensor], passage: Passage, moment: Moment) -> Slot:
        """Store what a call of a unit has just computed."""
        slot = self.slots.get(call)
        if slot is None:
            slot = self.slots[call] = Slot(self.recipe.predictor.depth, self.recipe.rest)
        slot.push(tensors, passage, moment)
        return slot

    def get(self, slot: Slot, moment: Moment) -> list[Tensor]:
        """The unit's values for ``moment``; one stored value is handed out as it is."""
        weights = self._weights_for(slot.moments, moment)
        return slot.newest() if len(weights) == 1 else slot.combined(weights)

    def stored(self, slots: Sequence[Slot], moment: Moment) -> tuple[list[list[list[Tensor]]], Tensor | None]:
        """The same before it is summed: of each slot the values that count, and their weights (None for one)."""
        weights = self._weights_for(slots[0].moments, moment)
        given = [slot.awake(len(weights)) for slot in slots]
        if len(weights) == 1:
            return given, None
        # Not waited for: a prediction costs no synchronisation.
        return given, torch.tensor(weights).to(given[0][0][0].device, non_blocking=True)

    def passages(self) -> dict[str, list[Passage]]:
        """What each call of each unit and feeder looks like, in order."""
        found: dict[str, list[Passage]] = {}
        for (name, _), slot in sorted(self.slots.items()):
            found.setdefault(name, []).append(slot.passage)
        for (name, _), passage in sorted(self.feeds.items()):
            found.setdefault(name, []).append(passage)
        return found

    def _weights_for(self, stored: Sequence[Moment], now: Moment) -> list[float]:
        key = (now.time, *(m.time for m in stored))
        if key not in self._weights:
            if len(self._weights) > 64:
                self._weights.clear()
            gaps = [a.time - b.time for a, b in pairwise(stored)]
            horizon = Horizon(float(now.step - stored[0].step), now.time - stored[0].time, self.recipe.limit)
            self._weights[key] = [float(w) for w in self.recipe.predictor.weights(gaps, horizon)]
        return self._weights[key]
