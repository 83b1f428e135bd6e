"""A pass in which every unit is computed for all tokens, so that what the ones left out would have changed is known.

What counts as computed is mixed with what is held, ``out_i = m_i fresh_i + (1 - m_i) held_i``, and rows of keys and
values likewise (DiffSparse's student); gradients flow through both. Without anything held it is the dense pass, shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .attending import Attending, Attention
from .outputs import flatten
from .selection import Place, Selection
from .streams import named_tensors
from .token_passes import Call, Forward, Lesson, Memory, TokenPass

#: call of a unit, what of it (result, key or value), and which
Value = tuple[Call, str, int]


class BlendPass(TokenPass):
    """One blended forward pass; run it with gradients enabled.

    Args:
        lessons: what was learned of the model, by call.
        start: the block at which the tokens enter.
        held: values of earlier steps; empty for a dense pass.
        select: called once with the hidden stream where it enters.
        count: (name, layer, kind) -> how many tokens count as computed.

    Attributes:
        stream: the hidden stream where the tokens enter.
        mixed: values as the model went on with them; with gradients.
        fresh: values as they were computed; detached.
        places: where the tokens are in each.
    """

    def __init__(
        self,
        lessons: Mapping[Call, Lesson],
        start: nn.Module,
        held: Mapping[Value, Tensor],
        select: Callable[[Tensor], Selection],
        count: Callable[[str, int, str], int],
    ) -> None:
        memories: dict[Call, Memory] = {}
        super().__init__(memories, dict(lessons))
        self._start, self._held, self._select, self._count = start, held, select, count
        self.selection: Selection | None = None
        self.stream: Tensor | None = None
        self.mixed: dict[Value, Tensor] = {}
        self.fresh: dict[Value, Tensor] = {}
        self.places: dict[Value, Place] = {}

    def entry(self, block: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
        if block is self._start and self.selection is None:
            self.stream = next(iter(named_tensors(block, args, kwargs).values())).detach()
            with torch.no_grad():
                self.selection = self._select(self.stream)
        return args, kwargs

    def unit(self, call: Call, layer: int, kind: str, feeds: bool, forward: Forward, args: Any, kwargs: Any) -> Any:
        lesson = self.lessons[call]
        if self.selection is None or lesson.whole is not None or feeds:
            return forward(*args, **kwargs)
        count = self._count(call[0], layer, kind)

        def attend(number: int, attention: Attention) -> Tensor:
            place = lesson.keys[number]
            if place is None:
                return attention.run()
            key = self._mix((call, "key", number), attention.key, place, count)
            value = self._mix((call, "value", number), attention.value, place, count)
            return attention.over(key, value, attention.mask).run()

        with Attending(attend):
            tensors, template = flatten(forward(*args, **kwargs))
        places = [_place_in(lesson, tensor) for tensor in tensors]
        return template.rebuild(
            [
                tensor if place is None else self._mix((call, "result", index), tensor, place, count)
                for index, (tensor, place) in enumerate(zip(tensors, places, strict=True))
            ]
        )

    def _mix(self, name: Value, fresh: Tensor, place: Place, count: int) -> Tensor:
        mixed = fresh
        if name in self._held and count < self.selection.tokens:
            computed = torch.zeros(place.length, dtype=torch.bool, device=fresh.device)
            computed[self.selection.rows(count, place.offset, place.length)] = True
            shape = [place.length if axis == place.axis else 1 for axis in range(fresh.dim())]
            mixed = torch.where(computed.view(shape), fresh, self._held[name])
        if not mixed.requires_grad:
            mixed = mixed.detach().requires_grad_()
        self.mixed[name], self.fresh[name], self.places[name] = mixed, fresh.detach(), place
        return mixed

    # -- what it shows ---------------------------------------------------------------------------------------------

    def gains(
        self, grads: Mapping[Value, Tensor | None], before: Mapping[Value, Tensor], results: bool
    ) -> dict[str, Tensor]:
        """First-order change of the loss by each token of each unit, had it been left as it was before.

        ``u_i = <dL/d out_i, fresh_i - before_i>``, summed over a unit's results, or over its keys and values.

        Args:
            grads: of the loss, by value; None where it does not depend on it.
            before: what would have been kept.
            results: which of the two.

        Returns:
            Unit name -> ``[batch, tokens]``; negative where computing helps.
        """
        found: dict[str, Tensor] = {}
        for name, grad in grads.items():
            if grad is None or name not in before or (name[1] == "result") != results:
                continue
            place, unit = self.places[name], name[0][0]
            change = grad * (self.fresh[name] - before[name])
            axes = [axis for axis in range(1, change.dim()) if axis != place.axis]
            each = change.sum(axes).narrow(1, place.offset, self.selection.tokens)
            found[unit] = found[unit] + each if unit in found else each
        return found


def _place_in(lesson: Lesson, tensor: Tensor) -> Place | None:
    """Where the tokens are in a result: where they are in the arguments, in one of the same length."""
    for place in (*lesson.inputs, *lesson.keys):
        if place is not None and place.axis < tensor.dim() and tensor.shape[place.axis] == place.length:
            return place
    return None
