"""Whether an attention can be run part by part, with kernel P between its products: found out as its rows are proved.

The module runs once on some rows, and its parts are watched. Nothing of its class is known: what a projection is, which
norm and which rotary form stand behind it, and what becomes of the attention's result is read off the tensors that its
parts get and return. Kernel P, given what the projections returned, has to give the queries and keys that arrive at
torch's attention, and the parts one by one the module's own result.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from .again import close_to
from .attach import foreign_hooks
from .attention_form import AttentionForm, Segment, Way
from .part_calls import Scene, same
from .projection_lessons import ProjectionLessons
from .selection import Unfit


def form_of(scene: Scene) -> AttentionForm:
    """How an attention module comes to its results.

    Raises:
        Unfit: in a way that is not known here; the message says what is not.
    """
    attention = scene.watching.attention
    if attention is None:
        raise Unfit("it attends more than once")
    query, key, value = attention.query, attention.key, attention.value
    if query.dim() != 4 or value.shape != key.shape or query.shape[2:] != key.shape[2:]:
        raise Unfit("it is no self-attention of heads")
    if query.dtype == torch.float64:
        raise Unfit("kernels compute in fp32, its rows are fp64")
    if attention.rest.get("dropout_p"):
        raise Unfit("it drops out at random")
    if foreign_hooks(scene.module):
        raise Unfit("it has other hooks")
    projections, interleaved = ProjectionLessons(scene).found()
    ways, results = _ways(scene, [segment for p in projections for segment in p.segments])
    return AttentionForm(
        scene.name,
        scene.module,
        getattr(scene.module, "processor", None),
        scene.template,
        projections,
        query.shape[1],
        key.shape[1],
        query.shape[3],
        interleaved,
        attention.rest,
        ways,
        results,
    )


def prove(found: list[Tensor], wanted: list[Tensor]) -> None:
    """What the parts give one by one is what the module gave.

    Raises:
        Unfit: it is not.
    """
    if [t.shape for t in found] != [t.shape for t in wanted]:
        raise Unfit("its parts give results of other shapes")
    errors = [(a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30) for a, b in zip(found, wanted)]
    if not torch.stack(errors).amax().item() <= close_to(wanted[0].dtype):
        raise Unfit("its parts do not give its result")


def _ways(scene: Scene, segments: list[Segment]) -> tuple[tuple[Way, ...], tuple[tuple[int, int, int], ...]]:
    """What becomes of the attention's result, and which rows of what are returned."""
    mixed = scene.watching.mixed.transpose(1, 2).flatten(2)
    ends = [0]
    for segment in segments:
        ends.append(ends[-1] + scene.tensors[segment.argument].shape[1])
    ranges = sorted(combinations(range(len(ends)), 2), key=lambda r: r[0] - r[1])  # the longest first
    made = [(Way(first, last, ()), mixed[:, ends[first] : ends[last]]) for first, last in ranges]
    for call in scene.watching.calls:
        way = next((way for way, rows in reversed(made) if call.after and same(rows, call.given)), None)
        if way is not None:
            made.append((Way(way.first, way.last, (*way.parts, call.name)), call.result))
    ways, results = [], []
    for result in scene.results:
        found = next(
            (
                (way, first, last)
                for way, rows in reversed(made)
                for first, last in ranges
                if way.first <= first and last <= way.last
                if same(rows[:, ends[first] - ends[way.first] : ends[last] - ends[way.first]], result)
            ),
            None,
        )
        if found is None:
            raise Unfit("its result is more than a product of its attention's")
        if found[0] not in ways:
            ways.append(found[0])
        results.append((ways.index(found[0]), *found[1:]))
    return tuple(ways), tuple(results)
