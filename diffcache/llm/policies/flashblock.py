"""FlashBlock: over another policy's rows, attention outside the block is kept with its log-sum-exp and merged."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ...methods.language import FastDLLMConfig, FlashBlockConfig, FreeCacheConfig, LanguageConfig
from ..heads import load_heads
from ..plan import External, StepPlan
from ..rows import Rows
from ..state import SequenceState
from .base import Policy, Task
from .block import ExactPrefix, FastDLLM, FreeCache

_OVER: dict[str, tuple[type[Policy], LanguageConfig]] = {
    "exact": (ExactPrefix, FreeCacheConfig()),
    "freecache": (FreeCache, FreeCacheConfig()),
    "prefix": (FastDLLM, FastDLLMConfig(cache="prefix")),
    "dual": (FastDLLM, FastDLLMConfig(cache="dual")),
}


class FlashBlock(Policy):
    """The rows are those of the policy below; its keys, too, so that a row policy and this compose."""

    config: FlashBlockConfig

    def __init__(self, config: FlashBlockConfig, task: Task) -> None:
        super().__init__(config, task)
        below, settings = _OVER[config.over]
        self.below = below(replace(settings, warmup=config.warmup), task)
        self.kv = self.below.kv
        self.heads = None if config.heads is None else load_heads(config.heads, task.model)
        self._dirty = 0
        self._held: tuple[int, int] | None = None  # the rows whose part outside is stored

    def blocks(self) -> list[tuple[int, int]]:
        return self.below.blocks()

    def prefill(self, state: SequenceState) -> StepPlan | None:
        return self.below.prefill(state)

    def commit(self, state: SequenceState) -> StepPlan | None:
        return self.below.commit(state)

    def plan(self, state: SequenceState) -> StepPlan:
        if state.block_step == 0:
            self._held = None
        plan = self.below.plan(state)
        if plan.full or plan.rows.index is not None:
            self._held = None  # all rows, and with them keys outside, are computed
            return plan
        use = self._usable(plan.rows)
        heads = self.heads.of(state.block_step) if use and self.heads is not None else None
        external = External((plan.rows.start, plan.rows.stop), use=use, heads=heads)
        if not use:
            self._held, self._dirty = (plan.rows.start, plan.rows.stop), 0
            self.store.version = self.kv.version
        return replace(plan, external=external)

    def _usable(self, rows: Rows) -> bool:
        """Whether what is stored belongs to these rows, and still holds."""
        stale = self._held != (rows.start, rows.stop) or self.store.version != self.kv.version
        return not stale and self._dirty < max(self.config.dirty, 1)

    def after(self, state: SequenceState, decoded: Tensor) -> None:
        self.below.after(state, decoded)
        if self._held is not None and self.config.dirty < self.task.block_length:
            self._dirty += int(decoded.sum(1).max())
