"""Policies whose rows are a span: the block, or from the block to the end."""

from __future__ import annotations

from ...methods.language import FastDLLMConfig, FreeCacheConfig
from ..plan import StepPlan
from ..rows import Rows
from ..state import SequenceState
from .base import Policy


class FastDLLM(Policy):
    """Every block begins with a full pass (Fast-dLLM, dInfer)."""

    config: FastDLLMConfig

    def plan(self, state: SequenceState) -> StepPlan:
        config, step, (start, stop) = self.config, state.block_step, state.block
        if step == 0 or state.step < config.warmup or (config.every and step % config.every == 0):
            return self.full(state)
        if config.cache == "prefix":
            return self.span(state, start, state.length)
        return self.span(state, max(start - config.before, 0), min(stop + config.behind, state.length))


class FreeCache(Policy):
    """Finished blocks are frozen: only the first step of all is a full pass."""

    config: FreeCacheConfig

    def plan(self, state: SequenceState) -> StepPlan:
        if state.step == 0 or state.step < self.config.warmup:
            return self.full(state)
        start, stop = state.block
        if state.block_step == 0 and self.config.settle:
            start = max(start - self.task.block_length, self.task.prompt_length)
        behind = self.config.behind
        return self.span(state, start, state.length if behind is None else min(stop + behind, state.length))


class ExactPrefix(Policy):
    """Of block-causal models: keys and values of finished blocks are exact, so that a step computes the block alone."""

    def prefill(self, state: SequenceState) -> StepPlan | None:
        start = self.blocks()[0][0]
        if start == 0:
            return None
        return StepPlan(Rows(0, start), None, stop=start, triangular=self.task.block_length)

    def plan(self, state: SequenceState) -> StepPlan:
        if state.step < self.config.warmup:
            return self.full(state)
        return self.within(state)

    def within(self, state: SequenceState) -> StepPlan:
        """Computes the block."""
        start, stop = state.block
        if self.shift and start:  # the row before the block predicts its first position; it does not see the block
            return self.span(state, start, stop, stop=stop, triangular=self.task.block_length)
        return self.span(state, start, stop, stop=stop)

    def commit(self, state: SequenceState) -> StepPlan | None:
        start, stop = state.block
        return None if stop >= state.length else StepPlan(Rows(start, stop), None, stop=stop)
