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

from ..errors import ConfigError
from .attach import HOOK_NAME, attach, detach
from .body import BodySite, Run
from .modules import first_attention
from .passes import Capturing, Exploring, Forward, Replaying, Visit
from .plans import Plan, propose
from .streams import named_tensors

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
        gating = Gating(self.plan, self._copies, None if self.inside else self.first, decide)
        with self._during(gating):
            result = run()
        self.heard = gating.heard
        if gating.replaying:
            return result, None, True
        return result, self._taken(gating.capturing), False

    # -- finding the plan ------------------------------------------------------------------------------------------

    def _explorer(self) -> Exploring:
        return _Narrowing(self.model, self.blocks)

    def _proposals(self, explorer: _Narrowing) -> Iterator[tuple[Plan, list[Tensor]]]:
        explorer.leave_out(self.last)
        for plan, residuals in propose(explorer):
            moved = explorer.begin_later(plan, residuals, self.first)
            if moved is not None:
                self.heard = explorer.signal(plan, self.first, self.inside)
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

    def inside_block(self, value: Tensor) -> None:
        """An attention received its input; raises :class:`_Leave` if the rest of its block is not needed."""
        if self._now is not None and hasattr(self._now, "inside"):
            self._now.inside(value)


class Gating:
    """In full up to the gate, then captured or replayed.

    Args:
        plan: begins at the gate.
        copies: see :class:`Capturing`.
        before: blocks of the body that run before the gate; None if the gate is inside the first one.
        decide: called at the gate.
    """

    def __init__(self, plan: Plan, copies: bool, before: int | None, decide: Decide) -> None:
        self.plan, self._before, self._decide = plan, before, decide
        self.capturing = Capturing(plan, copies)
        self._now: Capturing | Replaying = self.capturing
        self.heard: Tensor | None = None
        self._recent: list[Tensor] = []  # what the last blocks before the gate received

    @property
    def replaying(self) -> bool:
        return self._now is not self.capturing

    def block(self, block: nn.Module, forward: Forward, args: Any, kwargs: Any) -> Any:
        if self.heard is None and self._before is not None:
            self._approach(block, _hidden(block, args, kwargs))
        try:
            return self._now.block(block, forward, args, kwargs)
        except _Leave:
            return self._now.block(block, forward, args, kwargs)

    def _approach(self, block: nn.Module, hidden: Tensor) -> None:
        self._recent = [*self._recent, hidden][-self._before - 1 :]
        if block is self.plan.start:
            with torch.no_grad():
                self._pass(hidden - self._recent[0])
            self._recent = []

    def inside(self, value: Tensor) -> None:
        if self._before is None and self.heard is None:
            self._pass(value.detach().clone())
            if self.replaying:
                raise _Leave

    def _pass(self, heard: Tensor) -> None:
        self.heard = heard
        residuals = self._decide(heard)
        if residuals is not None:
            self._now = Replaying(self.plan, residuals)

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
        self.last, self.arrivals = self._visits[-1], []
        kept = {visit.block for visit in self._visits}
        self.passages = {block: passage for block, passage in self.passages.items() if block in kept}
        self.calls = {block: sum(v.block is block for v in self._visits) for block in kept}

    def begin_later(self, plan: Plan, residuals: list[Tensor], first: int) -> tuple[Plan, list[Tensor]] | None:
        """The plan without its first calls, if the streams that it builds on are the same there."""
        if not first:
            return plan, residuals
        begin = self._start(plan)
        if begin + first >= len(self._visits):
            return None
        visit = self._visits[begin + first]
        before = {v.block for v in self._visits[: begin + first]}
        entry = f"{plan.entry} + {first}"
        self.entries = {**self.entries, entry: visit}
        skipped = {block: passage for block, passage in plan.skipped.items() if block not in before}
        later = replace(plan, entry=entry, start=visit.block, skipped=skipped)
        moved = later.residuals(visit.streams, self.ends)
        return None if moved is None else (later, moved)

    def signal(self, plan: Plan, first: int, inside: bool) -> Tensor | None:
        """What the gate would have heard in the watched step."""
        begin = self._start(plan)
        if inside:
            return self._heard.get(begin)
        return _first(self._visits[begin + first].streams) - _first(self._visits[begin].streams)

    def _start(self, plan: Plan) -> int:
        return next(i for i, visit in enumerate(self._visits) if visit.block is plan.start)


def _hidden(block: nn.Module, args: Any, kwargs: Any) -> Tensor:
    return _first(named_tensors(block, args, kwargs))


def _first(streams: Mapping[str, Tensor]) -> Tensor:
    return next(iter(streams.values()))


class _InsideHook(ModelHook):
    """The first attention of a block list."""

    def __init__(self, body: GatedBody) -> None:
        super().__init__()
        self.body = body

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.body.inside_block(_hidden(module, args, kwargs))
        return self.fn_ref.original_forward(*args, **kwargs)
