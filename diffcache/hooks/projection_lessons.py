"""How an attention module makes its queries, keys and values, told by what its parts returned on some rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import permutations

import torch
from torch import Tensor

from ..kernels import project_epilogue
from .again import close_to
from .attention_form import Projection, Segment, Turn, is_bare
from .fused_attention import angles, norm_of
from .part_calls import PartCall, Scene, same
from .selection import Unfit


@dataclass(frozen=True)
class Raw:
    """What may become the queries or keys of some rows: ``[B, rows, heads, width]`` from a part's call."""

    call: PartCall
    rows: Tensor


@dataclass(frozen=True)
class Group:
    """Rows of the sequence that are projected together.

    Attributes:
        start, size: where they are.
        segments: their arguments.
        values: the call that made the values.
        others: calls of other parts with the same rows.
    """

    start: int
    size: int
    segments: tuple[Segment, ...]
    values: PartCall
    others: list[PartCall]


class ProjectionLessons:
    """What kernel P has to be given so that it makes what arrived at torch's attention.

    Args:
        scene: of a self-attention.
    """

    def __init__(self, scene: Scene) -> None:
        attention = scene.watching.attention
        #: queries, keys and values ``[B, rows, heads, width]``
        self._wanted = [t.transpose(1, 2) for t in (attention.query, attention.key, attention.value)]
        self._rows, self._width = self._wanted[0].shape[1], self._wanted[0].shape[3]
        self._sizes = [t.shape[2] * self._width for t in self._wanted]
        self._scene, self._limit = scene, close_to(attention.query.dtype)
        self._before = [call for call in scene.watching.calls if not call.after]

    def found(self) -> tuple[tuple[Projection, ...], bool]:
        """Projections in the order of the sequence, and whether rotary pairs are neighbours.

        Raises:
            Unfit: kernel P does not give what arrived at torch's attention.
        """
        groups = list(self._groups())
        fits = {pairs: [self._fit(group, pairs) for group in groups] for pairs in (True, False)}
        errors = {pairs: max(error for error, _ in fit) for pairs, fit in fits.items()}
        best, other = sorted(errors, key=errors.get)
        if not errors[best] <= self._limit:
            raise Unfit("what it does to its queries and keys is not known")
        projections = tuple(projection for _, projection in fits[best])
        turned = any(segment.turn is not None for projection in projections for segment in projection.segments)
        if turned and errors[other] <= min(2.0 * errors[best], self._limit):
            raise Unfit("its positions do not tell which elements are a pair")
        return projections, best

    # -- which parts -----------------------------------------------------------------------------------------------

    def _groups(self) -> Iterator[Group]:
        """From the first row of the sequence to the last, told by the values, to which nothing happens."""
        start = 0
        while start < self._rows:
            call = next((call for call in self._before if self._makes_values(call, start)), None)
            if call is None:
                raise Unfit("its values are no product of its arguments")
            others = [c for c in self._before if c is not call and c.result.dim() == 3 and same(c.given, call.given)]
            yield Group(start, call.result.shape[1], self._segments(call.given), call, others)
            start += call.result.shape[1]

    def _makes_values(self, call: PartCall, start: int) -> bool:
        """Whether a part's result, or the last third of it, is the values from row ``start`` on."""
        made, size = call.result, self._sizes[2]
        if made.dim() != 3 or call.given.dim() != 3 or made.shape[2] not in (size, sum(self._sizes)):
            return False
        return same(made[..., -size:], self._wanted[2][:, start : start + made.shape[1]].flatten(2))

    def _segments(self, given: Tensor) -> tuple[Segment, ...]:
        """The arguments, one or two after one another, that a projection got."""
        known = [(n, t) for n, t in enumerate(self._scene.tensors) if t.dim() == 3 and t.dtype == given.dtype]
        one = ((n,) for n, t in known if same(t, given))
        two = ((n, m) for n, a in known for m, b in known if n != m and _joined(a, b, given))
        numbers = next(one, None) or next(two, None)
        if numbers is None:
            raise Unfit("its projections get something else than its arguments")
        if any(place is not None and place.axis != 1 for place in (self._scene.places[n] for n in numbers)):
            raise Unfit("its arguments are no [batch, tokens, features]")
        return tuple(Segment(number) for number in numbers)

    def _pairs(self, group: Group) -> Iterator[tuple[Raw, Raw]]:
        """What may be the raw queries and keys of a group, the likeliest first."""
        q, k, v = self._sizes
        if group.values.result.shape[2] == q + k + v:
            made = group.values.result.split(self._sizes, -1)
            yield tuple(Raw(group.values, self._by_heads(rows)) for rows in made[:2])
            return
        for pair in permutations(group.others, 2):
            if [call.result.shape[2] for call in pair] == [q, k]:
                yield tuple(Raw(call, self._by_heads(call.result)) for call in pair)

    def _by_heads(self, rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (-1, self._width))

    # -- what happens to queries and keys --------------------------------------------------------------------------

    def _fit(self, group: Group, interleaved: bool) -> tuple[float, Projection]:
        """The best that kernel P can do for a group, and its error."""
        found = [
            self._turned(group, self._projection(group, pair, kind), pair, interleaved)
            for pair in self._pairs(group)
            for kind in self._kinds(pair)
        ]
        if not found:
            raise Unfit("which parts make its queries and keys is not known")
        return min(found, key=lambda each: each[0])

    def _kinds(self, pair: tuple[Raw, Raw]) -> tuple[str | None, ...]:
        """Kinds of norm that may follow; none of them if queries and keys are treated in unlike ways."""
        norms = [self._norm_of(raw) for raw in pair]
        return (None,) if norms == [None, None] else () if None in norms else ("rms", "layer")

    def _norm_of(self, raw: Raw) -> PartCall | None:
        """The part that got just these numbers."""
        same_memory = (call for call in self._before if call is not raw.call and _shares(call.given, raw.rows))
        return next(same_memory, None)

    def _projection(self, group: Group, pair: tuple[Raw, Raw], kind: str | None) -> Projection:
        names = [raw.call.name for raw in pair] + [group.values.name]
        parts = tuple(dict.fromkeys(names)) if len(set(names)) == 1 else tuple(names)
        if kind is None:
            return Projection(group.segments, parts)
        norms, module = [self._norm_of(raw) for raw in pair], self._scene.module
        if not all(is_bare(module.get_submodule(norm.name)) for norm in norms):
            raise Unfit("its norms have hooks")
        width = norms[0].given.shape[-1]
        if width not in (self._width, self._sizes[0]):
            raise Unfit("its norms span neither a head nor all heads")
        return Projection(group.segments, parts, tuple(n.name for n in norms), kind, width != self._width)

    def _turned(
        self, group: Group, projection: Projection, pair: tuple[Raw, Raw], interleaved: bool
    ) -> tuple[float, Projection]:
        """A projection with the rotary positions that suit each segment best, and its error."""
        errors, segments, start = [], [], group.start
        for segment in group.segments:
            size = self._scene.tensors[segment.argument].shape[1]
            rows = [raw.rows.narrow(1, start - group.start, size) for raw in pair]
            wanted = [t.narrow(1, start, size) for t in self._wanted[:2]]
            tries = [
                (self._error(projection, rows, wanted, self._rope(turn, start, size), interleaved), turn)
                for turn in (*self._turns(start, size), None)
            ]
            error, turn = min(tries, key=lambda each: each[0])  # of equals the first, which has angles
            errors.append(error)
            segments.append(replace(segment, turn=turn))
            start += size
        return max(errors), replace(projection, segments=tuple(segments))

    def _error(
        self,
        projection: Projection,
        rows: list[Tensor],
        wanted: list[Tensor],
        rope: tuple[Tensor, Tensor] | None,
        interleaved: bool,
    ) -> float:
        """Largest relative error of kernel P's queries and keys."""
        q, k = rows
        held = [k.new_empty(k.shape) for _ in range(2)]
        norm = norm_of(self._scene.module, projection)
        made = project_epilogue(q, k, k, *held, rope=rope, interleaved=interleaved, **norm), held[0]
        errors = [(a.float() - b.float()).norm() / b.float().norm() for a, b in zip(made, wanted, strict=True)]
        found = torch.stack(errors).amax().item()
        return found if found == found else torch.inf

    # -- rotary positions ------------------------------------------------------------------------------------------

    def _turns(self, start: int, size: int) -> Iterator[Turn]:
        """Arguments that may be the angles of a segment."""
        tensors = self._scene.tensors
        for number, table in enumerate(tensors):
            if table.is_complex() and table.shape[-1] == self._width // 2:
                other = number
            elif self._are_two(tensors[number : number + 2]):
                other = number + 1
            else:
                continue
            for axis in range(table.dim() - 1):
                place, length = self._scene.places[number], table.shape[axis]
                batch = table.numel() // max(length * table.shape[-1], 1)
                if batch not in (1, len(self._wanted[0])) or (place is not None and place.axis != axis):
                    continue
                if length == self._rows != size and place is not None:
                    yield Turn(number, other, axis, joint=True)
                if length == size:
                    yield Turn(number, other, axis, joint=False)

    def _are_two(self, tables: list[Tensor]) -> bool:
        """Whether these are cosine and sine."""
        real = all(t.is_floating_point() and t.dim() > 1 for t in tables) and len(tables) == 2
        return real and tables[0].shape == tables[1].shape and tables[0].shape[-1] in (self._width, self._width // 2)

    def _rope(self, turn: Turn | None, start: int, size: int) -> tuple[Tensor, Tensor] | None:
        if turn is None:
            return None
        pair = angles(turn, [self._scene.tensors[n] for n in (turn.cos, turn.sin)])
        return tuple(t.narrow(1, start if turn.joint else 0, size) for t in pair)


def _joined(a: Tensor, b: Tensor, whole: Tensor) -> bool:
    size = a.shape[1]
    return size + b.shape[1] == whole.shape[1] and same(a, whole[:, :size]) and same(b, whole[:, size:])


def _shares(given: Tensor, rows: Tensor) -> bool:
    """Whether two tensors are views of the same numbers."""
    at = [(t.untyped_storage().data_ptr(), t.storage_offset(), t.numel()) for t in (given, rows)]
    return at[0] == at[1]
