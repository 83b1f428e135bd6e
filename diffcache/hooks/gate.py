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
from .modules import first_attention
from .passes import Capturing, Exploring, Forward, Replaying
from .plans import Plan, propose
from .streams import Visit, named_tensors, stream

_INSIDE_NAME = f"{HOOK_NAME}_inside"

#: the signal's tensor -> residuals to replay, or None to compute
Decide = Callable[[Tensor], list[Tensor] | None]


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
        gating = Gating(self, decide)
        result = self._under(gating, run)
        self.heard = gating.heard
        return (result, self._taken(gating), False) if gating.replaying is None else (result, None, True)

    def look(self, run: Run) -> tuple[Any, list[Tensor] | None, Tensor | None]:
        """Run some samples in full and change nothing here: the result, residuals, and what the gate heard."""
        gating = Gating(self, lambda heard: None)
        result = self._under(gating, run)
        with torch.no_grad():
            return result, gating.residuals(), gating.heard

    # -- finding the plan ------------------------------------------------------------------------------------------

    def _explorer(self) -> Exploring:
        return _Narrowing(self.model, self.blocks)

    def _proposals(self, explorer: _Narrowing) -> Iterator[tuple[Plan, list[Tensor]]]:
        explorer.leave_out(self.last)
        for plan, residuals in propose(explorer):
            moved = explorer.begin_later(plan, residuals, self.first)
            if moved is not None and self.inside:
                self.heard = explorer.heard_inside(moved[0])
                yield moved
            elif moved is not None:
                listens, self.heard = explorer.added(moved[0])
                if self.heard is not None:
                    yield replace(moved[0], listens=listens), moved[1]

    # -- hooks -----------------------------------------------------------------------------------------------------

    def install(self) -> None:
        super().install()
        for module in self._attentions:
            attach(module, _InsideHook(self), _INSIDE_NAME)

    def uninstall(self) -> None:
        for module in self._attentions:
            detach(module, _INSIDE_NAME)
        super().uninstall()


class Gating(Capturing):
    """In full up to the gate, then captured or replayed.

    Args:
        body: its plan begins at the gate.
        decide: called at the gate.

    Attributes:
        looks_at: every block until the gate is passed.
        heard: what was heard there.
        replaying: what runs behind it, if ``decide`` had a prediction.
    """

    heard: Tensor | None = None
    replaying: Replaying | None = None
    _running: nn.Module | None = None

    def __init__(self, body: GatedBody, decide: Decide) -> None:
        super().__init__(body.plan, body._copies)
        self.looks_at, self._body, self._decide = None, body, decide
        self._recent: list[Tensor | None] = []  # what the last blocks before the gate received

    def block(self, block: nn.Module, forward: Forward, args: Any, kwargs: Any) -> Any:
        if self._body.inside:
            self._running = block
        elif self.heard is None:
            self._approach(block, args, kwargs)
        if self.replaying is None:
            if block not in self.plan.edges:
                self.ended = ()
                return forward(*args, **kwargs)
            try:
                return super().block(block, forward, args, kwargs)
            except _Leave:
                pass
        return self.replaying.block(block, forward, args, kwargs)

    def _approach(self, block: nn.Module, args: Any, kwargs: Any) -> None:
        plan, recent = self.plan, self._recent
        if block is not plan.start:
            recent.append(stream(block, plan.listens, args, kwargs))
            del recent[: -plan.before]
            return
        now = stream(block, plan.listens, args, kwargs)
        alone = now is not None and plan.names == (plan.listens,)  # the usual case
        received = {plan.listens: now} if alone else self._received(block, args, kwargs)
        before = recent[0] if len(recent) == plan.before else None
        recent.clear()
        if now is not None and before is not None and now is not before and now.shape == before.shape:
            heard = now - before
            self._pass(heard.detach() if heard.requires_grad else heard)
        if self.replaying is not None:
            self.replaying.begin(received)
        elif self.first is None:
            self.note(received, self._copies)  # never traced

    def inside(self, value: Tensor) -> None:
        # lists that run before the body (text refiners) have attentions as well
        if self.heard is None and self._running is self.plan.start and self._body.inside:
            self._pass(value.detach().clone())
            if self.replaying is not None:
                raise _Leave

    def _pass(self, heard: Tensor) -> None:
        self.heard = heard
        residuals = self._decide(heard)
        if residuals is None:
            self.looks_at = self.plan.edges  # the blocks that follow need not ask
        else:
            self._body.now = self.replaying = Replaying(self.plan, residuals)


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

    def heard_inside(self, plan: Plan) -> Tensor | None:
        """What a gate inside the plan's first block would have heard in the watched step."""
        return self._heard.get(self._start(plan))

    def added(self, plan: Plan) -> tuple[str, Tensor | None]:
        """What a gate before the plan's first block would have heard: what blocks added to a stream, and its name.

        It is the first stream that they changed (VACE's control blocks leave the hidden states alone).
        """
        begin = self._start(plan)
        before = self._visits[begin - plan.before].streams
        for name, now in self._visits[begin].streams.items():
            old = before.get(name)
            if old is not None and old is not now and old.shape == now.shape:
                return name, now - old
        return "", None

    def _start(self, plan: Plan) -> int:
        return next(i for i, visit in enumerate(self._visits) if visit.block is plan.start)


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
