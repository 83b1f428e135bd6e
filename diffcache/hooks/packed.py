"""Partial steps on a packed stream: the chosen tokens go through whole blocks, the others are only added to.

The stream is put in rank order once, the rows that a block computes are a prefix of it, and behind the last block it is
put back (layout C, :mod:`.ranked_stream`); or it stays in token order, and the rows are taken out of it by index
(layout B, :mod:`.residual_stream`). A block runs as it is written, on these rows alone, so that its norms, modulations,
gates and sums cost ``k`` rows. The stream of a stale token is ``x + gate * result`` for each module. The gates are the
block's own of this step: it runs on a few rows of zeros in which each module returns ones in one row and zeros in the
others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .lessons import BlockLesson
from .outputs import Template, flatten
from .ranked_stream import RankedStream
from .residual_stream import Stream
from .selection import Place
from .token_passes import Call, Forward, Lesson, Memory, PartialPass
from .token_stream import TokenStream, Update


class Broken(Exception):
    """A model did not hand its stream from block to block as it did when it was learned."""


class PackedPass(PartialPass):
    """A partial pass whose blocks run on packed rows where that is known to be right.

    Args:
        blocks: what was learned of the blocks, by call, in their order.
        poison: make what nobody may look at NaN, to prove that nobody does.
    """

    def __init__(self, *args: Any, blocks: Mapping[Call, BlockLesson], poison: bool = False) -> None:
        super().__init__(*args)
        self.blocks, self._poison = blocks, poison
        self._alive: dict[Call, int] = {}
        self._stream: TokenStream | None = None
        self._fresh: dict[tuple[Call, int], Tensor] = {}
        self._inside: Callable[..., Any] | None = None

    def block(self, call: Call, forward: Forward, args: Any, kwargs: Any) -> Any:
        lesson = self.blocks.get(call)
        alive = 0 if lesson is None or self.selection is None else self._alive_at(call)
        if not alive:
            return forward(*args, **kwargs)
        tensors, template = flatten((args, kwargs))
        if not self._packs(lesson, alive):
            if self._stream is not None:  # it has been packed so far
                tensors[lesson.stream] = self._enter(lesson, tensors[lesson.stream]).finish()
                self._stream = None
                args, kwargs = template.rebuild(tensors)
            return forward(*args, **kwargs)
        stream = self._enter(lesson, tensors[lesson.stream])
        tensors[lesson.stream] = stream.whole
        parts, given = self._through(lesson, stream, alive, tensors, template, forward)
        if lesson.chained:
            parts[lesson.result] = stream.hand_on(self._poison)
        else:
            parts[lesson.result] = stream.finish()
            self._stream = None
        return given.rebuild(parts)

    def _packs(self, lesson: BlockLesson, alive: int) -> bool:
        """Whether a block whose tokens can be computed apart has anything to gain from it at this step."""
        return alive < self.selection.tokens

    def _through(
        self,
        lesson: BlockLesson,
        stream: TokenStream,
        alive: int,
        tensors: list[Tensor],
        template: Template,
        forward: Forward,
    ) -> tuple[list[Tensor], Template]:
        """The block on ``alive`` tokens, the stream behind it in ``stream``; the block's other results."""
        stream.narrow(alive)
        gates = self._gates(lesson, tensors, template, forward)
        rows = [
            stream.rows if i == lesson.stream else t if place is None else self.selection.take_again(t, place, alive)
            for i, (place, t) in enumerate(zip(lesson.inputs, tensors, strict=True))
        ]
        parts, given = self._run(self._unit_on_rows, forward, template.rebuild(rows))
        stream.rows = parts[lesson.result]
        self._advance(lesson, stream, gates)
        return parts, given

    def end(self) -> None:
        """The pass is over.

        Raises:
            Broken: the computed rows of some block never went back.
        """
        if self._stream is not None:
            raise Broken("a block was left out, or got another stream than the last one returned")

    def _alive_at(self, call: Call) -> int:
        """How many tokens a block has to run on: as many as some unit of it, or of a later one on its stream, needs."""
        if not self._alive:
            later = 0
            for block, lesson in reversed(self.blocks.items()):
                here = 0 if lesson.whole else self._needed(lesson)
                later = max(here, later if lesson.chained else 0)
                self._alive[block] = 0 if lesson.whole else later
        return self._alive[call]

    def _needed(self, lesson: BlockLesson) -> int:
        return max([1, *(self._count(name, layer, kind) for (name, _), layer, kind, _ in lesson.units)])

    def _enter(self, lesson: BlockLesson, tensor: Tensor) -> TokenStream:
        stream, place = self._stream, lesson.inputs[lesson.stream]
        if stream is not None and stream.face is not tensor:
            self.end()
        if stream is None and self.selection.ranked:
            stream = self._stream = RankedStream(tensor, place, self.selection)
        elif stream is None:
            stream = self._stream = Stream(_copied(tensor), place, self.selection)
        return stream

    def _run(self, unit: Callable[..., Any], forward: Forward, given: Any) -> tuple[list[Tensor], Template]:
        """The block's forward with another way to answer for its units."""
        self._inside, (args, kwargs) = unit, given
        try:
            return flatten(forward(*args, **kwargs))
        finally:
            self._inside = None

    def unit(self, call: Call, layer: int, kind: str, feeds: bool, forward: Forward, args: Any, kwargs: Any) -> Any:
        run = self._inside or super().unit
        return run(call, layer, kind, feeds, forward, args, kwargs)

    # -- units on packed rows --------------------------------------------------------------------------------------

    def _unit_on_rows(
        self, call: Call, layer: int, kind: str, feeds: bool, forward: Forward, args: Any, kwargs: Any
    ) -> Any:
        lesson, held, alive = self.lessons[call], self.memories[call], self._stream.count
        if lesson.whole is not None:  # no token reaches it
            return super().unit(call, layer, kind, feeds, forward, args, kwargs)
        count = self._count(call[0], layer, kind)
        self._note(count, self.selection.tokens)
        if count == 0:
            return held.template.rebuild(self._stale(lesson, held, alive))
        result = self._on_rows(lesson, held, count, forward, args, kwargs, alive)
        if feeds:
            return result
        rows, _ = flatten(result)
        for number, (place, new) in enumerate(zip(lesson.results, rows, strict=True)):
            if place is None:
                held.results[number] = new
            elif count == alive:
                self._fresh[call, number] = tokens_in(new, place, count)
                self._put_text(held.results[number], new, place, count)
            else:
                self.selection.put(held.results[number], place, new, count)
        held.seal()
        return result if count == alive else held.template.rebuild(self._stale(lesson, held, alive))

    def _stale(self, lesson: Lesson, held: Memory, alive: int) -> list[Tensor]:
        """The rows of the computed tokens among results that are held."""
        return [
            old
            if place is None
            else old.new_zeros(()).expand(_resized(old, place, place.length - self.selection.tokens + alive))
            if held.shapes_only
            else self.selection.take(old, place, alive)
            for old, place in zip(held.results, lesson.results, strict=True)
        ]

    def _put_text(self, target: Tensor, rows: Tensor, place: Place, count: int) -> None:
        """Rows of a joint result that are no tokens."""
        behind = place.length - place.offset - self.selection.tokens
        for start, size, of in (
            (0, place.offset, 0),
            (target.shape[place.axis] - behind, behind, place.offset + count),
        ):
            if size:
                target.narrow(place.axis, start, size).copy_(rows.narrow(place.axis, of, size))

    # -- tokens that are not computed ------------------------------------------------------------------------------

    def _gates(self, lesson: BlockLesson, tensors: list[Tensor], template: Template, forward: Forward) -> list[Tensor]:
        """The factor under which the block adds each part to the stream, ``[B, 1, D]`` each."""
        parts = lesson.parts(self.lessons)
        calls, size = self._calls.copy(), len(parts)
        rows = self._few(lesson, tensors, size)

        def answer(call: Call, layer: int, kind: str, feeds: bool, forward: Forward, args: Any, kwargs: Any) -> Any:
            return self._probe(call, parts, size)

        results, _ = self._run(answer, forward, template.rebuild(rows))
        self._calls = calls
        return list(tokens_in(results[lesson.result], lesson.inputs[lesson.stream], size).split(1, dim=1))

    def _few(self, lesson: BlockLesson, tensors: list[Tensor], size: int) -> list[Tensor]:
        """A block's arguments with ``size`` times the first token in place of all tokens, whose stream is zero."""
        rows = [
            t if place is None else self._repeated(t, place, size)
            for t, place in zip(tensors, lesson.inputs, strict=True)
        ]
        rows[lesson.stream].zero_()
        return rows

    def _repeated(self, tensor: Tensor, place: Place, size: int) -> Tensor:
        """A tensor with ``size`` times its first token in place of all tokens."""
        begin, end = place.offset, place.offset + self.selection.tokens
        one = tensor.narrow(place.axis, begin, 1)
        parts = [one.expand(_resized(one, place, size))]
        if begin:
            parts.insert(0, tensor.narrow(place.axis, 0, begin))
        if end < place.length:
            parts.append(tensor.narrow(place.axis, end, place.length - end))
        return torch.cat(parts, place.axis)

    def _probe(self, call: Call, parts: list[tuple[Call, int]], size: int) -> Any:
        """Ones in the row of each part, zeros in all other rows."""
        held, lesson, answers = self.memories[call], self.lessons[call], []
        for number, (old, place) in enumerate(zip(held.results, lesson.results or [None] * len(held.results))):
            if place is not None:
                old = old.new_zeros(_resized(old, place, place.length - self.selection.tokens + size))
                if (call, number) in parts:
                    old.select(place.axis, place.offset + parts.index((call, number))).fill_(1.0)
            answers.append(old)
        return held.template.rebuild(answers)

    def _advance(self, lesson: BlockLesson, stream: TokenStream, gates: list[Tensor]) -> None:
        """What was computed into the caches, and gate * cache onto the stream."""
        updates = []
        for (call, number), gate in zip(lesson.parts(self.lessons), gates, strict=True):
            held, place = self.memories[call], self.lessons[call].results[number]
            cache = tokens_in(held.results[number], place, self.selection.tokens)
            updates.append(Update(held, cache, self._fresh.pop((call, number), cache[:, :0]), gate))
        stream.advance(updates)


def tokens_in(tensor: Tensor, place: Place, count: int) -> Tensor:
    """The rows of ``count`` tokens among text."""
    return tensor.narrow(place.axis, place.offset, count)


def _copied(tensor: Tensor) -> Tensor:
    """A copy whose features are contiguous: what flows in may be a transposed view of an embedding's result."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _resized(tensor: Tensor, place: Place, size: int) -> list[int]:
    return [size if axis == place.axis else n for axis, n in enumerate(tensor.shape)]
