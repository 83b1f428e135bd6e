"""What site ``token`` finds out about a model on the first step that is computed in full, and how it is proved.

Where the tokens are is learned by a pass that marks two of them; that their rows can be computed alone is proved by
passes on the very arguments of that step, which have to give what the full pass gave: module by module, and then with
whole blocks on packed rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from ..errors import UnsupportedModelError
from .again import close_to, compare
from .block_lessons import BlockLearningPass, settle
from .fused import FusedPass
from .fused_lessons import FusedLearningPass
from .learning_passes import ProvingPass
from .lessons import BlockLesson
from .modules import Unit
from .outputs import tensors_in_order
from .packed import Broken
from .selection import Selection, Unfit
from .sites import Run
from .token_passes import Call, FullPass, Lesson, Memory, TokenPass

Memories = dict[Call, Memory]
# what a model may raise that gets rows for which it was not written
_FAULTS = (Unfit, RuntimeError, ValueError, TypeError, IndexError, KeyError)
# Lists whose tokens are text.
_TEXT_LIST = re.compile(r"refiner|context|text|txt|caption|perceiver", re.IGNORECASE)


@dataclass(frozen=True)
class Known:
    """What was learned of a model and a form of call.

    Attributes:
        start: the block at which the tokens enter.
        units: lessons of its units.
        blocks: lessons of its blocks; empty where they cannot run on packed rows.
        unpacked: why they cannot, or None.
    """

    start: nn.Module
    units: dict[Call, Lesson]
    blocks: dict[Call, BlockLesson] = field(default_factory=dict)
    unpacked: str | None = None

    def partial(
        self,
        memories: Memories,
        select: Callable[[Tensor], Selection],
        count: Callable[[str, int, str], int],
        packs: bool = True,
        poison: bool = False,
    ) -> FusedPass:
        """A pass of some tokens; see :class:`.packed.PackedPass`."""
        blocks = self.blocks if packs else {}
        return FusedPass(memories, self.units, self.start, select, count, blocks=blocks, poison=poison)


class Teacher:
    """Learns one model.

    Args:
        model: the denoiser.
        units: its attention and feed-forward modules.
        lists: name of its list by block.
        within: runs the model under a pass.
        ranked: whether blocks are to be proved on a stream in rank order.
    """

    def __init__(
        self,
        model: nn.Module,
        units: Sequence[Unit],
        lists: Mapping[nn.Module, str],
        within: Callable[[TokenPass, Run], Any],
        ranked: bool = False,
    ) -> None:
        self._model, self._units, self._lists, self._within, self._ranked = model, units, lists, within, ranked
        self._modules = {unit.name: unit.module for unit in units}
        self._modules |= {feeder_name(unit, i): part for unit in units for i, part in enumerate(unit.feeders)}

    def learn(self, run: Run, full: FullPass, result: Any) -> Known:
        """Find out where the tokens are, and prove it on the step that was just computed.

        Raises:
            UnsupportedModelError: no unit can be run on some of its tokens.
        """
        start, stream = self._start(full)
        memories, lessons = full.memories, {}
        try:
            learning = BlockLearningPass(memories, lessons, start, stream.shape[1])
            self._within(learning, run)
            errors = self._prove(memories, lessons, start, stream, run)
        except _FAULTS as error:
            raise refusal(self._model, _first_line(error)) from error
        self._judge(lessons, errors, stream.dtype)
        if all(lesson.whole for lesson in lessons.values()):
            raise refusal(self._model, next(lesson.whole for lesson in lessons.values()))
        for call, lesson in lessons.items():
            held = memories[call].attended
            for number in [n for n in held if lesson.whole or lesson.keys[n] is None]:
                del held[number]
        settle(learning.blocks, lessons)
        return self._prove_blocks(Known(start, lessons, learning.blocks), stream, run, result, memories)

    def glance(self, full: FullPass) -> Known | None:
        """Without a proof, where a pass went through with shapes alone (see :mod:`.shadow`), which hold no numbers to
        learn from: None where it had numbers.

        What is held is told by sizes then: an attention with fewer keys than there are tokens has others for its keys.
        Modules that turn out to be computed whole hold less.
        """
        start, stream = self._start(full)
        if not isinstance(stream, FakeTensor):
            return None
        for memory in full.memories.values():
            few = [n for n, (key, _, _) in memory.attended.items() if key.shape[-2] < stream.shape[1]]
            for number in few:
                del memory.attended[number]
        return Known(start, {})

    def _prove_blocks(self, known: Known, stream: Tensor, run: Run, result: Any, memories: Memories) -> Known:
        """Keep to packed rows if a pass of some tokens gives what the full pass gave; to fused norms likewise."""
        tokens, _ = trial = _trial(stream.shape[1], stream.device, self._ranked)
        if not all(block.whole for block in known.blocks.values()):
            try:
                self._within(FusedLearningPass(memories, known.units, known.start, known.blocks, tokens), run)
            except _FAULTS as error:
                _unfuse(known, _first_line(error))
            settle(known.blocks, known.units)
        if all(block.whole for block in known.blocks.values()):
            return replace(known, blocks={}, unpacked=next((b.whole for b in known.blocks.values()), "it has no block"))
        why = self._try(known, trial, run, result, memories)
        if why is not None and any(block.sources for block in known.blocks.values()):
            _unfuse(known, f"with its norms by kernels {why}")
            why = self._try(known, trial, run, result, memories)
        return known if why is None else replace(known, blocks={}, unpacked=why)

    def _try(self, known: Known, trial: tuple[Selection, int], run: Run, result: Any, memories: Memories) -> str | None:
        """Why a pass of some tokens does not give what the full pass gave; None if it does."""
        order, count = trial
        now, why = known.partial(memories, lambda stream: order, lambda *unit: count, poison=True), None
        try:
            found = self._within(now, run)
            now.end()
            same = torch.stack(compare(tensors_in_order(result), tensors_in_order(found))).tolist()
            why = None if all(same) else "its blocks do more than adding up results"
        except (Broken, *_FAULTS) as error:
            why = f"its blocks do not run on rows alone: {_first_line(error)}"
        if why is not None:  # it wrote into what is held
            self._within(FullPass(memories, known.units, self._lists), run)
        return why

    def _prove(
        self, memories: Memories, lessons: dict[Call, Lesson], start: nn.Module, stream: Tensor, run: Run
    ) -> Mapping[Call, Tensor]:
        """Errors of each unit on some rows of the step that was just computed."""
        order, count = _trial(stream.shape[1], stream.device)
        given = memories, lessons, start, lambda stream: order, lambda *unit: count
        proof = ProvingPass(*given, modules=self._modules)
        self._join(lessons)
        try:
            self._within(proof, run)
        except (RuntimeError, ValueError, IndexError) as error:
            # Modules that feed one unit did not agree on their rows.
            for unit in self._units:
                for lesson in chain(*self._groups(lessons, unit)) if unit.feeders else ():
                    lesson.whole = lesson.whole or f"what feeds it does not run on rows alone: {_first_line(error)}"
            proof = ProvingPass(*given, modules=self._modules)
            self._within(proof, run)
        return proof.errors

    def _start(self, full: FullPass) -> tuple[nn.Module, Tensor]:
        """The block at which the tokens enter, and the hidden stream there."""
        name, stream = next(
            ((n, s) for n, s in full.entries.items() if not _TEXT_LIST.search(n)), next(iter(full.entries.items()))
        )
        if stream.dim() != 3 or stream.shape[1] < 2:
            raise refusal(self._model, f"its hidden states of shape {tuple(stream.shape)} are no sequence of tokens")
        return next(block for block, list_name in self._lists.items() if list_name == name), stream

    def _judge(self, lessons: dict[Call, Lesson], errors: Mapping[Call, Tensor], dtype: torch.dtype) -> None:
        """Units whose rows were not what the full pass gave are computed whole."""
        calls = [call for call in errors if lessons[call].whole is None]
        if calls:
            # one host read for a model's first computed step
            found = torch.stack([errors[call] for call in calls]).tolist()
            for call, error in zip(calls, found, strict=True):
                if not error <= close_to(dtype):
                    lessons[call].whole = "a token's result depends on which others are computed"
        self._join(lessons)

    def _join(self, lessons: dict[Call, Lesson]) -> None:
        """A unit and the modules that feed it are computed on the same rows, in each of its calls."""
        for unit in self._units:
            for group in self._groups(lessons, unit):
                reason = next((lesson.whole for lesson in group if lesson.whole), None)
                for lesson in group:
                    lesson.whole = reason

    def _groups(self, lessons: dict[Call, Lesson], unit: Unit) -> list[list[Lesson]]:
        """Lessons of a unit and of what feeds it, by the number of the call."""
        names = {unit.name, *(feeder_name(unit, i) for i in range(len(unit.feeders)))}
        groups: dict[int, list[Lesson]] = {}
        for (name, number), lesson in lessons.items():
            if name in names:
                groups.setdefault(number, []).append(lesson)
        return list(groups.values())


def _trial(tokens: int, device: torch.device, ranked: bool = False) -> tuple[Selection, int]:
    """About half of the tokens, in no order and no number that a module which knows rows or frames could live with."""
    fit = (c for c in range(1, tokens) if math.gcd(c, tokens) == 1)
    count = min(fit, key=lambda c: (c == 1, abs(2 * c - tokens)))
    order = sorted(range(tokens), key=lambda i: i * 0.6180339887 % 1.0)
    return Selection(torch.tensor(order, device=device), ranked), count


def _unfuse(known: Known, why: str) -> None:
    """Leave all norms to the blocks."""
    for block in known.blocks.values():
        block.sources, block.unfused = None, block.unfused or why


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def feeder_name(unit: Unit, index: int) -> str:
    return f"{unit.name} {index}"


def refusal(model: nn.Module, why: str) -> UnsupportedModelError:
    """What is raised for a model that cannot be run on some of its tokens."""
    return UnsupportedModelError(f"site token: {type(model).__name__} cannot be taken apart: {why}")
