"""Where the body of a denoiser begins and ends: proposals from one watched step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .streams import HIDDEN_NAMES, TEXT_NAMES, Passage, Visit, first_of

if TYPE_CHECKING:
    from .passes import Arrival, Exploring

#: names of the streams of the first block that, joined in this order, are what stands at an end of the body
Base = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """One way to skip the blocks.

    The body ends either at the input of modules behind the blocks (``exits``), or at the results of the last block
    (``last``, with its ``calls``-th call and the numbers of the ``parts`` that count).

    Attributes:
        entry: the list of blocks at whose first call the body begins.
        start: the block that is called first there.
        bases: for each value at the end of the body, what stands there when no block changes anything.
        skipped: the blocks that do not run in a replay, with what they pass on.
        exits, last, calls, parts, passage: where the body ends.
        before: blocks that run before the body because what they add is listened to.
        listens: the stream that they add it to.
    """

    entry: str
    start: nn.Module
    bases: tuple[Base, ...]
    skipped: Mapping[nn.Module, Passage]
    exits: tuple[nn.Module, ...] = ()
    last: nn.Module | None = None
    calls: int = 0
    parts: tuple[int, ...] = ()
    passage: Passage | None = field(default=None)
    before: int = 0
    listens: str = ""

    @cached_property
    def edges(self) -> tuple[nn.Module, ...]:
        """The blocks where the body begins and, where it ends at a block, ends."""
        return (self.start,) if self.last is None else (self.start, self.last)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Streams that the bases are made of."""
        return tuple(dict.fromkeys(name for base in self.bases for name in base))

    def residuals(self, first: Mapping[str, Tensor], values: Sequence[Tensor | None]) -> list[Tensor] | None:
        """What was added to the bases, without gradients; None if one is missing or has not its base's shape."""
        residuals = []
        for names, value in zip(self.bases, values, strict=True):
            base = first.get(names[0]) if len(names) == 1 else _join(first, names)
            if base is None or value is None or base.shape != value.shape:
                return None
            residual = value - (base if base.dtype is value.dtype else base.to(value.dtype))
            residuals.append(residual.detach() if residual.requires_grad else residual)
        return residuals

    def values(self, first: Mapping[str, Tensor], residuals: list[Tensor]) -> list[Tensor]:
        """The bases with the residuals added."""
        return [_join(first, b).to(r.dtype) + r for b, r in zip(self.bases, residuals, strict=True)]


def _join(streams: Mapping[str, Tensor], base: Base) -> Tensor | None:
    if len(base) == 1:
        return streams.get(base[0])
    parts = [streams.get(name) for name in base]
    if any(part is None for part in parts):
        return None
    return torch.cat(parts, dim=1)


def propose(explorer: Exploring) -> Iterator[tuple[Plan, list[Tensor]]]:
    """Plans, the most exact first, each with the residuals of the watched step."""
    if explorer.last is None:
        return
    for plan, values in (*_at_modules(explorer), *_at_the_last_block(explorer)):
        residuals = plan.residuals(explorer.entries[plan.entry].streams, values)
        if residuals is None:
            continue
        later = _blocks_from(explorer, plan.entry)
        explorer.ends = values
        yield plan, residuals
        if len(later) < len(plan.skipped):
            # Lists that run before the body may make its input (refiners): they run at every step then.
            yield replace(plan, skipped=later), residuals


def _blocks_from(explorer: Exploring, entry: str) -> dict[nn.Module, Passage]:
    names = list(explorer.entries)
    late = set(names[names.index(entry) :])
    return {block: passage for block, passage in explorer.passages.items() if explorer.list_of(block) in late}


def _at_modules(explorer: Exploring) -> Iterator[tuple[Plan, list[Tensor]]]:
    """The body ends where modules receive the blocks' result: head and final norm see the timestep of now."""
    for ends in _ends(explorer):
        wanted = [(end.value, _sources(explorer.last, end.part)) for end in ends]
        found = _entry(explorer, wanted)
        if found is not None:
            entry, bases = found
            exits = tuple(end.module for end in ends)
            plan = Plan(entry.name, entry.visit.block, bases, explorer.passages, exits)
            yield plan, [end.value for end in ends]


def _ends(explorer: Exploring) -> Iterator[list[Arrival]]:
    """Modules that receive a result of the last block unchanged, together; else single ones that may be meant."""
    exact: dict[tuple[int, ...], Arrival] = {}
    for arrival in explorer.arrivals:
        if arrival.part is not None and all(arrival.module is not other.module for other in exact.values()):
            exact.setdefault(arrival.part, arrival)
    if exact:
        yield list(exact.values())
    yield from ([arrival] for arrival in explorer.arrivals[:8] if arrival.part is None)


def _at_the_last_block(explorer: Exploring) -> Iterator[tuple[Plan, list[Tensor]]]:
    """The body ends at the last block's results: right whatever the model does with them, and a little larger."""
    last = explorer.last
    streaming = [i for i, source in enumerate(last.passage.sources) if source is not None]
    hidden = [i for i in streaming if last.passage.sources[i] in HIDDEN_NAMES]
    # Blocks that run behind the body read every stream, however little of it shows at the first step.
    for parts in (streaming,) if explorer.followed else (hidden[:1], streaming):
        found = _entry(explorer, [(last.parts[i], (last.passage.sources[i],)) for i in parts])
        if parts and found is not None:
            entry, bases = found
            plan = Plan(
                entry.name,
                entry.visit.block,
                bases,
                explorer.passages,
                last=last.block,
                calls=explorer.calls[last.block],
                parts=tuple(parts),
                passage=last.passage,
            )
            yield plan, [last.parts[i] for i in parts]


@dataclass(frozen=True)
class _Entry:
    name: str
    visit: Visit


def _entry(explorer: Exploring, wanted: list[tuple[Tensor, Base]]) -> tuple[_Entry, tuple[Base, ...]] | None:
    """The earliest block list whose first block receives something of the shape of every wanted value."""
    for name, visit in explorer.entries.items():
        bases = [_arrange(visit.streams, value, likely) for value, likely in wanted]
        if all(bases):
            return _Entry(name, visit), tuple(bases)
    return None


def _arrange(streams: Mapping[str, Tensor], value: Tensor, likely: Base) -> Base | None:
    """Streams that, joined, have the value's shape: the likely ones first, text before picture where nothing tells."""
    pair = (first_of(TEXT_NAMES, streams), first_of(HIDDEN_NAMES, streams))
    candidates = [likely, *((name,) for name in streams), pair]
    return next((c for c in candidates if c and all(c) and _shape(streams, c) == value.shape), None)


def _shape(streams: Mapping[str, Tensor], base: Base) -> tuple[int, ...] | None:
    shapes = [streams[name].shape if name in streams else None for name in base]
    if None in shapes:
        return None
    if len(shapes) == 1:
        return shapes[0]
    a, b = shapes
    if len(a) != 3 or len(b) != 3 or a[::2] != b[::2]:
        return None
    return torch.Size((a[0], a[1] + b[1], a[2]))


def _sources(last: Visit, part: tuple[int, ...] | None) -> Base:
    """Names of the streams that the results ``part`` of the last block continue."""
    sources = tuple(last.passage.sources[i] for i in part or ())
    return sources if all(sources) else ()
