"""Policies whose rows depend on what is masked and what was decoded: window and dKV."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.language import DKVConfig, WindowConfig
from ..plan import StepPlan
from ..rows import Rows, picked
from ..state import SequenceState
from .base import Policy


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

    def blocks(self) -> list[tuple[int, int]]:
        return [(self.task.prompt_length, self.task.length)]

    def decodable(self, state: SequenceState) -> Tensor:
        return self.first_masks(state, self.config.active)

    def plan(self, state: SequenceState) -> StepPlan:
        active = self.decodable(state)
        want = self.wanted(state, active, self.config.active)
        if state.step % self.config.refresh == 0 or state.step < self.config.warmup:
            return self._refresh(state, want)
        since = state.decoded_at >= self._began
        return self.over(state, active | (since & ~state.masked), want, stop=self._stop, seen=self._seen)

    def _refresh(self, state: SequenceState, want: Rows) -> StepPlan:
        """All rows; decides for the phase what is seen. Decoded tokens lie among the first masks: all is one span."""
        self._began = state.step
        window = self.first_masks(state, self.config.window) | (~state.masked & (state.positions < state.end))
        last = torch.where(window, state.positions, 0).amax(1)
        self._stop = int(last.max()) + 1
        self._seen = None if len(last) == 1 else state.positions <= last[:, None]
        stop = self._stop if self.config.drop_far else state.length
        stop = max(stop, int(want.positions(last.device).max()) + 1)
        return StepPlan(Rows(0, stop), want, stop, seen=self._seen if self.config.drop_far else None, full=True)


class DKV(AdaptivePolicy):
    """What is masked and what was decoded at the step before (dKV-Cache, decode)."""

    config: DKVConfig

    def plan(self, state: SequenceState) -> StepPlan:
        if state.step < max(2, self.config.warmup) or state.block_step % self.config.refresh == 0:
            return self.full(state)
        return self.over(state, state.decoded_at >= state.step - 1, self.want(state))
