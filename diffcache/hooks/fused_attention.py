"""Self- and joint attention of the chosen tokens with all that comes between matrix products in one kernel.

Matrix product of the rows, kernel P (bias, norm and rotary positions; q packed, K and V to their places among those of
all tokens), torch's attention of the chosen queries over all keys, and the module's output projections. What a module's
parts are, and that this is what it computes, is found out by :mod:`.attention_lessons`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import project_epilogue
from ..kernels.few_rows import linear
from .attention_form import AttentionForm, Projection, Turn, weights_of
from .few_rows import FewRows
from .selection import Place, Selection

#: rotary tables as kernel P takes them, by the identities of what they were made from, which are held with them
Tables = dict[tuple[int, ...], tuple[Sequence[Tensor], Sequence[Tensor]]]


@dataclass(frozen=True)
class Span:
    """Where a segment stands in the sequence.

    Attributes:
        start, size: among the rows that are computed.
        first, length: among all rows.
        index: which rows of the segment are computed; None: all of them.
    """

    start: int
    size: int
    first: int
    length: int
    index: Tensor | None


class FusedAttention:
    """One call of an attention module in its parts.

    Args:
        form: of the module.
        places: where the tokens are in each argument, as in :class:`.token_passes.Lesson`.
        selection, count, packed: the tokens of the call, as for :meth:`.selection.Selection.take`.
        tables: what was made of rotary tables in this pass.
    """

    def __init__(
        self,
        form: AttentionForm,
        places: Sequence[Place | None],
        selection: Selection,
        count: int,
        packed: int = 0,
        tables: Tables | None = None,
    ) -> None:
        self._form, self._places, self._selection = form, places, selection
        self._count, self._packed = count, packed
        self._tables = {} if tables is None else tables

    def __call__(
        self, tensors: Sequence[Tensor], key: Tensor, value: Tensor, meet: Callable[[Tensor], Tensor]
    ) -> list[Tensor]:
        """The module's results for the chosen rows.

        Args:
            tensors: its arguments, with all rows, or those of the first ``count`` or ``packed`` tokens.
            key, value: ``[B, heads, length, width]`` of all rows; those of the chosen are renewed.
            meet: queries ``[B, heads, rows, width]`` -> the attention's result.
        """
        form, taken = self._form, {}
        for segment in form.segments:
            taken[segment.argument] = self._rows_of(tensors, segment.argument)
        spans = list(self._spans(taken))
        like = taken[form.segments[0].argument]
        rows = spans[-1].start + spans[-1].size
        query = torch.empty(len(like), rows, form.heads, form.width, dtype=key.dtype, device=key.device)
        begin = 0
        for projection in form.projections:
            mine = spans[begin : begin + len(projection.segments)]
            self._project(projection, mine, tensors, taken, query, (key.transpose(1, 2), value.transpose(1, 2)))
            begin += len(mine)
        mixed = meet(query.transpose(1, 2)).transpose(1, 2).flatten(2)
        return self._results(mixed, spans)

    # -- rows ------------------------------------------------------------------------------------------------------

    def _rows_of(self, tensors: Sequence[Tensor], number: int) -> Tensor:
        place = self._places[number]
        return tensors[number] if place is None else self._take(tensors[number], place)

    def _take(self, tensor: Tensor, place: Place) -> Tensor:
        return self._selection.take(tensor, place, self._count, self._packed)

    def _spans(self, taken: dict[int, Tensor]) -> Iterator[Span]:
        start = first = 0
        for segment in self._form.segments:
            place, size = self._places[segment.argument], taken[segment.argument].shape[1]
            length, index = size, None
            if place is not None:
                length, index = place.length, self._selection.rows(self._count, place.offset, place.length)
            yield Span(start, size, first, length, index)
            start, first = start + size, first + length

    # -- projections -----------------------------------------------------------------------------------------------

    def _project(
        self,
        projection: Projection,
        spans: list[Span],
        tensors: Sequence[Tensor],
        taken: dict[int, Tensor],
        query: Tensor,
        caches: tuple[Tensor, Tensor],
    ) -> None:
        """q, k and v of some segments: matrix products, then kernel P once for each segment."""
        given = [taken[segment.argument] for segment in projection.segments]
        raw, biases = self._products(projection, given[0] if len(given) == 1 else torch.cat(given, 1))
        norm = norm_of(self._form.module, projection)
        for segment, span in zip(projection.segments, spans, strict=True):
            part = [t.narrow(1, span.start - spans[0].start, span.size) for t in raw]
            held = [t.narrow(1, span.first, span.length) for t in caches]
            rope = {} if segment.turn is None else self._rope(segment.turn, span, tensors)
            project_epilogue(
                *part,
                *held,
                span.index,
                biases=biases,
                q_out=query.narrow(1, span.start, span.size),
                interleaved=self._form.interleaved,
                **norm,
                **rope,
            )

    def _products(self, projection: Projection, rows: Tensor) -> tuple[list[Tensor], tuple[Tensor | None, ...]]:
        """q, k and v ``[B, rows, heads, width]`` without the biases that kernel P is to add."""
        form = self._form
        heads = [form.heads, form.key_heads, form.key_heads]
        made = [product(form.module.get_submodule(name), rows) for name in projection.parts]
        if len(made) == 1:
            ((all_in_one, bias),) = made
            sizes = [count * form.width for count in heads]
            biases = (None,) * 3 if bias is None else bias.split(sizes)
            made = list(zip(all_in_one.split(sizes, -1), biases, strict=True))
        raw = [t.unflatten(-1, (count, form.width)) for (t, _), count in zip(made, heads, strict=True)]
        return raw, tuple(bias for _, bias in made)

    # -- rotary positions ------------------------------------------------------------------------------------------

    def _rope(self, turn: Turn, span: Span, tensors: Sequence[Tensor]) -> dict[str, Any]:
        """The angles of a segment's positions, of all of its rows where they are at hand."""
        place, table = self._places[turn.cos], tensors[turn.cos]
        full = place is None or table.shape[place.axis] == place.length
        if full:
            pair = self._whole_tables(turn, tensors)
        else:
            pair = angles(turn, [self._take(tensors[n], place) for n in (turn.cos, turn.sin)])
        first, size = (span.first, span.length) if full else (span.start, span.size)
        rope = tuple(t.narrow(1, first if turn.joint else 0, size) for t in pair)
        return {"rope": rope, "packed": not full}

    def _whole_tables(self, turn: Turn, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """As kernel P takes them; made once for all layers that get the very same."""
        pair = [tensors[n] for n in (turn.cos, turn.sin)]
        key = *map(id, pair), turn.axis
        if key not in self._tables:
            self._tables[key] = pair, angles(turn, pair)
        return self._tables[key][1]

    # -- results ---------------------------------------------------------------------------------------------------

    def _results(self, mixed: Tensor, spans: list[Span]) -> list[Tensor]:
        ends = [span.start for span in spans] + [mixed.shape[1]]
        made = []
        for way in self._form.ways:
            rows = mixed[:, ends[way.first] : ends[way.last]]
            with FewRows():
                for name in way.parts:
                    rows = self._form.module.get_submodule(name)(rows)
            made.append(rows)
        results = []
        for number, first, last in self._form.results:
            origin = ends[self._form.ways[number].first]
            results.append(made[number][:, ends[first] - origin : ends[last] - origin])
        return results


def product(part: nn.Module, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """A projection without its bias, and the bias; of a module that is no plain matrix product its result, and None."""
    plain = weights_of(part)
    return (part(rows), None) if plain is None else (linear(rows, plain[0]), plain[1])


def norm_of(module: nn.Module, projection: Projection) -> dict[str, Any]:
    """Kernel P's arguments for the norms of q and k."""
    if projection.norms is None:
        return {}
    q, k = (module.get_submodule(name) for name in projection.norms)
    return {
        "norm": projection.kind,
        "norm_weights": (weight(q), weight(k)),
        "norm_biases": (getattr(q, "bias", None), getattr(k, "bias", None)),
        "across_heads": projection.across,
        "eps": eps_of(q),
    }


def weight(norm: nn.Module) -> Tensor | None:
    return getattr(norm, "weight", None)


def eps_of(norm: nn.Module) -> float:
    """What a norm adds to the variance; torch's RMSNorm without a number takes that of its dtype."""
    eps = getattr(norm, "eps", None)
    return torch.finfo(torch.float32).eps if eps is None else float(eps)


def angles(turn: Turn, tables: Sequence[Tensor]) -> list[Tensor]:
    """Cosine and sine ``[B or 1, positions, width or width / 2]`` in a dtype of the kernels."""
    cos, sin = tables
    if cos.is_complex():
        cos, sin = torch.view_as_real(cos).unbind(-1)
    pair = []
    for table in (cos, sin):
        rows = table.movedim(turn.axis, -2).flatten(0, -3) if table.dim() > 2 else table[None]
        pair.append((rows.float() if rows.dtype == torch.float64 else rows).contiguous())
    return pair
