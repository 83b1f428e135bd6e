"""Where the tokens are in the calls of whole blocks, learned in the pass that also learns their units."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .learning_passes import LearningPass
from .lessons import BlockLesson
from .outputs import Template, flatten
from .selection import Place, Unfit, marked, sized
from .token_passes import UNREACHED, Call, Forward, Lesson


class BlockLearningPass(LearningPass):
    """A learning pass that looks at the blocks, too.

    Attributes:
        blocks: what was learned of them, in the order of their calls.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.blocks: dict[Call, BlockLesson] = {}
        self._now: BlockLesson | None = None
        self._last: tuple[BlockLesson, Tensor] | None = None
        self._still = False

    def block(self, call: Call, forward: Forward, args: Any, kwargs: Any) -> Any:
        if not self._begun:  # a list that runs before the tokens enter
            return forward(*args, **kwargs)
        lesson = self._now = self.blocks[call] = BlockLesson()
        before = self._calls.copy()
        try:
            result = forward(*args, **kwargs)
        finally:
            self._now = None
        tensors, template = flatten((args, kwargs))
        results, _ = flatten(result)
        try:
            self._look(lesson, tensors, results)
            self._look_at_others(lesson, tensors, before, lambda given: forward(*given[0], **given[1]), template)
        except Unfit as error:
            lesson.whole = str(error)
        self._link(lesson, tensors, results)
        return result

    def unit(self, call: Call, layer: int, kind: str, feeds: bool, forward: Forward, args: Any, kwargs: Any) -> Any:
        if self._still:
            return self.memories[call].give()
        if self._now is not None:
            self._now.units.append((call, layer, kind, feeds))
        return super().unit(call, layer, kind, feeds, forward, args, kwargs)

    def _look(self, lesson: BlockLesson, tensors: list[Tensor], results: list[Tensor]) -> None:
        """Which argument carries the tokens, and which result."""
        known = _places(lesson, self.lessons, self._tokens)
        into = [(i, place) for i, t in enumerate(tensors) if (place := marked(t, self._tokens)) is not None]
        out = [(i, place) for i, t in enumerate(results) if (place := marked(t, self._tokens)) is not None]
        if len(into) != 1 or len(out) != 1:
            raise Unfit(f"{len(into)} arguments and {len(out)} results carry tokens")
        (lesson.stream, place), (lesson.result, after) = into[0], out[0]
        if place != after or place.axis != 1 or tensors[lesson.stream].shape != results[lesson.result].shape:
            raise Unfit("its result continues no argument")
        if tensors[lesson.stream].dim() != 3:
            raise Unfit("its stream is no [batch, tokens, features]")
        lesson.inputs = [place if i == lesson.stream else sized(t, known) for i, t in enumerate(tensors)]

    def _look_at_others(
        self,
        lesson: BlockLesson,
        tensors: list[Tensor],
        calls: Counter[str],
        run: Callable[[Any], Any],
        template: Template,
    ) -> None:
        """Whether what is told for each token comes to the result past the units: gates are one a token then."""
        for index, place in enumerate(lesson.inputs):
            tensor = tensors[index]
            if index == lesson.stream or place is None or not tensor.is_floating_point():
                continue
            spoiled = tensor.clone()
            spoiled.select(place.axis, place.offset).fill_(torch.nan)
            given = [
                spoiled if i == index else t.nan_to_num() if i == lesson.stream else t for i, t in enumerate(tensors)
            ]
            after, self._calls, self._still = self._calls, calls.copy(), True
            try:
                results, _ = flatten(run(template.rebuild(given)))
            finally:
                self._calls, self._still = after, False
            lesson.modulated = lesson.modulated or bool(results[lesson.result].isnan().any())

    def _link(self, lesson: BlockLesson, tensors: list[Tensor], results: list[Tensor]) -> None:
        if self._last is not None and lesson.whole is None:
            before, result = self._last
            before.chained = tensors[lesson.stream] is result
        self._last = None if lesson.whole else (lesson, results[lesson.result])


def _places(lesson: BlockLesson, lessons: Mapping[Call, Lesson], tokens: int) -> list[Place]:
    """Where the tokens are in what a block's units get, longest first."""
    inside = (lessons[call] for call, *_ in lesson.units)
    found = {place for unit in inside for place in (*unit.keys, *unit.inputs) if place is not None}
    return sorted({*found, Place(0, 0, tokens)}, key=lambda place: -place.length)


def settle(blocks: Mapping[Call, BlockLesson], lessons: Mapping[Call, Lesson]) -> None:
    """Blocks with units that have to be computed in full cannot run on rows."""
    for lesson in blocks.values():
        reasons = (lessons[call].whole for call, *_ in lesson.units)
        lesson.whole = lesson.whole or next((r for r in reasons if r not in (None, UNREACHED)), None)
        if lesson.whole is None and not lesson.parts(lessons):
            lesson.whole = "it has no unit that is computed on rows"
        ends = [lessons[call].results for call, *_ in lesson.units]
        if any(place is not None and place.axis != 1 for places in ends for place in places):
            lesson.whole = lesson.whole or "a unit returns no [batch, tokens, features]"
    after = False  # a stream is handed on only to a block that takes it
    for lesson in reversed(blocks.values()):
        lesson.chained = lesson.chained and after and lesson.whole is None
        after = lesson.whole is None
