"""Passes that find out about a model what a partial pass needs to know, on the arguments of a full one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .attending import Attending, Attention
from .attention_lessons import form_of, prove
from .outputs import flatten
from .part_calls import Scene, Watching
from .selection import Place, Unfit, marked, sized
from .streams import named_tensors
from .token_passes import UNREACHED, Call, Forward, Lesson, Memory, PartialPass, TokenPass, result_place


class LearningPass(TokenPass):
    """Two tokens are made NaN where they enter, and no unit mixes tokens: the NaNs show where tokens are.

    Args:
        start: the block at which the tokens enter.
        tokens: how many there are.
    """

    def __init__(
        self, memories: dict[Call, Memory], lessons: dict[Call, Lesson], start: nn.Module, tokens: int
    ) -> None:
        super().__init__(memories, lessons)
        self._start, self._tokens, self._begun = start, tokens, False

    def entry(self, block: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
        if block is not self._start or self._begun:
            return args, kwargs
        self._begun = True
        stream = next(iter(named_tensors(block, args, kwargs).values()))
        marks = stream.clone()
        marks[:, 0] = marks[:, -1] = float("nan")
        return tuple(marks if a is stream else a for a in args), {
            n: marks if a is stream else a for n, a in kwargs.items()
        }

    def unit(self, call: Call, layer: int, kind: str, feeds: bool, forward: Forward, args: Any, kwargs: Any) -> Any:
        lesson = self.lessons[call] = Lesson()
        held = self.memories[call]
        tensors, _ = flatten((args, kwargs))
        try:
            lesson.inputs = [marked(t, self._tokens) for t in tensors]
            if not any(lesson.inputs):
                lesson.whole = UNREACHED
            elif held.attended or feeds:
                return self._look_inside(lesson, held, feeds, forward, args, kwargs)
        except Unfit as error:
            lesson.whole = str(error)
        self._complete(lesson, tensors)
        return forward(*args, **kwargs) if feeds else held.give()

    def _look_inside(self, lesson: Lesson, held: Memory, feeds: bool, forward: Forward, args: Any, kwargs: Any) -> Any:
        def attend(number: int, attention: Attention) -> Tensor:
            lesson.keys.append(marked(attention.key, self._tokens))
            return attention.query.new_zeros((*attention.query.shape[:-1], attention.value.shape[-1]))

        with Attending(attend):
            result = forward(*args, **kwargs)
        self._complete(lesson, flatten((args, kwargs))[0])
        return result if feeds else held.give()

    def _complete(self, lesson: Lesson, tensors: list[Tensor]) -> None:
        """Tensors that go along with the tokens."""
        found = [place for place in (*lesson.keys, *lesson.inputs) if place is not None]
        known = sorted({*found, Place(0, 0, self._tokens)}, key=lambda place: -place.length)
        lesson.inputs = [
            place if place is not None else sized(tensor, known)
            for place, tensor in zip(lesson.inputs, tensors, strict=False)
        ]


class ProvingPass(PartialPass):
    """A partial pass on the arguments of a full one: what it computes must be what is held.

    Attentions are watched: what their parts are is written down where these, run one by one, give the same.

    Args:
        args: as of a partial pass.
        modules: of units and feeders, by name.

    Attributes:
        errors: of each call, its relative error, on the device.
    """

    def __init__(self, *args: Any, modules: Mapping[str, nn.Module]) -> None:
        super().__init__(*args)
        self.errors: dict[Call, Tensor] = {}
        self._modules, self._call = modules, None
        self._watching: Watching | None = None

    def unit(self, call: Call, layer: int, kind: str, feeds: bool, forward: Forward, args: Any, kwargs: Any) -> Any:
        self._call = call
        try:
            result = super().unit(call, layer, kind, feeds, forward, args, kwargs)
            if feeds and self.lessons[call].whole is None:
                self.lessons[call].results = self._places_of(call, flatten(result)[0])
            return result
        except (Unfit, RuntimeError, ValueError, IndexError) as error:
            told = "" if isinstance(error, Unfit) else "it does not run on rows alone: "
            self.lessons[call].whole = told + str(error).splitlines()[0]
            return self._in_full(call, feeds, forward, args, kwargs)

    # -- attentions ------------------------------------------------------------------------------------------------

    def _on_rows(
        self, lesson: Lesson, held: Memory, count: int, forward: Forward, args: Any, kwargs: Any, packed: int = 0
    ) -> Any:
        if not lesson.mixes:
            return super()._on_rows(lesson, held, count, forward, args, kwargs, packed)
        lesson.form, lesson.unformed = None, "not learned"
        name = self._call[0]
        with Watching(self._modules[name]) as watching:
            self._watching = watching
            result = super()._on_rows(lesson, held, count, forward, args, kwargs, packed)
        tensors, template = flatten((args, kwargs))
        chosen = self._chosen(lesson, tensors, count, packed)
        scene = Scene(name, self._modules[name], watching, chosen, template, lesson.inputs, flatten(result)[0])
        try:
            if len(lesson.keys) > 1:
                raise Unfit("it attends more than once")
            lesson.form = form_of(scene)
            prove(self._by_parts(lesson, held, count, tensors), scene.results)
            lesson.unformed = None
        except (Unfit, RuntimeError, ValueError, IndexError, AttributeError) as error:
            lesson.form, lesson.unformed = None, str(error).splitlines()[0]
        return result

    def _attend(self, attended: Any, place: Place, attention: Attention, count: int) -> Tensor:
        mixed = super()._attend(attended, place, attention, count)
        self._watching.attend(attention, mixed)
        return mixed

    def _by_parts(self, lesson: Lesson, held: Memory, count: int, tensors: list[Tensor]) -> list[Tensor]:
        """A form's results for the rows; keys and values go to copies of what is held."""
        copies = {number: (k.clone(), v.clone(), mask) for number, (k, v, mask) in held.attended.items()}
        result = self._in_parts(lesson, replace(held, attended=copies), count, tensors, 0)
        return flatten(result)[0]

    # -- proofs ----------------------------------------------------------------------------------------------------

    def _merge(self, lesson: Lesson, held: Memory, rows: list[Tensor], count: int) -> Any:
        errors = []
        lesson.results = self._places_of(self._call, rows)
        for old, new, place in zip(held.results, rows, lesson.results, strict=True):
            wanted = old if place is None else self.selection.take(old, place, count)
            errors.append((new.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-30))
        self.errors[self._call] = torch.stack(errors).amax()
        return held.give()

    def _places_of(self, call: Call, rows: list[Tensor]) -> list[Place | None]:
        """Where the computed rows belong among the results that are held."""
        return [result_place(self.lessons[call], o, n) for o, n in zip(self.memories[call].results, rows, strict=True)]
