"""A body with a gate: some of it runs at every step, and what it shows decides about the rest.

The gate lies behind the first blocks (signal ``first``: what they added), or inside the first block at its attention's
input (signal ``modulated``). A body may also end before the last blocks, which then run at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from diffusers.hooks import ModelHook
from torch import Tensor, nn

from ..errors import ConfigError, UnsupportedModelError
from .attach import HOOK_NAME, attach, detach
from .body import BodySite, Run
from .gradients import detached
from .modules import first_attention
from .passes import Capturing, Exploring, Forward, Replaying
from .plans import Plan, propose
from .streams import Visit, named_tensors

_INSIDE_NAME = f"{HOOK_NAME}_inside"

#: the signal's tensor -> residuals to replay, or None to compute
Decide = Callable[[Tensor], list[Tensor] | None]

PassOn = Callable[[Capturing | Replaying], None]


class GatedBody(BodySite):
    """The hooks of a body with a gate.

    Args:
        block_lists: the denoiser's block lists.
        model: the denoiser.
        first: blocks before the gate.
        last: blocks behind the body.
        inside: whether the gate lies inside the first block; ``first`` is 0 then.
    """

    def __init__(
        self, block_lists: Mapping[str, nn.ModuleList], model: nn.Module, first: int, last: int, inside: bool
    ) -> None:
        super().__init__(block_lists, model)
        if first + last >= len(self.blocks):
            raise ConfigError(
                f"first: {first} is out of range, first + last must be < {len(self.blocks)}, "
                f"the number of blocks of {type(model).__name__}"
            )
        self.first, self.last, self.inside = first, last, inside
        found = [first_attention(blocks[0]) for blocks in block_lists.values()] if inside else []
        self._attentions = [module for module in found if module is not None]
        if inside and not self._attentions:
            raise UnsupportedModelError(f"{type(model).__name__}: no block has an attention to listen to")
        #: what the gate heard at the last step that ran in full
        self.heard: Tensor | None = None

    # -- running the model -----------------------------------------------------------------------------------------

    def compute(self, run: Run) -> tuple[Any, list[Tensor] | None]:
        if self.plan is None:
            return self._explore(run)
        result, residuals, _ = self.decide(run, lambda heard: None)
        return result, residuals

    def decide(self, run: Run, decide: Decide) -> tuple[Any, list[Tensor] | None, bool]:
        """Run up to the gate and go on as ``decide`` says: the result, residuals, and whether it was a replay."""
        gating = Gating(self.plan, self._copies, self.inside, decide, self._pass_on)
        result = self._under(gating, run)
        self.heard = gating.heard
        if gating.replaying:
            return result, None, True
        return result, self._taken(gating.capturing), False

    def _pass_on(self, now: Capturing | Replaying) -> None:
        """The gate is behind us: the blocks that follow need not ask it."""
        self.now = now

    def look(self, run: Run) -> tuple[Any, list[Tensor] | None, Tensor | None]:
        """Run some samples in full and change nothing here: the result, residuals, and what the gate heard."""
        gating = Gating(self.plan, self._copies, self.inside, lambda heard: None, self._pass_on)
        result = self._under(gating, run)
        with torch.no_grad():
            return result, gating.capturing.residuals(), gating.heard

    # -- finding the plan ------------------------------------------------------------------------------------------

    def _explorer(self) -> Exploring:
        return _Narrowing(self.model, self.blocks)

    def _proposals(self, explorer: _Narrowing) -> Iterator[tuple[Plan, list[Tensor]]]:
        explorer.leave_out(self.last)
        for plan, residuals in propose(explorer):
            moved = explorer.begin_later(plan, residuals, self.first)
            self.heard = None if moved is None else explorer.signal(moved[0], self.inside)
            if moved is not None and (self.inside or self.heard is not None):
                yield moved

    # -- hooks -----------------------------------------------------------------------------------------------------

    def install(self) -> None:
        super().install()
        for module in self._attentions:
            attach(module, _InsideHook(self), _INSIDE_NAME)

    def uninstall(self) -> None:
        for module in self._attentions:
            detach(module, _INSIDE_NAME)
        super().uninstall()


class Gating:
    """In full up to the gate, then captured or replayed.

    Args:
        plan: begins at the gate.
        copies: see :class:`Capturing`.
        inside: whether the gate is inside the plan's first block.
        decide: called at the gate.
        pass_on: called behind it, with what runs from there on.

    Attributes:
        looks_at: None, which is every block.
        replaying: whether the gate was passed with a prediction.
    """

    looks_at: tuple[nn.Module, ...] | None = None

    def __init__(self, plan: Plan, copies: bool, inside: bool, decide: Decide, pass_on: PassOn) -> None:
        self.plan, self._copies, self._inside, self._decide, self._pass_on = plan, copies, inside, decide, pass_on
        self.capturing = Capturing(plan, copies)
        self._now: Capturing | Replaying = self.capturing
        self.heard: Tensor | None = None
        self.replaying = False
        self._running: nn.Module | None = None
        self._recent: list[dict[str, Tensor]] = []  # what the last blocks before the gate received

    def block(self, block: nn.Module, forward: Forward, args: Any, kwargs: Any) -> Any:
        if self._inside:
            return self._block_inside(block, forward, args, kwargs)
        if self.heard is None:
            self._approach(block, args, kwargs)
        return self._now.block(block, forward, args, kwargs)

    def _approach(self, block: nn.Module, args: Any, kwargs: Any) -> None:
        streams, start = named_tensors(block, args, kwargs), self.plan.start
        self._recent = [*self._recent, streams][-self.plan.before - 1 :]
        if block is not start:
            return
        heard = detached(_added, streams, self._recent[0])
        self._recent = []
        if heard is not None:
            self._pass(heard)
        now = self._now
        if now.first is None and now is self.capturing:
            now.note(streams, self._copies)  # never traced
        elif now.first is None:
            now.begin(streams)

    def _block_inside(self, block: nn.Module, forward: Forward, args: Any, kwargs: Any) -> Any:
        self._running = block
        try:
            return self._now.block(block, forward, args, kwargs)
        except _Leave:
            return self._now.block(block, forward, args, kwargs)

    def inside(self, value: Tensor) -> None:
        # lists that run before the body (text refiners) have attentions as well
        if self._inside and self.heard is None and self._running is self.plan.start:
            self._pass(value.detach().clone())
            if self.replaying:
                raise _Leave

    def _pass(self, heard: Tensor) -> None:
        self.heard = heard
        residuals = self._decide(heard)
        if residuals is not None:
            self._now, self.replaying = Replaying(self.plan, residuals), True
        self._pass_on(self._now)

    def exit(self, index: int, value: Tensor) -> Tensor:
        return self._now.exit(index, value)


class _Leave(Exception):
    """From an attention to its block: the rest of the block is not needed."""


class _Narrowing(Exploring):
    """Watches a step and remembers every block's call, so that a plan can begin later and end earlier."""

    def __init__(self, model: nn.Module, blocks: Mapping[nn.Module, str]) -> None:
        super().__init__(model, blocks)
        self._visits: list[Visit] = []
        self._heard: dict[int, Tensor] = {}  # number of the call -> first attention's input

    def block(self, block: nn.Module, forward: Forward, args: Any, kwargs: Any) -> Any:
        output = super().block(block, forward, args, kwargs)
        self._visits.append(self.last)
        return output

    def inside(self, value: Tensor) -> None:
        self._heard.setdefault(len(self._visits), value.detach().clone())

    def leave_out(self, last: int) -> None:
        """The body ends before the last calls."""
        if not last:
            return
        self._visits = self._visits[:-last]
        self.last, self.arrivals, self.followed = self._visits[-1], [], True
        kept = {visit.block for visit in self._visits}
        self.passages = {block: passage for block, passage in self.passages.items() if block in kept}
        self.calls = {block: sum(v.block is block for v in self._visits) for block in kept}

    def begin_later(self, plan: Plan, residuals: list[Tensor], first: int) -> tuple[Plan, list[Tensor]] | None:
        """The plan without its ``first`` calls; without more where the streams that it builds on come later (Latte)."""
        if not first:
            return plan, residuals
        begin = self._start(plan)
        for before in range(first, len(self._visits) - begin):
            visit = self._visits[begin + before]
            moved = plan.residuals(visit.streams, self.ends)
            if moved is not None:
                return self._later(plan, visit, before), moved
        return None

    def _later(self, plan: Plan, visit: Visit, before: int) -> Plan:
        passed = {v.block for v in self._visits[: self._start(plan) + before]}
        entry = f"{plan.entry} + {before}"
        self.entries = {**self.entries, entry: visit}
        skipped = {block: passage for block, passage in plan.skipped.items() if block not in passed}
        return replace(plan, entry=entry, start=visit.block, skipped=skipped, before=before)

    def signal(self, plan: Plan, inside: bool) -> Tensor | None:
        """What the gate of a plan would have heard in the watched step."""
        begin = self._start(plan)
        if inside:
            return self._heard.get(begin)
        return _added(self._visits[begin].streams, self._visits[begin - plan.before].streams)

    def _start(self, plan: Plan) -> int:
        return next(i for i, visit in enumerate(self._visits) if visit.block is plan.start)


def _added(now: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Tensor | None:
    """What blocks added to the first stream that they changed (VACE's control blocks leave the hidden states alone)."""
    for name, stream in now.items():
        old = before.get(name)
        if old is not None and old is not stream and old.shape == stream.shape:
            return stream - old
    return None


def _hidden(module: nn.Module, args: Any, kwargs: Any) -> Tensor:
    return next(iter(named_tensors(module, args, kwargs).values()))


class _InsideHook(ModelHook):
    """The first attention of a block list."""

    def __init__(self, body: GatedBody) -> None:
        super().__init__()
        self.body = body

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        inside = getattr(self.body.now, "inside", None)  # only what waits at the gate, or explores, has it
        if inside is not None:
            inside(_hidden(module, args, kwargs))  # raises :class:`_Leave` if the rest of the block is not needed
        return self.fn_ref.original_forward(*args, **kwargs)
