"""FlashBlock: over another policy's rows, attention outside the block is kept with its log-sum-exp and merged."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...methods.language import FastDLLMConfig, FlashBlockConfig, FreeCacheConfig, LanguageConfig
from ..dirty import DirtyTokens, fresh
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
    """The rows are those of the policy below; its keys, too, so that a row policy and this compose.

    Each sequence of a batch is judged by its own tokens. With a calibrated mask of heads, that mask alone decides.
    """

    config: FlashBlockConfig

    def __init__(self, config: FlashBlockConfig, task: Task) -> None:
        super().__init__(config, task)
        below, settings = _OVER[config.over]
        self.below = below(replace(settings, warmup=config.warmup), task)
        self.kv = self.below.kv
        facts = {"over": config.over, "block_length": task.block_length}
        self.heads = None if config.heads is None else load_heads(config.heads, task.model, **facts)
        self.dirty = DirtyTokens(config.dirty)
        self._held: tuple[int, int] | None = None  # the rows whose part outside is stored
        self._stale: tuple[int, ...] | None = None  # sequences, as far as the host was told; None: all

    def blocks(self) -> list[tuple[int, int]]:
        return self.below.blocks()

    def prefill(self, state: SequenceState) -> StepPlan | None:
        return self.below.prefill(state)

    def commit(self, state: SequenceState) -> StepPlan | None:
        return self.below.commit(state)

    def asks(self) -> Tensor | None:
        return self.dirty.stale() if self.heads is None else None

    def told(self, answer: list[bool]) -> None:
        self._stale = fresh(answer)

    def plan(self, state: SequenceState) -> StepPlan:
        if state.block_step == 0:
            self._held = None
        plan = self.below.plan(state)
        if plan.full or plan.rows.index is not None:
            self._held = None  # all rows, and with them keys outside, are computed
            return plan
        return replace(plan, external=self._external(plan.rows, state.block_step, state.ids.device))

    def _external(self, rows: Rows, step: int, device: torch.device) -> External:
        """What is stored is used where it belongs to these rows, and still holds."""
        inner = rows.start, rows.stop
        holds = self._held == inner and self.store.version == self.kv.version
        stale, self._stale = () if self.heads is not None else self._stale, None
        if not holds or stale is None:  # nothing is there, all are stale, or nobody was asked
            self._held, self.store.version = inner, self.kv.version
            self.dirty.renew(every=True)
            return External(inner)
        self.dirty.renew()
        return External(inner, stale, heads=None if self.heads is None else self.heads.of(step, device))

    def after(self, state: SequenceState, decoded: Tensor) -> None:
        self.below.after(state, decoded)
        if self._held is not None and self.heads is None:
            self.dirty.add(decoded)
