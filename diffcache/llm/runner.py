"""Runs one plan through the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .families import Facts
from .passes import KEYWORD, ForwardPass
from .plan import StepPlan
from .policies import Policy
from .state import SequenceState
from .stats import Tally
from .walk import Walk


class Runner:
    """Feeds only the planned rows, and makes logits only for the rows that are read.

    Args:
        model: a causal language model class of transformers.
        facts: of it.
        tally: counts what is computed.
    """

    def __init__(self, model: nn.Module, facts: Facts, tally: Tally) -> None:
        self.model, self.facts, self.tally = model, facts, tally
        self.head = model.get_output_embeddings()
        self.body: Any = model.base_model
        # four axes: transformers hands it on as it is, and builds no mask of its own; ours is in the pass
        self._no_mask = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=model.device)

    @torch.no_grad()
    def forward(self, plan: StepPlan, policy: Policy, state: SequenceState) -> Tensor | None:
        """Logits ``[B, W, V]`` of ``plan.want``, or None if nothing is read."""
        if plan.keep:
            policy.kv.announce(plan.rows, behind=state.block[0] - self.facts.shift)
        current = ForwardPass(plan, policy.kv, state.padding, policy.store, self.tally.external)
        hidden = self._hidden(plan, current, state)
        self._count(plan, current, policy)
        if plan.want is None:
            return None
        read = plan.want.shifted(-self.facts.shift).within(current.rows)
        return self.head(read.take(hidden))

    def _hidden(self, plan: StepPlan, current: ForwardPass, state: SequenceState) -> Tensor:
        if plan.walker is not None:
            return Walk(self.body, current, state).run()
        return self.body(
            input_ids=plan.rows.take(state.ids),
            position_ids=plan.rows.positions(state.ids.device),
            attention_mask=self._no_mask,
            use_cache=False,
            **{KEYWORD: current},
        ).last_hidden_state

    def _count(self, plan: StepPlan, current: ForwardPass, policy: Policy) -> None:
        tally = self.tally
        tally.forwards += 1
        tally.full += plan.full
        tally.rows += plan.rows.count
        tally.row_layers += policy.row_layers(plan, current)
        if plan.external is not None and plan.external.use:
            tally.external.forwards += 1
        tally.kv_bytes = max(tally.kv_bytes, policy.kv.bytes)
        tally.residual_bytes = max(tally.residual_bytes, policy.residual_bytes)
