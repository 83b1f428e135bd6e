"""A unit inside a compiled graph: its values leave the graph, or come into it, through a port.

Python inside a graph runs once, when the graph is traced: what a hook reads becomes a guard, and what changes from step
to step another graph. A port therefore shows the tracer nothing but a mode and tensors, alike for every block and
every step: one graph takes values, one gives them. Whatever else there is to know of a unit (what its results look
like, which inputs they continue) was learned in a pass that ran as it is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .outputs import tensors_in_order
from .streams import Passage, named_tensors


class Port:
    """What one hook shows to a graph.

    Attributes:
        takes: whether the unit computes and its values are wanted.
        given: of each of the unit's calls in a pass its stored values, newest first; None where it computes.
        weights: of the stored values, shape ``[depth]``; None where the newest one is handed out as it is.
        passages: of each call, what its result looks like.
        taken: the values of each call of the pass that has run.
        count: calls in the pass under way.
    """

    def __init__(self) -> None:
        self.passages: Sequence[Passage] = ()
        self.close()

    def close(self) -> None:
        """Nothing is wanted, nothing given, no tensor held."""
        self.takes, self.count = False, 0
        self.given: Sequence[Sequence[Sequence[Tensor]]] | None = None
        self.weights: Tensor | None = None
        self.taken: list[list[Tensor]] = []

    def take(self, passages: Sequence[Passage]) -> None:
        """The coming pass computes the unit."""
        self.close()
        self.takes, self.passages = True, passages

    def give(
        self, passages: Sequence[Passage], given: Sequence[Sequence[Sequence[Tensor]]], weights: Tensor | None
    ) -> None:
        """The coming pass gets the unit's values from what is stored."""
        self.close()
        self.passages, self.given, self.weights = passages, given, weights

    # -- inside the graph ------------------------------------------------------------------------------------------

    def run(self, module: nn.Module, forward: Any, args: Any, kwargs: Mapping[str, Any], residual: bool) -> Any:
        """The unit's call. Traced: no step, no name, no address may be read here."""
        if self.given is None and not self.takes:
            return forward(*args, **kwargs)  # a pass that keeps nothing: a count would be another graph at each call
        index, self.count = self.count, self.count + 1
        streams = named_tensors(module, args, kwargs) if residual else {}
        if self.given is not None:
            passage = self.passages[index]
            values = _blend(self.given[index], self.weights)
            return passage.template.rebuild(passage.onto(streams, values))
        result = forward(*args, **kwargs)
        results = tensors_in_order(result)
        self.taken.append(self.passages[index].added(streams, results) if residual else results)
        return result


def _blend(stored: Sequence[Sequence[Tensor]], weights: Tensor | None) -> list[Tensor]:
    """``sum_j weights[j] * stored[j]``, in fp32 and rounded once."""
    if weights is None:
        return list(stored[0])
    return [_weighted(parts, weights) for parts in zip(*stored, strict=True)]


def _weighted(parts: Sequence[Tensor], weights: Tensor) -> Tensor:
    total = parts[0].float() * weights[0]
    for index in range(1, len(parts)):
        total = total + parts[index].float() * weights[index]
    return total.to(parts[0].dtype)


class FeederPort:
    """The same for a feeder: in a pass that gives its unit's values, it returns placeholders.

    Attributes:
        idle: whether its unit's values are given.
        like: a tensor of the unit, for dtype and device.
        results: what each call of it returns.
    """

    def __init__(self) -> None:
        self.close()

    def close(self) -> None:
        self.idle, self.count = False, 0
        self.like: Tensor | None = None
        self.results: Sequence[Passage] = ()

    def rest(self, like: Tensor, results: Sequence[Passage]) -> None:
        """The coming pass does not need the feeder."""
        self.close()
        self.idle, self.like, self.results = True, like, results

    def run(self, forward: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        if not self.idle:
            return forward(*args, **kwargs)
        index, self.count = self.count, self.count + 1
        known = self.results[index]
        return known.template.rebuild([placeholder(self.like, shape) for shape in known.shapes])


def placeholder(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Some tensor of a shape, without memory of its own: one number of ``value`` everywhere."""
    return value[(0,) * value.dim()].expand(shape) if value.numel() else value.new_zeros(shape)


#: whether the code that asks runs once, for a graph
traced = torch.compiler.is_compiling
