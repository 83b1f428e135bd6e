"""The ways in which a denoiser runs under site ``token``: in full, learning where its tokens are, and for some of them.

A unit is an attention or feed-forward module. For a partial call the rows of its arguments that belong to the chosen
tokens are gathered, the module runs on these, and its results are written to their places among the last results of the
others: what the block then gates and adds is complete, under the gate of now. In an attention the chosen queries meet
the keys and values of all tokens: those of the others are the ones that were computed last (variant ii of cached-KV
attention, after norm and rotary positions, so that nothing is computed again for them). Where an attention's parts are
known, they are run one by one with kernel P between them (:mod:`.fused_attention`); else the module itself runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..kernels import project_epilogue
from .attending import Attending, Attention
from .attention_form import AttentionForm
from .few_rows import FewRows
from .fused_attention import FusedAttention, Tables
from .outputs import Template, flatten, owned
from .selection import Place, Selection, Unfit
from .streams import named_tensors, version

Forward = Callable[..., Any]
#: why a unit that works on other things than tokens does not run on rows
UNREACHED = "no token reaches it"
#: name of a unit or feeder, and how often it had been called before in the pass
Call = tuple[str, int]


@dataclass
class Lesson:
    """What was learned of one call of a unit.

    Attributes:
        inputs: of each tensor among the arguments, where the tokens are in it; None where it has none.
        keys: of each attention inside, where they are among its keys; None where the keys are others (text).
        results: of each tensor that it returns, where they are; None where it has none. Of a unit that is proved.
        whole: why it cannot run on some rows, or None.
        form: of an attention among the tokens, its parts, where these are known.
        unformed: why they are not, or None.
    """

    inputs: list[Place | None] = field(default_factory=list)
    keys: list[Place | None] = field(default_factory=list)
    results: list[Place | None] = field(default_factory=list)
    whole: str | None = None
    form: AttentionForm | None = None
    unformed: str | None = None

    @property
    def mixes(self) -> bool:
        """Whether its tokens meet each other in an attention."""
        return any(place is not None for place in self.keys)


@dataclass
class Memory:
    """What is held of one call of a unit.

    Attributes:
        results: its results, complete: each token's as it was computed last.
        template: how they are returned.
        attended: keys, values and mask of each attention inside that has the tokens among its keys.
        shapes_only: whether the results stand for their shapes alone, because only the unit reads them.
    """

    results: list[Tensor]
    template: Template | None
    attended: dict[int, tuple[Tensor, Tensor, Tensor | None]]
    shapes_only: bool = False
    versions: list[int] = field(default_factory=list)

    def held(self) -> Iterator[Tensor]:
        """Every tensor with a memory of its own."""
        yield from () if self.shapes_only else self.results
        for key, value, _ in self.attended.values():
            yield from (key, value)

    def seal(self) -> None:
        """Whoever writes to the results from here on is noticed."""
        self.versions = [version(t) for t in self.results]

    @property
    def intact(self) -> bool:
        return [version(t) for t in self.results] == self.versions

    def give(self) -> Any:
        """The module's return value."""
        return self.template.rebuild(self.results)


class TokenPass(ABC):
    """A forward pass under way.

    Args:
        memories: what the branch holds, by call.
        lessons: what was learned of the model, by call.
    """

    def __init__(self, memories: dict[Call, Memory], lessons: dict[Call, Lesson]) -> None:
        self.memories, self.lessons = memories, lessons
        self._calls: Counter[str] = Counter()

    def run(self, name: str, layer: int, kind: str, feeds: bool, forward: Forward, args: Any, kwargs: Any) -> Any:
        """A unit's call, or (``feeds``) that of a module whose result only the unit uses."""
        call = name, self._calls[name]
        self._calls[name] += 1
        return self.unit(call, layer, kind, feeds, forward, args, kwargs)

    @abstractmethod
    def unit(self, call: Call, layer: int, kind: str, feeds: bool, forward: Forward, args: Any, kwargs: Any) -> Any:
        """One call."""

    def entry(self, block: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
        """The first block of a list is about to run: its arguments."""
        return args, kwargs

    def run_block(self, name: str, forward: Forward, args: Any, kwargs: Any) -> Any:
        """A block's call."""
        call = name, self._calls[name]
        self._calls[name] += 1
        return self.block(call, forward, args, kwargs)

    def block(self, call: Call, forward: Forward, args: Any, kwargs: Any) -> Any:
        """One call of a block."""
        return forward(*args, **kwargs)

    # -- parts of several passes -----------------------------------------------------------------------------------

    def _in_full(self, call: Call, feeds: bool, forward: Forward, args: Any, kwargs: Any) -> Any:
        """All rows; everything that is held of the call is new."""
        attended: dict[int, tuple[Tensor, Tensor, Tensor | None]] = {}
        lesson = self.lessons.get(call)

        def keep(number: int, attention: Attention) -> Tensor:
            if lesson is None or (lesson.whole is None and lesson.keys[number] is not None):
                attended[number] = owned(attention.key), owned(attention.value), attention.mask
            return attention.run()

        with Attending(keep):
            result = forward(*args, **kwargs)
        tensors, template = flatten(result)
        held = Memory([_shape_of(t) if feeds else owned(t) for t in tensors], template, attended, feeds)
        held.seal()
        self.memories[call] = held
        return result


def _shape_of(tensor: Tensor) -> Tensor:
    """A tensor of that shape with the memory of one number."""
    return tensor.new_zeros(()).expand(tensor.shape)


class FullPass(TokenPass):
    """Everything is computed and held.

    Attributes:
        entries: hidden stream of the first block of each list, by the list's name, in order.
    """

    def __init__(
        self, memories: dict[Call, Memory], lessons: dict[Call, Lesson], lists: Mapping[nn.Module, str]
    ) -> None:
        super().__init__(memories, lessons)
        self.entries: dict[str, Tensor] = {}
        self._lists = lists

    def unit(self, call: Call, layer: int, kind: str, feeds: bool, forward: Forward, args: Any, kwargs: Any) -> Any:
        return self._in_full(call, feeds, forward, args, kwargs)

    def entry(self, block: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
        self.entries.setdefault(self._lists[block], next(iter(named_tensors(block, args, kwargs).values())))
        return args, kwargs


class PartialPass(TokenPass):
    """Every unit is computed for some tokens; how many is up to the unit.

    Args:
        select: called once with the hidden stream where it enters.
        count: (name, layer, kind) -> how many tokens a unit computes.

    Attributes:
        rows, all_rows: rows that were computed, and rows that a full pass computes.
        unformed: how many attentions among the tokens ran as they are written, by reason.
        around: (name of a unit or feeder, what runs its parts) -> what is called instead, or None.
    """

    def __init__(
        self,
        memories: dict[Call, Memory],
        lessons: dict[Call, Lesson],
        start: nn.Module,
        select: Callable[[Tensor], Selection],
        count: Callable[[str, int, str], int],
    ) -> None:
        super().__init__(memories, lessons)
        self._start, self._select, self._count = start, select, count
        self.selection: Selection | None = None
        self.rows, self.all_rows = 0, 0
        self.unformed: Counter[str] = Counter()
        self.around: Callable[[str, Forward], Forward] | None = None
        self._tables: Tables = {}

    def entry(self, block: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
        if block is self._start and self.selection is None:
            self.selection = self._select(next(iter(named_tensors(block, args, kwargs).values())))
        return args, kwargs

    def unit(self, call: Call, layer: int, kind: str, feeds: bool, forward: Forward, args: Any, kwargs: Any) -> Any:
        lesson = self.lessons[call]
        if self.selection is None or lesson.whole is not None:  # a list that runs before the tokens enter
            self._note(1, 1)
            with FewRows() if self.rows < self.all_rows else nullcontext():
                return self._in_full(call, feeds, forward, args, kwargs)
        tokens, count = self.selection.tokens, self._count(call[0], layer, kind)
        self._note(min(count, tokens), tokens)
        if count >= tokens:
            return self._in_full(call, feeds, forward, args, kwargs)
        held = self.memories[call]
        if count == 0:
            return held.give()  # of a feeder some tensor of its shape: nobody looks at it
        result = self._on_rows(lesson, held, count, forward, args, kwargs)
        return result if feeds else self._merge(lesson, held, flatten(result)[0], count)

    def _note(self, rows: int, all_rows: int) -> None:
        self.rows, self.all_rows = self.rows + rows, self.all_rows + all_rows

    def _on_rows(
        self, lesson: Lesson, held: Memory, count: int, forward: Forward, args: Any, kwargs: Any, packed: int = 0
    ) -> Any:
        tensors, template = flatten((args, kwargs))
        if lesson.mixes:
            why = lesson.unformed or "not learned" if lesson.form is None else lesson.form.changed(template)
            if why is None:
                return self._in_parts(lesson, held, count, tensors, packed)
            self.unformed[why] += 1
        args, kwargs = template.rebuild(self._chosen(lesson, tensors, count, packed))

        def attend(number: int, attention: Attention) -> Tensor:
            place = lesson.keys[number]
            return attention.run() if place is None else self._attend(held.attended[number], place, attention, count)

        with Attending(attend) if lesson.keys else FewRows():
            return forward(*args, **kwargs)

    def _chosen(self, lesson: Lesson, tensors: list[Tensor], count: int, packed: int) -> list[Tensor]:
        """A unit's arguments with the rows of ``count`` tokens."""
        return [
            tensor if place is None else self.selection.take(tensor, place, count, packed)
            for place, tensor in zip(lesson.inputs, tensors, strict=True)
        ]

    def _in_parts(self, lesson: Lesson, held: Memory, count: int, tensors: list[Tensor], packed: int) -> Any:
        """An attention part by part, the same as the module's own forward."""
        number, place = next((n, place) for n, place in enumerate(lesson.keys) if place is not None)
        key, value, mask = held.attended[number]

        def meet(query: Tensor) -> Tensor:
            return Attention(query, key, value, self._masked(mask, place, count), lesson.form.rest).run()

        run: Forward = FusedAttention(lesson.form, lesson.inputs, self.selection, count, packed, self._tables)
        if self.around is not None:
            run = self.around(lesson.form.name, run)
        return held.template.rebuild(run(tensors, key, value, meet))

    def _attend(
        self, attended: tuple[Tensor, Tensor, Tensor | None], place: Place, attention: Attention, count: int
    ) -> Tensor:
        """The chosen queries over the keys of all tokens, the chosen ones' renewed in their places."""
        key, value, mask = attended
        self._renew(key, value, place, attention, count)
        return attention.over(key, value, self._masked(mask, place, count)).run()

    def _masked(self, mask: Tensor | None, place: Place, count: int) -> Tensor | None:
        """The chosen queries' part of a mask that is another one for every query."""
        if mask is None or mask.shape[-2] != place.length:
            return mask
        return mask.index_select(-2, self.selection.rows(count, place.offset, place.length))

    def _renew(self, key: Tensor, value: Tensor, place: Place, attention: Attention, count: int) -> None:
        """Computed keys and values to their places among those of all tokens: kernel P, or one by one."""
        rows = self.selection.rows(count, place.offset, place.length)
        pairs = (key, attention.key), (value, attention.value)
        if place.axis == 2 and key.dim() == 4 and value.shape == key.shape:
            (k_cache, k), (v_cache, v) = ([t.transpose(1, 2) for t in pair] for pair in pairs)
            project_epilogue(k=k, v=v, k_cache=k_cache, v_cache=v_cache, index=rows)
            return
        for held, new in pairs:
            self.selection.put(held, place, new, count)

    def _merge(self, lesson: Lesson, held: Memory, rows: list[Tensor], count: int) -> Any:
        for index, (old, new) in enumerate(zip(held.results, rows, strict=True)):
            place = result_place(lesson, old, new)
            if place is None:
                held.results[index] = owned(new)
            else:
                self.selection.put(old, place, new, count)
        held.seal()
        return held.give()


def result_place(lesson: Lesson, old: Tensor, new: Tensor) -> Place | None:
    """Where the rows of a result belong; None where it is complete."""
    axes = [axis for axis, (a, b) in enumerate(zip(old.shape, new.shape, strict=True)) if a != b]
    if not axes:
        return None
    known = (place for place in (*lesson.inputs, *lesson.keys) if place is not None)
    found = next((place for place in known if place.length == old.shape[axes[0]]), None)
    if len(axes) > 1 or found is None:
        raise Unfit(f"a result of shape {tuple(new.shape)} does not fit one of {tuple(old.shape)}")
    return Place(axes[0], found.offset, found.length)
