"""Sparse-dLLM: a block sees itself and the keys outside that matter most to it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...methods.language import LanguageConfig, SparseConfig
from ..passes import ForwardPass
from ..plan import StepPlan
from ..rows import Rows
from ..state import SequenceState
from .base import Policy, Task


class CompactKV:
    """Kept keys of each layer, then those of the block, in one buffer ``[B, H_kv, kept + b, d]``."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def build(self, layer: int, k: Tensor, v: Tensor, index: Tensor, block: int) -> None:
        """Take the keys at ``index`` ``[B, kept]``, and leave room for ``block`` more."""
        spread = index[:, None, :, None].expand(-1, k.shape[1], -1, k.shape[3])
        self.layers[layer] = tuple(F.pad(t.gather(2, spread), (0, 0, 0, block)) for t in (k, v))

    def exchange(self, layer: int, rows: Rows, k: Tensor, v: Tensor, stop: int) -> tuple[Tensor, Tensor]:
        """Write the block, then read all; order does not matter, keys carry their positions."""
        for held, new in zip(self.layers[layer], (k, v)):
            held[:, :, held.shape[2] - new.shape[2] :] = new
        return self.layers[layer]

    @property
    def bytes(self) -> int:
        """Held now."""
        return sum(t.numel() * t.element_size() for pair in self.layers.values() for t in pair)


class Sparse(Policy):
    """Two full passes a block; the second one ranks the keys outside."""

    config: SparseConfig

    def __init__(self, config: LanguageConfig, task: Task) -> None:
        super().__init__(config, task)
        self.compact = CompactKV()
        self._rows = Rows()

    def plan(self, state: SequenceState) -> StepPlan:
        if state.block_step == 0 or state.step < self.config.warmup:
            return self.full(state)
        if state.block_step == 1 or state.step == self.config.warmup:
            self._rows = self.span(state, *state.block).rows
            return self.full(state, probe=self)
        return self.span(state, *state.block, source=self.compact)

    def hear_before(self, current: ForwardPass, layer: int, q: Tensor, k: Tensor, scale: float) -> None:
        """Nothing to hear yet."""

    def hear_after(self, current: ForwardPass, layer: int, q: Tensor, k: Tensor, scale: float) -> None:
        """Rank this layer's keys by the block's mean query, and keep the best."""
        first, last = self._rows.start, self._rows.stop
        mean = q[:, :, first:last].float().mean(2)
        mean = mean.view(len(q), k.shape[1], -1, q.shape[3]).sum(2)  # heads of one group ask the same keys
        score = (mean[:, :, None, :] @ k.float().mT).sum((1, 2))
        outside = torch.cat([score[:, :first], score[:, last:]], dim=1)
        outside = F.max_pool1d(outside[:, None], self.config.pool, 1, self.config.pool // 2)[:, 0]
        kept = max(int(self.config.keep * outside.shape[1]), 1)
        index = outside.topk(kept, dim=1).indices.sort(dim=1).values
        index = torch.where(index >= first, index + (last - first), index)
        self.compact.build(layer, *current.kv.read(layer, current.plan.stop), index, last - first)

    @property
    def residual_bytes(self) -> int:
        return self.compact.bytes
