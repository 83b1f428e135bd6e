"""Policies whose rows depend on what is masked and what was decoded: window and dKV."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.language import DKVConfig, LanguageConfig, WindowConfig
from ..plan import StepPlan
from ..rows import Rows, picked
from ..state import SequenceState
from .base import Policy, Task


class AdaptivePolicy(Policy):
    """Rows are a mask over positions, of each sample."""

    def over(self, state: SequenceState, rows: Tensor, want: Rows, **more: Any) -> StepPlan:
        """Computes where ``rows`` ``[B, N]`` is True, and what ``want`` is predicted from."""
        rows = rows.clone()
        read = want.shifted(-self.shift).positions(rows.device).expand(len(rows), -1)
        rows.scatter_(1, read, True)
        count = int(rows.sum(1).max())
        return StepPlan(picked(rows, count), want, **{"stop": state.length, **more})

    def first_masks(self, state: SequenceState, count: int) -> Tensor:
        """Bool ``[B, N]``: the first ``count`` masked positions; of a sequence that has ended, the last canvas ones."""
        masked = state.open
        return masked & (masked.cumsum(1) <= count)

    def wanted(self, state: SequenceState, mask: Tensor, most: int) -> Rows:
        """Where ``mask`` is True, at most ``most`` positions; of a sequence without any, its last position."""
        count = min(most, int(mask.sum(1).max()))
        return picked(mask, max(count, 1), torch.full((len(mask),), state.length - 1, device=mask.device))


class Window(AdaptivePolicy):
    """Active, buffer, far field (Window-Diffusion)."""

    config: WindowConfig

    def __init__(self, config: LanguageConfig, task: Task) -> None:
        super().__init__(config, task)
        self._last: Tensor | None = None  # of each sample, the last position that the phase sees
        self._left: Tensor | None = None  # whether an active mask lies behind it
        self._ends = False

    def blocks(self) -> list[tuple[int, int]]:
        return [(self.task.prompt_length, self.task.length)]

    def decodable(self, state: SequenceState) -> Tensor:
        return self.first_masks(state, self.config.active)

    def asks(self) -> Tensor | None:
        return self._left

    def told(self, answer: list[bool]) -> None:
        self._ends = answer[0]

    def plan(self, state: SequenceState) -> StepPlan:
        active = self.decodable(state)
        want = self.wanted(state, active, self.config.active)
        if state.step % self.config.refresh == 0 or state.step < self.config.warmup or self._ends:
            return self._refresh(state, want)
        if self._last is None:
            self._look(state)
        since = state.decoded_at >= self._began
        return self.over(state, active | (since & ~state.masked), want, stop=self._stop, seen=self._seen)

    def _refresh(self, state: SequenceState, want: Rows) -> StepPlan:
        """All rows. What the phase sees is decided after this step's tokens, unless the far field is dropped here."""
        self._began, self._last, self._ends = state.step, None, False
        if not self.config.drop_far:
            return StepPlan(Rows(0, state.length), want, state.length, full=True)
        self._look(state)
        stop = max(self._stop, int(want.positions(state.ids.device).max()) + 1)
        return StepPlan(Rows(0, stop), want, stop, seen=self._seen, full=True)

    def _look(self, state: SequenceState) -> None:
        """The first masks and what is decoded are seen; that is one span, for tokens are decoded among the first."""
        window = self.first_masks(state, self.config.window) | (~state.masked & (state.positions < state.end))
        self._last = torch.where(window, state.positions, 0).amax(1, keepdim=True)
        self._stop = int(self._last.max()) + 1
        self._seen = None if len(self._last) == 1 else state.positions <= self._last

    def after(self, state: SequenceState, decoded: Tensor) -> None:
        """A decoder that takes many tokens a step may leave the window before the phase is over."""
        if self._last is None:
            self._left = None
        else:
            self._left = (self.decodable(state) & (state.positions > self._last)).any().view(1)


class DKV(AdaptivePolicy):
    """What is masked and what was decoded at the step before (dKV-Cache, decode)."""

    config: DKVConfig

    def plan(self, state: SequenceState) -> StepPlan:
        if state.step < max(2, self.config.warmup) or state.block_step % self.config.refresh == 0:
            return self.full(state)
        return self.over(state, state.decoded_at >= state.step - 1, self.want(state))
