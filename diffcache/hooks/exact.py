"""Exact savings: what a denoiser computes from prompt, positions and shapes alone is computed once a trajectory.

One forward pass is watched operation by operation (:mod:`.flow`). A module call whose results were made from things
that stay the same - text projections, keys and values of cross-attention, refiners that do not see the timestep, rotary
tables - returns its first results from then on, the very same tensors. Nothing is taken on trust:

* an answer is given only while all that it depends on is what it was: every argument that does not move by identity and
  version, numbers and flags by value, shapes, torch's modes, weights, buffers;
* the next call after the watched one computes everything again, with another sample and timestep, and what does not
  come out bit for bit the same is never answered;
* an answer that somebody has written to is dropped and computed again.

In doubt a module computes: in training, with gradients, when compiled, where it draws random numbers, writes to what it
was given, takes an object that may change, holds other people's hooks, or runs more than once in a pass.

What one pass computes more than once is another matter: see :mod:`.repeats`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from diffusers.hooks import ModelHook
from torch import nn

from .answers import Answer, ExactMemory
from .attach import attach, detach
from .flow import tensors_in
from .given import Given
from .keeping import Parts
from .watch import EXACT_NAME, Bounds, Plan, Watch, bounds

Run = Callable[[], Any]

#: least share of a call's FLOPs that all answers together must save: below, asking costs more than it saves
LEAST_SHARE = 0.001
#: least parameters of a denoiser that is watched unasked
LEAST_PARAMETERS = 1_000_000
#: below these it is watched from its second trajectory on. A watched call takes some 50 ms more than a plain one, on
#: any model and device: one with calls of 10 ms does not win that back in a generation, but in those that follow
SMALL_PARAMETERS = 50_000_000
#: passes that are watched in one trajectory at most: each one learns of another argument that moves
_MOST_WATCHES = 3


def pays(model: nn.Module, wanted: bool | None) -> bool:
    """Whether exact savings are worth looking for; ``wanted`` is what the user says, None where nothing."""
    return _size(model) >= LEAST_PARAMETERS if wanted is None else wanted


def patience(model: nn.Module, wanted: bool | None) -> int:
    """Trajectories that pass before the first call is watched."""
    return int(wanted is None and _size(model) < SMALL_PARAMETERS)


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


class ExactSavings:
    """The exact savings of one denoiser.

    Args:
        model: the denoiser.
        moving: arguments that the sampler moves (sample and timestep); others that move are found out.
        conditioning: arguments that the caller has proved to be the same within a branch.
        patience: trajectories that pass before anything is watched.
    """

    def __init__(self, model: nn.Module, moving: Sequence[str], conditioning: Sequence[str], patience: int = 0) -> None:
        self._model, self._conditioning = model, frozenset(conditioning)
        self._patience, self._begun = patience, 0
        self._moving = set(moving)
        self._plans: dict[Any, Plan] = {}
        self._proved: set[nn.Module] = set()
        self._hooks: dict[nn.Module, _AnswerHook] = {}
        self._weights: Any = None
        self._step: Any = None
        self._last: Plan | None = None
        self._limits: Bounds | None = None
        self._parts: Parts | None = None
        self._edition = 0
        #: whose answers hold in the pass under way
        self.now: ExactMemory | None = None

    @property
    def answered(self) -> list[str]:
        """Names of the modules that the last plan answers from memory."""
        return [] if self._last is None else [slot.name for slot in self._last.slots.values() if slot.proved]

    @property
    def share(self) -> float:
        """Share of a call's FLOPs that the last plan answers from memory."""
        if self._last is None or not self._last.flops:
            return 0.0
        return sum(slot.flops for slot in self._last.slots.values() if slot.proved) / self._last.flops

    def turn(
        self, memory: ExactMemory, inputs: Mapping[str, Any], weights: Any, forward: Callable[..., Any], full: bool
    ) -> Callable[..., Any]:
        """``forward`` with answers from ``memory``, for one denoiser call.

        Args:
            memory: of the call's branch.
            inputs: the call's arguments by name.
            weights: fingerprint of the model's weights, taken once a step; another one drops every answer.
            forward: the denoiser's; it may run more than once.
            full: whether the whole denoiser runs, so that it can be watched.
        """
        memory.idle = memory.idle or self._begun <= self._patience
        if memory.idle:
            return forward
        memory.turn += 1

        def answered(*args: Any, **kwargs: Any) -> Any:
            return self._run(memory, inputs, weights, partial(forward, *args, **kwargs), full)

        answered.bare = forward  # for calls with other arguments: some of the samples
        return answered

    # -- whether the answers hold ----------------------------------------------------------------------------------

    def begin(self, compiled: bool = False) -> None:
        """A trajectory begins: other people's hooks may have come or gone since the last one.

        Args:
            compiled: what is called is a compiled wrapper of the model.
        """
        self._begun += 1
        self._look_around(compiled)

    def _look_around(self, compiled: bool = False) -> None:
        limits = None if compiled else bounds(self._model)
        if limits != self._limits or self._parts is None or not self._parts.same:
            self._drop_plans()
        self._limits, self._parts = limits, Parts(self._model)

    def _prepare(self, memory: ExactMemory, inputs: Mapping[str, Any], weights: Any) -> bool:
        """Whether answers may be given or made in this call; those that no longer hold are dropped."""
        if weights is not self._step:
            self._step = weights
            self._look(weights)
        if memory.edition != self._edition:
            memory.forget()
            memory.edition = self._edition
        if self._limits is None or self._learns(inputs):
            memory.forget()
            return False
        self._recognise(memory, inputs)
        memory.settle()
        return True

    def _look(self, weights: Any) -> None:
        """A step begins: the model is looked at once for all branches."""
        if self._parts is None or not self._parts.same:
            self._look_around()
        if weights != self._weights:
            self._weights = weights
            self._drop_plans()

    def _drop_plans(self) -> None:
        self._plans.clear()
        self._proved.clear()
        self._edition += 1
        self.uninstall()

    def _learns(self, inputs: Mapping[str, Any]) -> bool:
        """Whether the model is in training, or somebody may want gradients."""
        if self._model.training or torch.compiler.is_compiling():
            return True
        if not torch.is_grad_enabled():
            return False
        return any(t.requires_grad for t in (*tensors_in(inputs), *self._model.parameters()))

    def _recognise(self, memory: ExactMemory, inputs: Mapping[str, Any]) -> None:
        """Keep the answers if the call is like the last one of its branch, else drop them."""
        now = Given.of(inputs, self._moving)
        changed = memory.given.changed(now) if memory.given is not None else None
        if changed is not None and changed <= self._conditioning:
            memory.given = now
        else:
            memory.forget()
            moved = (changed or set()) | {name for name, _, count in now.still if count < 0}
            self._moving |= moved - self._conditioning
            memory.given = Given.of(inputs, self._moving) if moved else now
        if memory.plan is None:
            memory.plan = self._plans.get(memory.given.shape)
        if memory.plan is not None and not memory.plan.intact:
            self._plans.pop(memory.given.shape, None)
            memory.plan, memory.answers = None, {}

    # -- running ---------------------------------------------------------------------------------------------------

    def _run(self, memory: ExactMemory, inputs: Mapping[str, Any], weights: Any, run: Run, full: bool) -> Any:
        memory.now += 1
        if memory.prepared != memory.turn:  # a second pass of one call has the same arguments
            memory.prepared = memory.turn
            memory.usable = self._prepare(memory, inputs, weights)
        if not memory.usable or memory.given is None:
            return run()
        if memory.plan is not None:
            self._last = memory.plan
            memory.idle = not memory.plan.slots
            return self._answer(memory, run)
        if not full or memory.watches >= _MOST_WATCHES:
            return run()
        return self._watch(memory, run)

    def _watch(self, memory: ExactMemory, run: Run) -> Any:
        memory.watches += 1
        watch = Watch(self._model, [t for _, t, _ in memory.given.still], self._limits)
        with watch.watching():
            result = run()
        plan, results = watch.plan(memory.given.portable)
        if sum(slot.flops for slot in plan.slots.values()) < LEAST_SHARE * plan.flops:
            plan.slots.clear()
        memory.plan = self._last = plan
        if plan.portable or (memory.given.portable and not plan.slots):
            self._plans[memory.given.shape] = plan
        for module, slot in plan.slots.items():
            slot.proved = module in self._proved
            if module in results:
                memory.keep(slot, results[module])
            if module not in self._hooks:
                self._hooks[module] = _AnswerHook(self)
                attach(module, self._hooks[module], EXACT_NAME)
        return result

    def _answer(self, memory: ExactMemory, run: Run) -> Any:
        before, self.now = self.now, memory
        try:
            result = run()
        finally:
            self.now = before
        memory.settle()
        self._proved.update(m for m, slot in memory.plan.slots.items() if slot.proved)
        return result

    def uninstall(self) -> None:
        """Take the hooks off."""
        for module in self._hooks:
            detach(module, EXACT_NAME)
        self._hooks.clear()


class _AnswerHook(ModelHook):
    """On a module that a plan names: answers in its place where an answer holds."""

    def __init__(self, savings: ExactSavings) -> None:
        super().__init__()
        self.savings = savings

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        now = self.savings.now
        if now is None:
            return self.fn_ref.original_forward(*args, **kwargs)
        answer = now.answers.get(module)
        if answer is not None and answer.slot.proved and answer.last != now.now and answer.intact():
            answer.last = now.now
            now.calls += 1
            now.flops += answer.slot.flops
            return answer.give()
        result = self.fn_ref.original_forward(*args, **kwargs)
        self._learn(now, module, answer, result)
        return result

    def _learn(self, now: ExactMemory, module: nn.Module, answer: Answer | None, result: Any) -> None:
        slot = now.plan.slots.get(module)
        if slot is None or (answer is not None and answer.last == now.now):
            return  # a second call in one pass is none that was watched
        if answer is None or not answer.intact():
            now.keep(slot, result)
        else:
            answer.last = now.now
            if not slot.proved:
                now.doubt(answer, result)
