"""Finding the module calls of a denoiser that return the same at every step, by watching one of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from diffusers.hooks import HookRegistry
from torch import Tensor, nn

from .attach import HOOK_NAME
from .compiled import is_compiled
from .flow import Flow, Frame, leaves, storage_of
from .given import is_plain
from .keeping import Kept, kept_tensors
from .outputs import flatten

EXACT_NAME = f"{HOOK_NAME}_exact"
REPEAT_NAME = f"{HOOK_NAME}_repeat"
#: hooks that only move or cast weights, or answer as the module would: a call that is left out needs none of that
_CARRIERS = frozenset({"group_offloading", "layerwise_casting", "layer_execution_tracker", EXACT_NAME, REPEAT_NAME})
#: hooks of ours that pass results on as they are wherever the whole denoiser runs, and leave out none but whole blocks
_WATCHERS = frozenset(f"{HOOK_NAME}_{part}" for part in ("block", "exit", "inside"))

#: least FLOPs for each element held: a projection from 8 features has 16
LEAST_FLOPS = 16
#: least operations of a module without weights (rotary tables)
LEAST_OPERATIONS = 4


@dataclass(eq=False)
class Slot:
    """A module whose call can be answered from memory.

    Attributes:
        name: dotted name in the denoiser.
        flops: of one call: matrix products, convolutions, attention.
        copies: whether the model writes to the result afterwards, so that it must get a copy.
        proved: whether a second call, with another sample and timestep, returned the same bits.
    """

    name: str
    module: nn.Module
    flops: int
    copies: bool = False
    proved: bool = False


@dataclass(eq=False)
class Plan:
    """What may be answered from memory for calls of one form.

    Attributes:
        slots: by module.
        state: what the model keeps beside its weights, where the answers were made from it.
        portable: whether it holds for another conditioning of the same form; not where the model looked at values.
        flops: of the whole watched call.
    """

    slots: dict[nn.Module, Slot]
    state: list[Kept]
    portable: bool
    flops: int

    @property
    def intact(self) -> bool:
        """Whether buffers and other tensors of the model are those that were seen."""
        return all(kept.intact for kept in self.state)


@dataclass
class Found:
    """A call that could be left out, and what it returned."""

    slot: Slot
    result: Any
    ended: int


@dataclass
class _Call(Frame):
    """A module call under way."""

    module: nn.Module | None = None
    flops: int = 0
    found: int = 0
    given: int = 0


class Watch:
    """One watched forward pass.

    Args:
        model: the denoiser.
        still: arguments that stay the same for a trajectory.
        limits: see :func:`bounds`.
    """

    def __init__(self, model: nn.Module, still: list[Tensor], limits: Bounds) -> None:
        self._model, self._closed, self._foreign = model, limits.closed, limits.foreign
        self._state = list(kept_tensors(model))
        weights = [p for p in model.parameters() if not p.is_meta]
        self.flow = Flow([*weights, *(kept.tensor for kept in self._state), *still])
        self._names = {module: name for name, module in model.named_modules()}
        self._calls: Counter[nn.Module] = Counter()
        self._before: dict[nn.Module, Any] = {}
        self.found: list[Found] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within: one forward pass of the model."""
        handles = []
        for module in self._names:
            if module is not self._model:
                handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
                handles.append(module.register_forward_hook(self._leave, with_kwargs=True))
        self._before = {module: attributes(module) for module in self._names}
        try:
            with self.flow, self.flow.reads:
                yield
        finally:
            self.flow.frames.clear()
            for handle in handles:
                handle.remove()

    def plan(self, portable: bool) -> tuple[Plan, dict[nn.Module, Any]]:
        """What was found: the plan, and the results that are still as they were returned."""
        found = [f for f in self.found if self._calls[f.slot.module] == 1]
        results = {}
        for one in found:
            tensors, _ = flatten(one.result)
            one.slot.copies = any(self.flow.written(t) > one.ended for t in tensors)
            if not one.slot.copies:
                results[one.slot.module] = one.result
        used = {id(kept.tensor) for kept in self._state if storage_of(kept.tensor) in self.flow.used}
        state = [kept for kept in kept_tensors(self._model) if id(kept.tensor) in used] if used and found else []
        slots = {f.slot.module: f.slot for f in found}
        return Plan(slots, state, portable and not self.flow.heard, self.flow.flops), results

    # -- calls -----------------------------------------------------------------------------------------------------

    def _enter(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        self._calls[module] += 1
        given = list(leaves((args, kwargs)))
        call = _Call(self.flow.clock, not all(isinstance(v, Tensor) or is_plain(v) for v in given))
        call.module, call.flops, call.found, call.given = module, self.flow.flops, len(self.found), len(given)
        self.flow.frames.append(call)

    def _leave(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any], result: Any) -> None:
        while self.flow.frames:
            call = self.flow.frames.pop()
            if call.module is module:  # calls above it ended in an exception that the model caught
                break
        else:
            return
        if module in self._foreign:
            self.flow.move(result)
        same = len(list(leaves((args, kwargs)))) == call.given
        if call.spoilt or not same or module in self._closed or not self._repeats(call, result):
            return
        if all(attributes(part) == self._before.get(part) for part in module.modules()):
            slot = Slot(self._names[module], module, self.flow.flops - call.flops)
            del self.found[call.found :]  # what is inside need not be held as well
            self.found.append(Found(slot, result, self.flow.clock))

    def _repeats(self, call: _Call, result: Any) -> bool:
        """Whether the result is made in the call, from nothing that moves, and worth its memory."""
        parts = list(leaves(result))
        tensors = [part for part in parts if isinstance(part, Tensor)]
        if not tensors or not all(isinstance(part, Tensor) or is_plain(part) for part in parts):
            return False
        if not all(self.flow.is_still(t) and self.flow.born(t) > call.begun for t in tensors):
            return False
        flops, operations = self.flow.flops - call.flops, self.flow.clock - call.begun
        weightless = next(call.module.parameters(), None) is None
        return flops >= LEAST_FLOPS * sum(t.numel() for t in tensors) or (weightless and operations >= LEAST_OPERATIONS)


def attributes(module: nn.Module) -> tuple[Any, ...]:
    """What a call could change on a module: identities, and lengths of what can grow."""
    names, values = zip(*module._buffers.items(), *vars(module).items(), strict=True)
    return names, list(map(id, values)), [len(value) for value in values if isinstance(value, (list, dict, set))]


@dataclass(frozen=True)
class Bounds:
    """What other hooks forbid.

    Attributes:
        closed: modules that must run, because a hook stands on them or somewhere inside.
        foreign: modules whose results somebody may change: whatever comes out of them moves.
    """

    closed: frozenset[nn.Module]
    foreign: frozenset[nn.Module]


def bounds(model: nn.Module) -> Bounds | None:
    """What other hooks forbid; None where parts are compiled, for those cannot be looked into."""
    if any(map(is_compiled, model.modules())):
        return None
    closed: set[nn.Module] = set()
    for child in model.children():
        _close(child, closed)
    return Bounds(frozenset(closed), frozenset(module for module in closed if _changed_by_others(module)))


def _close(module: nn.Module, closed: set[nn.Module]) -> bool:
    """Add what must run; True if the module around this one must run for its sake."""
    inside = [_close(child, closed) for child in module.children()]
    hooked = any(inside) or _changed_by_others(module) or any(map(_stays, _registered(module).items()))
    if hooked:
        closed.add(module)
    return hooked


def _changed_by_others(module: nn.Module) -> bool:
    """Whether the module's results may be others than those of its forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks) or any(
        name not in _CARRIERS and name not in _WATCHERS for name in _registered(module)
    )


def _registered(module: nn.Module) -> dict[str, Any]:
    registry: HookRegistry | None = getattr(module, "_diffusers_hook", None)
    return {} if registry is None else registry.hooks


def _stays(named: tuple[str, Any]) -> bool:
    """Group offloading with a stream loads the next module's weights while one runs: none may be left out."""
    name, hook = named
    return name not in _CARRIERS or getattr(getattr(hook, "group", None), "stream", None) is not None
