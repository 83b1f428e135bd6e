"""dLLM-Cache: what attention and feed-forward add to the hidden states is cached, and renewed row by row."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...methods.language import DLLMCacheConfig, LanguageConfig
from ..passes import ForwardPass
from ..plan import StepPlan
from ..rows import Rows
from ..state import SequenceState
from ..walk import Walk
from .base import Policy, Task


class DLLMCache(Policy):
    """Hidden states flow through; layers compute some rows and add what they kept for the others.

    Where the prompt is not renewed its rows stay out: their keys are kept, and nobody reads their hidden states.
    """

    config: DLLMCacheConfig

    def __init__(self, config: LanguageConfig, task: Task) -> None:
        super().__init__(config, task)
        self._added: dict[int, tuple[Tensor, Tensor]] = {}
        self._prompt, self._response = Rows(0, task.prompt_length), Rows(task.prompt_length, task.length)
        self._all, self._read = Rows(0, task.length), Rows(task.prompt_length - self.shift, task.length)
        self._count = 0

    def plan(self, state: SequenceState) -> StepPlan:
        config, step = self.config, state.step
        early = step < config.warmup
        self._renew_prompt = early or step % config.prompt_interval == 0
        self._renew_response = early or step % config.response_interval == 0
        self._count = 0
        self._flow = self._all if self._renew_prompt else self._read
        full = self._renew_prompt and self._renew_response
        return StepPlan(self._flow, self.want(state), state.length, full=full, walker=self)

    def layer(self, walk: Walk, index: int, layer: nn.Module, x: Tensor) -> Tensor:
        """``x`` plus what attention adds, plus what feed-forward adds to that."""
        normed = layer.input_layernorm(x)
        rows = self._rows(walk, index, layer, normed)
        if index not in self._added:
            self._added[index] = torch.zeros_like(x), torch.zeros_like(x)  # the first step is a full one
        attention, feedforward = map(self._flow.take, self._added[index])  # views
        self._count += rows.count
        if rows.count:
            here = rows.within(self._flow)
            added = walk.attention(layer, here.take(normed), rows)
            here.put(attention, added)
            here.put(feedforward, layer.mlp(layer.post_attention_layernorm(here.take(x) + added)))
        walk.current.rows = self._flow
        return x + attention + feedforward

    def _rows(self, walk: Walk, index: int, layer: nn.Module, normed: Tensor) -> Rows:
        """What runs through this layer; the first one always computes all that flows, so that new ids are seen."""
        if index == 0 or (self._renew_prompt and self._renew_response):
            return self._flow
        if self._renew_response:
            return self._response
        changed = self._changed(walk, index, layer, normed)
        if not self._renew_prompt:
            return changed
        prompt = self._prompt.positions(normed.device)
        chosen = changed.positions(normed.device).expand(len(normed), -1)
        return Rows(index=torch.cat([prompt.expand(len(chosen), -1), chosen], dim=1))

    def _changed(self, walk: Walk, index: int, layer: nn.Module, normed: Tensor) -> Rows:
        """The response rows whose values are least like the cached ones; the new values are written for all rows."""
        count = int(self.config.ratio * self._response.count)
        held = walk.current.kv.values(index)
        new = layer.self_attn.v_proj(self._response.within(self._flow).take(normed))
        shaped = new.view(*new.shape[:2], held.shape[1], held.shape[3]).transpose(1, 2)
        old = held[:, :, self._response.start :].transpose(1, 2).flatten(2)
        alike = F.cosine_similarity(old.float(), new.float(), dim=-1)
        self._response.put(held, shaped, axis=2)
        index_ = alike.topk(count, dim=1, largest=False).indices.sort(dim=1).values + self._response.start
        return Rows(index=index_[0] if len(index_) == 1 else index_)

    def row_layers(self, plan: StepPlan, current: ForwardPass) -> int:
        return self._count

    @property
    def residual_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for pair in self._added.values() for t in pair)
