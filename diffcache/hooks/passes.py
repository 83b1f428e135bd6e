"""The three ways in which a denoiser with hooks for site ``body`` runs: watched, captured, replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .outputs import tensors_in_order
from .plans import Plan
from .streams import Links, Passage, Visit, named_tensors, stream, trace

Forward = Callable[..., Any]


@dataclass(frozen=True)
class Arrival:
    """What a module outside the blocks received after the last block; ``part`` tells which of that one's results.

    ``part`` is the numbers of the results that were joined to make the value, or None if the model changed it first.
    """

    module: nn.Module
    value: Tensor
    part: tuple[int, ...] | None


class Exploring:
    """Everything in full: notes the first call of each block list, the last block, and what came after it.

    Attributes:
        looks_at: the blocks whose calls it wants; None for every block's.
        entries: list name -> first call of one of its blocks, in the order in which the lists ran.
        last: last call of a block, and how often that block had been called by then.
        arrivals: modules outside the blocks that were called after it, in order.
        ends: what stood at the end of the body, by the plan proposed last.
        followed: whether blocks run behind the body.
    """

    looks_at: tuple[nn.Module, ...] | None = None

    def __init__(self, model: nn.Module, blocks: Mapping[nn.Module, str]) -> None:
        inside = {id(m) for block in blocks for m in block.modules()}
        self._watched = [m for m in model.modules() if m is not model and id(m) not in inside]
        self._lists = blocks
        self.entries: dict[str, Visit] = {}
        self.passages: dict[nn.Module, Passage] = {}
        self.calls: dict[nn.Module, int] = {}
        self._links = Links()
        self.last: Visit | None = None
        self.arrivals: list[Arrival] = []
        self.ends: list[Tensor] = []
        self.followed = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within: the modules outside the blocks report what they receive."""
        handles = [m.register_forward_pre_hook(self._before, with_kwargs=True) for m in self._watched]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self._relink()

    def block(self, block: nn.Module, forward: Forward, args: Any, kwargs: Any) -> Any:
        streams = named_tensors(block, args, kwargs)
        self._links.arrive(block, streams)
        output = forward(*args, **kwargs)
        passage, parts = trace(block, streams, output)
        self.last = Visit(block, streams, parts, passage)
        self._links.leave(self.last)
        self.entries.setdefault(self._lists[block], self.last)
        self.passages[block] = passage
        self.calls[block] = self.calls.get(block, 0) + 1
        self.arrivals.clear()
        return output

    def _relink(self) -> None:
        self.passages = {block: self._links.told(block, passage) for block, passage in self.passages.items()}
        if self.last is not None:
            self.last = replace(self.last, passage=self.passages[self.last.block])

    def exit(self, index: int, value: Tensor) -> Tensor:
        return value

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        value = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        if self.last is not None and value is not None and value.is_floating_point():
            self.arrivals.append(Arrival(module, value, _part_of(value, self.last.parts)))

    def list_of(self, block: nn.Module) -> str:
        """Name of the list that a block is in."""
        return self._lists[block]

    def begins_like(self, plan: Plan, streams: Mapping[str, Tensor]) -> Tensor:
        """Whether the streams that ``plan`` builds on are those of the watched step. A tensor: nothing is read."""
        seen = self.entries[plan.entry].streams
        return torch.stack([(seen[name] == streams[name]).all() for name in plan.names]).all()


def _part_of(value: Tensor, parts: list[Tensor]) -> tuple[int, ...] | None:
    """The results that ``value`` is made of without change: one of them, or two of them joined."""
    for index, part in enumerate(parts):
        if value is part or _same(value, part):
            return (index,)
    for pair in [(0, 1), (1, 0)] if len(parts) == 2 and parts[0].dim() == 3 else []:
        a, b = (parts[i] for i in pair)
        joined = (a.shape[0], a.shape[1] + b.shape[1], a.shape[2])
        if a.shape[::2] == b.shape[::2] and value.shape == joined and _same(value, torch.cat([a, b], dim=1)):
            return pair
    return None


def _same(value: Tensor, part: Tensor) -> bool:
    # read while the model runs, once a model: a computed step's own read stays the only one of the engine
    return value.shape == part.shape and bool(((value == part.to(value.dtype)) | (value.isnan() & part.isnan())).all())


class Capturing:
    """In full; notes the body's input and what stands at its end. May be traced: see :mod:`.ports`.

    Attributes:
        looks_at: the blocks whose calls it wants.
        ended: ends that were reached since the last block; None until a block has run.
        overwritten: whether the model wrote into what its first block received; known with the residuals.
    """

    ended: tuple[int, ...] | None = None
    first: dict[str, Tensor] | None = None
    overwritten = False
    _calls = 0

    def __init__(self, plan: Plan, copies: bool) -> None:
        self.plan, self._copies = plan, copies
        self.looks_at, self._names = plan.edges, plan.names
        self.values: list[Tensor | None] = [None] * len(plan.bases)
        self._counted: list[tuple[Tensor, int]] = []  # streams with their versions; none where they are copies

    def begin(self, streams: dict[str, Tensor]) -> None:
        """The first block of the body received ``streams``."""
        # In a graph nobody counts versions; a copy that turns out to be needless costs nothing there.
        self.note(streams, self._copies or torch.compiler.is_compiling())

    def note(self, streams: dict[str, Tensor], copies: bool) -> None:
        """The same, where it is known whether copies are needed."""
        if copies:
            self.first = {n: t.clone() for n, t in streams.items()}
            return
        self.first = streams
        for value in streams.values():
            if not value.is_inference():  # there torch does not count
                self._counted.append((value, value._version))

    def block(self, block: nn.Module, forward: Forward, args: Any, kwargs: Any) -> Any:
        self.ended = ()
        if block is self.plan.start and self.first is None:
            self.begin(self._received(block, args, kwargs))
        output = forward(*args, **kwargs)
        if block is self.plan.last:
            self._calls += 1
            if self._calls == self.plan.calls:
                self._note_edge(block, args, kwargs, output)
        return output

    def _received(self, block: nn.Module, args: Any, kwargs: Any) -> dict[str, Tensor]:
        """The streams that count, in the first block's call."""
        received = {}
        for name in self._names:
            value = stream(block, name, args, kwargs)
            if value is not None:
                received[name] = value
        return received

    def _note_edge(self, block: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        parts = tensors_in_order(output)
        if len(parts) == len(self.plan.passage.sources):
            self.values = [parts[i] for i in self.plan.parts]

    def exit(self, index: int, value: Tensor) -> Tensor:
        if self.ended is not None and index not in self.ended:  # the first call after the last block
            self.values[index] = value
            self.ended = (*self.ended, index)
        return value

    def residuals(self) -> list[Tensor] | None:
        """What the blocks added, value by value; None if the plan does not fit this call."""
        for value, count in self._counted:
            if value._version != count:
                self.overwritten = True
        if self.first is None or self.overwritten:
            return None
        return self.plan.residuals(self.first, self.values)


class Replaying:
    """Every block of the plan passes its inputs on; the end of the body receives its input plus the residuals.

    May be traced: the residuals are inputs of the graph.

    Attributes:
        looks_at: None, which is every block.
    """

    looks_at: tuple[nn.Module, ...] | None = None

    def __init__(self, plan: Plan, residuals: list[Tensor]) -> None:
        self.plan, self._residuals, self._names = plan, residuals, plan.names
        self.first: dict[str, Tensor] | None = None
        self._values: list[Tensor] | None = None
        self._armed = [False] * len(plan.bases)
        self._calls = 0

    def block(self, block: nn.Module, forward: Forward, args: Any, kwargs: Any) -> Any:
        self._armed = [True] * len(self._armed)
        passage = self.plan.skipped.get(block)
        if passage is None:
            return forward(*args, **kwargs)
        streams = named_tensors(block, args, kwargs)
        if block is self.plan.start and self.first is None:
            self.begin(streams)
        results = passage.pass_on(streams)
        if block is self.plan.last:
            self._calls += 1
            if self._calls == self.plan.calls:
                for index, value in zip(self.plan.parts, self._values, strict=True):
                    results[index] = value
        return passage.template.rebuild(results)

    def begin(self, streams: dict[str, Tensor]) -> None:
        """The first block of the body received ``streams``."""
        # At once: what the model does to its streams from here on must not reach the end of the body.
        self.first = {name: streams[name].clone() for name in self._names}
        with torch.no_grad():
            self._values = self.plan.values(self.first, self._residuals)

    def exit(self, index: int, value: Tensor) -> Tensor:
        if not self._armed[index] or self._values is None:
            return value
        self._armed[index] = False
        return self._values[index].to(value.dtype)
