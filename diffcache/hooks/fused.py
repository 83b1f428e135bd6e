"""Partial steps whose norms are kernels: the chosen rows are normed as they are taken out of the stream (kernel G), in
one pass with what the module before added to it (F).

Nothing of a block is rewritten for that. It runs on a few rows of its own choice: zeros, in which each module returns
ones in one row, tell its gates; a row of zeros and a row of ones of both signs, which no norm changes but by its affine
part, tell shift and scale of each norm. Its modules are then called with rows that the kernels made. Where modules
also return text, the block runs once more, on one row and the real text, and its modules are called as it comes to
them. That a block is of this form is found out by :mod:`.fused_lessons`; any other runs as in :mod:`.packed`.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .lessons import NORMS, BlockLesson, Source
from .look import SIGNS, Look, signs
from .outputs import Template, flatten
from .packed import Broken, PackedPass
from .selection import Place, Unfit
from .steady import Giving, Noting
from .token_look import TokenLook, answer, seen, stream_of
from .token_passes import Call, Forward, Lesson, Memory, PartialPass
from .token_stream import TokenStream, Update


@dataclass
class Within:
    """One run of a block on its way: what it was given, what it showed, and rows that were made for its units.

    Those in ``ahead``, by unit and number of the argument, were made in front of an earlier unit.
    """

    lesson: BlockLesson
    stream: TokenStream
    tensors: list[Tensor]
    look: Look
    made: dict[int, tuple[Tensor, Tensor, int]]
    ahead: dict[tuple[Call, int], tuple[Tensor, int]] = field(default_factory=dict)


class FusedPass(PackedPass):
    """A packed pass with kernels G and F where all norms of a block were learned.

    Attributes:
        unfused: how many blocks ran on packed rows without them, by reason.
    """

    def __init__(self, *args: Any, **packed: Any) -> None:
        super().__init__(*args, **packed)
        self.unfused: Counter[str] = Counter()

    def _through(
        self,
        lesson: BlockLesson,
        stream: TokenStream,
        alive: int,
        tensors: list[Tensor],
        template: Template,
        forward: Forward,
    ) -> tuple[list[Tensor], Template]:
        if lesson.sources is None:
            self.unfused[lesson.unfused or "not learned"] += 1
            return super()._through(lesson, stream, alive, tensors, template, forward)
        before = self._calls.copy()
        look = self._shown(lesson, tensors, template, forward)
        stream.unpack()
        now = Within(lesson, stream, tensors, look, {})
        if self._alone(lesson):
            for asked in look.calls:
                self._unit_fused(now, *asked)
            return look.results
        self._calls = before
        rows, place = self._few(lesson, tensors, 1), lesson.inputs[lesson.stream]
        self._put_text(rows[lesson.stream], tensors[lesson.stream], place, self.selection.tokens)
        with Giving(look.products) as giving:

            def unit(*asked: Any) -> Any:
                with giving.aside():
                    return self._unit_fused(now, *asked)

            results, given = self._run(unit, forward, template.rebuild(rows))
        if place.length > self.selection.tokens:
            self._put_text(stream.whole, results[lesson.result], place, 1)
        return results, given

    def _packs(self, lesson: BlockLesson, alive: int) -> bool:
        """A module may compute all tokens as well, where others do not."""
        if super()._packs(lesson, alive):
            return True
        if lesson.sources is None:
            return False
        counts = (self._count(name, layer, kind) for (name, _), layer, kind, _ in lesson.units)
        return self._stream is not None or any(count < self.selection.tokens for count in counts)

    def _alone(self, lesson: BlockLesson) -> bool:
        """Whether nothing but tokens comes out of the block's units, so that it need not be run to go on."""
        found = (place for call, *_ in lesson.units for place in self.lessons[call].results or [None])
        return not any(feeds for *_, feeds in lesson.units) and all(
            place is not None and place.length == self.selection.tokens for place in found
        )

    def _look(
        self, lesson: BlockLesson, tensors: list[Tensor], template: Template, forward: Forward, more: float = 0.0
    ) -> Look:
        """Run a block on rows that tell its gates and norms.

        Args:
            more: factor of one more row of ones of both signs; none without.
        """
        parts, place = lesson.parts(self.lessons), lesson.inputs[lesson.stream]
        size = len(parts) + 2 + (more > 0.0)
        given, calls = self._few(lesson, tensors, size), []
        ones = given[lesson.stream].narrow(1, place.offset + len(parts) + SIGNS, 1)
        ones.copy_(signs(ones))
        if more:
            given[lesson.stream].narrow(1, place.offset + size - 1, 1).copy_(signs(ones) * more)

        def answer(call: Call, *asked: Any) -> Any:
            calls.append((call, *asked))
            return self._probe(call, parts, size)

        noting = Noting(t for t, there in zip(given, lesson.inputs, strict=True) if there is not None)

        def noted(*asked: Any) -> Any:
            result = answer(*asked)
            noting.move(flatten(result)[0])
            return result

        with contextlib.nullcontext() if self._alone(lesson) else noting:
            results = self._run(noted, forward, template.rebuild(given))
        gates = results[0][lesson.result].narrow(1, place.offset, len(parts)).split(1, dim=1)
        return Look(dict(zip(parts, gates, strict=True)), calls, results, noting.products)

    def _shown(self, lesson: BlockLesson, tensors: list[Tensor], template: Template, forward: Forward) -> Look:
        """What the block shows now.

        Raises:
            Broken: it did something else when it was learned.
        """
        if not lesson.modulated:
            return self._look(lesson, tensors, template, forward)
        try:
            return self._look_at_tokens(lesson, tensors, template, forward)
        except Unfit as error:
            raise Broken(str(error)) from error

    def _look_at_tokens(
        self, lesson: BlockLesson, tensors: list[Tensor], template: Template, forward: Forward
    ) -> TokenLook:
        """Run a block on symbols, with what is told for each token in the order of the stream.

        Raises:
            Unfit: it does more than adding up gated results to its stream, and norming that.
        """
        calls: list[tuple[Any, ...]] = []
        given = [t if place is None else self._in_order(t, place) for t, place in zip(tensors, lesson.inputs)]
        stream, tokens = lesson.stream, self.selection.tokens
        given[stream] = stream_of(tensors[stream], lesson.inputs[stream], tokens)

        def answered(call: Call, *asked: Any) -> Any:
            calls.append((call, *asked))
            return answer(call, self.lessons[call], self.memories[call], tokens)

        results = self._run(answered, forward, template.rebuild(given))
        return seen(lesson, lesson.parts(self.lessons), calls, results)

    def _in_order(self, tensor: Tensor, place: Place) -> Tensor:
        """What is told for each token, in the order of the stream."""
        return self.selection.take_again(tensor, place, self.selection.tokens) if self.selection.ranked else tensor

    def _gates(self, lesson: BlockLesson, tensors: list[Tensor], template: Template, forward: Forward) -> list[Tensor]:
        if not lesson.modulated:
            return super()._gates(lesson, tensors, template, forward)
        before = self._calls.copy()
        look = self._shown(lesson, tensors, template, forward)
        self._calls = before
        return list(look.gates.values())

    # -- units -----------------------------------------------------------------------------------------------------

    def _unit_fused(
        self, now: Within, call: Call, layer: int, kind: str, feeds: bool, forward: Forward, args: Any, kwargs: Any
    ) -> Any:
        lesson, held = self.lessons[call], self.memories[call]
        if lesson.whole is not None:  # no token reaches it
            return PartialPass.unit(self, call, layer, kind, feeds, forward, args, kwargs)
        count = self._count(call[0], layer, kind)
        self._note(count, self.selection.tokens)
        tensors, template = flatten((args, kwargs))
        given = self._inputs(now, call, lesson, tensors, count)
        self._make_ahead(now, call)
        fresh: dict[int, Tensor] = {}
        if count >= self.selection.tokens:  # all rows in token order, and what comes out is held as it is
            result = self._in_full(call, feeds, forward, *template.rebuild(given))
            held = self.memories[call]
            if feeds:
                return result
        elif count > 0:
            result = self._on_rows(lesson, held, count, forward, *template.rebuild(given))
            if feeds:
                return result
            fresh = self._keep(lesson, held, flatten(result)[0], count)
        if not feeds:
            self._add(now, call, held, fresh)
        return held.template.rebuild(self._stale(lesson, held, 1) if feeds else self._answer(lesson, held))

    def _inputs(self, now: Within, call: Call, lesson: Lesson, tensors: list[Tensor], count: int) -> list[Tensor]:
        """A unit's arguments with the rows of ``count`` tokens, made before the stream moves on."""
        given = list(tensors)
        sources = now.lesson.sources[call]
        for index, (tensor, place, source) in enumerate(zip(tensors, lesson.inputs, sources, strict=True)):
            if source is None or source.kind == "fed":
                continue
            if source.kind == "argument":
                given[index] = self._argument(now, source, count)
                continue
            if source.ahead is not None:
                made, most = now.ahead.get((call, index), (tensor, 0))
                given[index] = self._fewer(made, place, count, most) if count else tensor
                continue
            if id(tensor) not in now.made:
                most = self._most(source)
                if most == 0:
                    continue
                there = now.look.tensors_of(call)[index]
                made = self._made(now, source, tensor, place, most, there)
                now.made[id(tensor)] = tensor, made, most  # the tensor is held so that no other gets its number
            _, made, most = now.made[id(tensor)]
            given[index] = self._fewer(made, place, count, most) if count else tensor
        return given

    def _argument(self, now: Within, source: Source, count: int) -> Tensor:
        """Rows of what the block itself was given; all of them as they are."""
        known = now.tensors[source.number]
        if not 0 < count < self.selection.tokens:
            return known
        return self.selection.take_again(known, now.lesson.inputs[source.number], count)

    def _fewer(self, made: Tensor, place: Place, count: int, most: int) -> Tensor:
        """The rows of ``count`` tokens among those of ``most``; all tokens are in token order already."""
        return made if count == most else self.selection.take(made, place, count, most)

    def _make_ahead(self, now: Within, call: Call) -> None:
        """What later units get of the stream as it is in front of this one."""
        for later, sources in now.lesson.sources.items():
            for index, source in enumerate(sources):
                most = self._most(source) if source is not None and source.ahead == call else 0
                if most:
                    there, place = now.look.tensors_of(later)[index], self.lessons[later].inputs[index]
                    now.ahead[later, index] = self._made(now, source, there, place, most, there), most

    def _most(self, source: Source) -> int:
        """Of how many tokens rows are wanted."""
        return max(self._count(name, layer, kind) for (name, _), layer, kind in source.readers)

    def _made(self, now: Within, source: Source, tensor: Tensor, place: Place, count: int, there: Tensor) -> Tensor:
        """The first ``count`` tokens' rows of an argument, among text that is real; all of them in token order.

        Args:
            tensor: the argument as the block gave it.
            there: and when it was looked at.
        """
        others = place.length - self.selection.tokens
        size = tensor.shape[0], others + count, tensor.shape[2]
        rows = torch.empty(size, dtype=tensor.dtype, device=tensor.device)
        if others:
            self._put_text(rows, tensor, place, tensor.shape[1] - others)
        out = rows.narrow(1, place.offset, count)
        if source.kind in NORMS:
            scale, shift = now.look.modulation(there, place, source.eps)
            now.stream.normed(count, source.kind, source.eps, scale, shift, out)
        else:
            out.copy_(now.stream.take(count))
        return rows

    def _keep(self, lesson: Lesson, held: Memory, rows: list[Tensor], count: int) -> dict[int, Tensor]:
        """Hold what is no token of a unit's results; those of tokens by number."""
        fresh = {}
        for number, (place, new) in enumerate(zip(lesson.results, rows, strict=True)):
            if place is None:
                held.results[number] = new
            else:
                fresh[number] = new.narrow(place.axis, place.offset, count)
                self._put_text(held.results[number], new, place, count)
        held.seal()
        return fresh

    def _add(self, now: Within, call: Call, held: Memory, fresh: Mapping[int, Tensor]) -> None:
        for number, place in enumerate(self.lessons[call].results):
            if place is not None:
                cache = held.results[number].narrow(place.axis, place.offset, self.selection.tokens)
                rows = fresh.get(number, cache[:, :0])
                now.stream.add(Update(held, cache, rows, now.look.gates[call, number]))

    def _answer(self, lesson: Lesson, held: Memory) -> list[Tensor]:
        """A unit's results for one token, zero, and the text."""
        answers = []
        for place, old in zip(lesson.results, held.results, strict=True):
            if place is not None:
                size = place.length - self.selection.tokens + 1
                rows = old.new_zeros([size if axis == place.axis else n for axis, n in enumerate(old.shape)])
                self._put_text(rows, old, place, self.selection.tokens)
                old = rows
            answers.append(old)
        return answers
