"""Whether a block's norms can be left to kernels: found out on the first computed step, with all of its tokens.

A unit's argument that has the tokens in it has to be a norm of the stream as it is then, or as it was in front of an
earlier unit of the block (two attentions on one stream), scaled and shifted alike for all tokens of a sample; or the
stream itself; or an argument of the block; or made by modules that only the unit reads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import gather_norm
from .again import close_to
from .fused import FusedPass
from .lessons import NORMS, BlockLesson, Source
from .look import SIGNS, ZERO, Look
from .outputs import flatten
from .packed import tokens_in
from .selection import Place, Selection, Unfit
from .token_passes import Call, Forward, Lesson, Memory

# the name of a block, before that of its module
_IN_BLOCK = re.compile(r"^.*?\.\d+\.")
#: factor of a row so small that ``eps`` shows
_SMALL = 2.0**-10
#: ``eps`` is told as a power of ten
_LEAST, _MOST = 1e-12, 1e-3


class FusedLearningPass(FusedPass):
    """A pass in which modules answer what they answered in the full pass, and the blocks' arguments to them are judged.

    Args:
        memories, lessons, start, blocks: see :class:`.packed.PackedPass`; ``blocks`` gets what is learned.
        selection: of all tokens.
    """

    def __init__(
        self,
        memories: dict[Call, Memory],
        lessons: dict[Call, Lesson],
        start: nn.Module,
        blocks: Mapping[Call, BlockLesson],
        selection: Selection,
    ) -> None:
        super().__init__(memories, lessons, start, lambda stream: selection, lambda *unit: 0, blocks=blocks)

    def unit(self, call: Call, layer: int, kind: str, feeds: bool, forward: Forward, args: Any, kwargs: Any) -> Any:
        run = self._inside or self._held
        return run(call, layer, kind, feeds, forward, args, kwargs)

    def _in_order(self, tensor: Tensor, place: Place) -> Tensor:
        return tensor  # the stream is judged as it is

    def _held(self, call: Call, *asked: Any) -> Any:
        return self.memories[call].give()

    def block(self, call: Call, forward: Forward, args: Any, kwargs: Any) -> Any:
        lesson, before = self.blocks.get(call), self._calls.copy()
        if lesson is None or lesson.whole or self.selection is None:
            return forward(*args, **kwargs)
        tensors, template = flatten((args, kwargs))
        judge = None
        try:
            if tensors[lesson.stream].dtype == torch.float64:
                raise Unfit("kernels compute in fp32, its stream is fp64")
            if lesson.modulated:
                look = self._look_at_tokens(lesson, tensors, template, forward)
            else:
                look = self._look(lesson, tensors, template, forward, _SMALL)
            judge = _Judge(self, lesson, tensors, look)
        except (Unfit, RuntimeError, ValueError, TypeError, IndexError) as error:
            lesson.unfused = str(error).splitlines()[0]
            if lesson.modulated:  # its gates are not known
                lesson.whole = lesson.unfused
        self._calls = before
        results, given = self._run(judge or self._held, forward, (args, kwargs))
        if judge is not None:
            judge.settle()
        return given.rebuild(results)


class _Judge:
    """One run of a block in full: answers for its units, and tells how their arguments came about."""

    def __init__(self, now: FusedLearningPass, lesson: BlockLesson, tensors: list[Tensor], look: Look) -> None:
        self._lesson, self._lessons, self._memories, self._tensors = lesson, now.lessons, now.memories, tensors
        self._look, self._count = look, now.selection.tokens
        self._stream = tokens_in(tensors[lesson.stream], lesson.inputs[lesson.stream], self._count).float()
        self._past: list[tuple[Call, Tensor]] = []  # the stream in front of each unit that moved it
        self._found: dict[Call, list[Source | None]] = {}
        self._seen: dict[int, tuple[Tensor, Source, list[tuple[Call, int, str]]]] = {}
        self._fed = False

    def __call__(self, call: Call, layer: int, kind: str, feeds: bool, forward: Forward, args: Any, kwargs: Any) -> Any:
        unit, held = self._lessons[call], self._memories[call]
        try:
            if unit.whole is None and self._lesson.unfused is None:
                self._judge(call, (call, layer, kind), unit, flatten((args, kwargs))[0])
                self._move(call, feeds, unit, held)
        except (Unfit, RuntimeError, ValueError, IndexError) as error:
            self._lesson.unfused = str(error).splitlines()[0]
        return held.give()

    def _move(self, call: Call, feeds: bool, unit: Lesson, held: Memory) -> None:
        """The stream behind a unit."""
        self._fed = self._fed or feeds
        if not feeds:
            self._past.append((call, self._stream))
        for number, place in enumerate(() if feeds else unit.results):
            if place is not None:
                value = tokens_in(held.results[number], place, self._count)
                self._stream = self._stream + self._look.gates[call, number].float() * value

    def settle(self) -> None:
        """Write down what was found, if it is all that kernels need."""
        if self._lesson.unfused is None:
            readers = {id(source): tuple(who) for _, source, who in self._seen.values()}
            self._lesson.sources = {
                call: [s if s is None else replace(s, readers=readers.get(id(s), ())) for s in sources]
                for call, sources in self._found.items()
            }

    def _judge(self, call: Call, reader: tuple[Call, int, str], unit: Lesson, tensors: list[Tensor]) -> None:
        found = self._found[call] = []
        for index, (tensor, place) in enumerate(zip(tensors, unit.inputs, strict=True)):
            if place is None:
                found.append(None)
                continue
            if id(tensor) not in self._seen:
                self._seen[id(tensor)] = tensor, self._source(call, index, tensor, place), []
            _, source, who = self._seen[id(tensor)]
            who.append(reader)
            found.append(source)

    def _source(self, call: Call, index: int, tensor: Tensor, place: Place) -> Source:
        given = (n for n, t in enumerate(self._tensors) if t is tensor and n != self._lesson.stream)
        number = next(given, None)
        if number is not None:
            return Source("argument", number=number)
        source = self._norm(call, index, tensor, place, self._stream) or self._norm_ahead(call, index, tensor, place)
        if source is None and not self._fed:
            raise Unfit(f"what {_IN_BLOCK.sub('', call[0])} gets is no norm of the stream")
        return source or Source("fed")

    def _norm_ahead(self, call: Call, index: int, tensor: Tensor, place: Place) -> Source | None:
        """The norm that makes an argument without text of the stream in front of an earlier unit, if one does."""
        for earlier, stream in self._past if place.length == self._count else ():
            source = self._norm(call, index, tensor, place, stream)
            if source is not None:
                return replace(source, ahead=earlier)
        return None

    def _norm(self, call: Call, index: int, tensor: Tensor, place: Place, stream: Tensor) -> Source | None:
        """The norm that makes an argument of the stream, if one does."""
        if tensor.dim() != 3 or place.axis != 1 or tensor.shape[-1] != stream.shape[-1]:
            return None
        there = self._look.tensors_of(call)[index]
        told, wanted = self._look.norm_of(there), tokens_in(tensor, place, self._count).float()
        eps = self._eps(there, place) if told is None else told[1]
        made = {"stream": stream} if told is None or told[0] == "stream" else {}
        for kind in NORMS if told is None else () if made else told[:1]:
            scale, shift = self._look.modulation(there, place, eps)
            made[kind] = gather_norm(stream, scale=scale, shift=shift, eps=eps, kind=kind)
        errors = torch.stack([(rows - wanted).norm() for rows in made.values()]) / wanted.norm()
        error, kind = min(zip(errors.tolist(), made, strict=True))
        return Source(kind, eps) if error <= close_to(tensor.dtype) else None

    def _eps(self, there: Tensor, place: Place) -> float:
        """What a norm adds to the variance, from rows of variance one and of next to none."""
        first = place.offset + len(self._look.gates)
        rows = tokens_in(there, Place(1, first, there.shape[1]), 3).double()
        zero, ones, small = rows[:, ZERO], rows[:, SIGNS], rows[:, 2]
        share = ((small - zero) / (ones - zero)).nanmedian().item()
        found = _SMALL**2 * (1.0 / share**2 - 1.0) if share and math.isfinite(share) else _MOST
        return 10.0 ** round(math.log10(min(max(found, _LEAST), _MOST)))
