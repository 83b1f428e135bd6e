"""Elastic-Cache: computes a window and what it attends to most; refreshes the layers above where attention drifts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...methods.language import ElasticConfig, LanguageConfig
from ..attention import probabilities
from ..passes import ForwardPass
from ..plan import StepPlan
from ..rows import Rows, picked
from ..state import SequenceState
from ..walk import Walk
from .adaptive import AdaptivePolicy
from .base import Task


class Elastic(AdaptivePolicy):
    """Algorithm 1 of the paper; the rows decoded at the step before are computed too, as in the released code."""

    config: ElasticConfig

    def __init__(self, config: LanguageConfig, task: Task) -> None:
        super().__init__(config, task)
        self._inputs: dict[int, Tensor] = {}
        self._queries: dict[int, Tensor] = {}
        self._tracked: Tensor | None = None
        self._found: Tensor | None = None
        self._past: Tensor | None = None
        self._drifted = False
        self._count = 0
        self._everything = Rows(0, task.length)

    def blocks(self) -> list[tuple[int, int]]:
        return [(self.task.prompt_length, self.task.length)]

    def decodable(self, state: SequenceState) -> Tensor:
        return self.first_masks(state, self.config.window)

    # -- before the forward --------------------------------------------------------------------------------------------

    def plan(self, state: SequenceState) -> StepPlan:
        window = self.decodable(state)
        self._window = self.wanted(state, window, self.config.window)
        self._decoded = ~state.masked
        if state.padding is not None:
            self._decoded = self._decoded & state.padding
        if state.step == 0 or state.step < self.config.warmup:
            return self._listening(StepPlan(self._everything, self._window, state.length, full=True))
        rows = window | (state.decoded_at == state.step - 1)
        rows = rows.scatter(1, self._tracked, True)
        if not self.config.cache_masks:
            rows = rows | state.masked
        return self._listening(self.over(state, rows, self._window))

    def _listening(self, plan: StepPlan) -> StepPlan:
        self._found, self._drifted, self._count = None, False, 0
        return StepPlan(plan.rows, plan.want, plan.stop, full=plan.full, probe=self, walker=self)

    # -- during it -----------------------------------------------------------------------------------------------------

    def layer(self, walk: Walk, index: int, layer: nn.Module, x: Tensor) -> Tensor:
        """One layer; once attention drifted below, on all rows, whose hidden states were kept."""
        current = walk.current
        if index not in self._inputs:
            self._inputs[index] = x.new_zeros(len(x), self.task.length, x.shape[-1])
        held = self._inputs[index]
        current.rows.put(held, x)
        if self._drifted and current.rows is not self._everything:
            current.rows, x = self._everything, held
        self._count += current.rows.count
        return walk.call(layer, x, current.rows)

    def hear_before(self, current: ForwardPass, layer: int, q: Tensor, k: Tensor, scale: float) -> None:
        """The tracked rows' attention of the step before, from queries and keys that are about to be written over."""
        self._past = None
        if current.rows is not self._everything and self._tracked is not None and layer + 1 < self.task.facts.layers:
            keys, _ = current.kv.read(layer, current.plan.stop)
            self._past = probabilities(
                self._asked(self._queries[layer], self._tracked), keys, scale, self._mask(current)
            )
        if layer not in self._queries:
            self._queries[layer] = q.new_zeros(*q.shape[:2], self.task.length, q.shape[3])
        current.rows.put(self._queries[layer], q, axis=2)

    def hear_after(self, current: ForwardPass, layer: int, q: Tensor, k: Tensor, scale: float) -> None:
        """Has attention drifted? And which decoded tokens does the window attend to most?"""
        held = self._queries[layer]
        if self._past is not None and not self._drifted:
            now = probabilities(self._asked(held, self._tracked), k, scale, self._mask(current))
            alike = self._similarity(self._past, now, current.padding)
            self._drifted = bool((alike < self.config.threshold).any())
        window = self._window.positions(q.device).expand(len(q), -1)
        weight = probabilities(self._asked(held, window), k, scale, self._mask(current)).sum((1, 2))
        weight = weight.masked_fill(~self._decoded, -1.0)
        best = weight.topk(min(self.config.track, weight.shape[1]), dim=1).indices
        self._found = best if self._found is None else torch.cat([self._found, best], dim=1)

    def _similarity(self, past: Tensor, now: Tensor, seen: Tensor | None) -> Tensor:
        """Of each sample; ``[B, H, T, K]`` compared across heads (released code) or across keys (paper).

        Keys of padding, which ``seen`` ``[B, K]`` leaves out, have no attention to compare.
        """
        if self.config.drift == "key":
            return F.cosine_similarity(past, now, dim=3).mean((1, 2))
        alike = F.cosine_similarity(past, now, dim=1)
        if seen is None:
            return alike.mean((1, 2))
        return (alike.mean(1) * seen).sum(1) / seen.sum(1)

    @staticmethod
    def _asked(queries: Tensor, positions: Tensor) -> Tensor:
        index = positions[:, None, :, None].expand(-1, queries.shape[1], -1, queries.shape[3])
        return queries.gather(2, index)

    @staticmethod
    def _mask(current: ForwardPass) -> Tensor | None:
        return None if current.padding is None else current.padding[:, None, None, :]

    # -- after it ------------------------------------------------------------------------------------------------------

    def after(self, state: SequenceState, decoded: Tensor) -> None:
        found = torch.zeros_like(decoded).scatter(1, self._found, True)  # layers may agree on a token
        self._tracked = picked(found, int(found.sum(1).max())).positions(found.device)

    def row_layers(self, plan: StepPlan, current: ForwardPass) -> int:
        return self._count

    @property
    def residual_bytes(self) -> int:
        held: list[Any] = [*self._inputs.values(), *self._queries.values()]
        return sum(t.numel() * t.element_size() for t in held)
