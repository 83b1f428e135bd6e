"""LLaDA2Pipeline: its forward over the whole prefix becomes one over the block, with exact keys of what lies before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks import ModelHook
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from ...errors import UnsupportedModelError
from ...methods.language import LanguageConfig
from ..families import read_facts
from ..heads import HeadListener
from ..passes import attending
from ..plan import StepPlan
from ..policies import Policy, Task, refusal
from ..rows import Rows
from ..runner import Runner
from ..stats import Tally
from .reuse import Reuse


@dataclass(frozen=True, eq=False)
class Seen:
    """What the runner reads of the sequences: the pipeline's own state."""

    ids: Tensor
    padding: Tensor | None
    block: tuple[int, int]


class RefinementHook(ModelHook):
    """Stands in for the forward of a block-causal model, called with ids ``[B, W]`` whose last block is under way.

    Keys of the blocks before are computed once, under the block-causal mask; a call computes the block alone and
    returns its logits ``[B, block, V]``. Anything in the prefix that changed starts over.

    Args:
        model: a block-causal model.
        config: of the method.

    Raises:
        UnsupportedModelError: not block-causal: keys of the prefix would move with the block.
    """

    def __init__(self, model: nn.Module, config: LanguageConfig) -> None:
        super().__init__()
        self.facts, self.config = read_facts(model), config
        if not self.facts.causal:
            raise UnsupportedModelError(
                f"{type(model).__name__} is declared bidirectional: keys of the prefix move with the block, so that "
                "this pipeline's forward has no exact short form; declare(model, regime='block-causal', "
                "block_length=...) if it was trained so, or use diffcache.llm.generate"
            )
        reason = refusal(config, self.facts)
        if reason is not None:
            raise UnsupportedModelError(reason)
        if self.facts.shift:
            raise UnsupportedModelError(f"{type(model).__name__} predicts the next position, the pipeline the same one")
        self.reuse = Reuse(config, model)
        self.tally = Tally()
        self._policy: Policy | None = None
        self._prefix: Tensor | None = None  # what keys are there for
        self._seen: Tensor | None = None
        self._block: Tensor | None = None
        self._window = 0

    def new_forward(self, module: nn.Module, input_ids: Tensor, attention_mask: Any = None, **kwargs: Any) -> Any:
        size = self.facts.block_length
        if input_ids.shape[1] % size or (attention_mask is not None and attention_mask.dim() != 2):
            # not a call of the loop that this stands in for
            return self.fn_ref.original_forward(input_ids, attention_mask=attention_mask, **kwargs)
        stop = input_ids.shape[1]
        stale, padding = self._follow(input_ids, attention_mask, stop - size)
        seen = Seen(input_ids, padding, (stop - size, stop))
        with attending(module):
            return CausalLMOutputWithPast(logits=self._run(Runner(module, self.facts, self.tally), seen, stale))

    def _follow(
        self, ids: Tensor, attention_mask: Tensor | None, start: int
    ) -> tuple[list[bool] | None, Tensor | None]:
        """Keep what is still true of the prefix ``ids[:, :start]``, and forget the rest; the one read of the device.

        Returns:
            What the reuse asked, and the padding, or None where all tokens are real.
        """
        size, known, stop = self.facts.block_length, self._prefix, ids.shape[1]
        real = None if attention_mask is None else attention_mask.bool()
        seen = ids if real is None else torch.where(real, ids, -1)  # padding counts as a token of its own
        if self._window != stop:
            self.reuse.begin()
        asked = self.reuse.asks(ids[:, start:])
        follows = known is not None and known.shape[1] <= start and known.shape[0] == len(ids)
        unknown = ids.new_zeros(1, dtype=torch.bool)
        flags = [
            unknown if real is None else (~real).any().view(1),
            (known != seen[:, : known.shape[1]]).any().view(1) if follows else ~unknown,
            self._restarts(ids[:, start:], stop).view(1),
        ]
        padded, other, again, *stale = torch.cat([*flags, *([] if asked is None else [asked])]).tolist()
        if other or again:
            self.forget()
            self.reuse.begin()
            asked = self.reuse.asks(ids[:, start:])  # of a block that begins it asks nothing
            self._policy = Policy(self.config, Task(self.facts, 0, stop, size))
        self._policy.kv.grow(stop)
        self._window, self._seen, self._block = stop, seen, ids[:, start:].clone()
        return (None if asked is None else stale), (real if padded else None)

    def _restarts(self, block: Tensor, window: int) -> Tensor:
        """A decoded position is masked again in the same window: a new generation, whose weights may be others."""
        before = self._block
        if before is None or self.facts.mask_id is None or self._window != window or before.shape != block.shape:
            return block.new_zeros((), dtype=torch.bool)
        return ((before != block) & (block == self.facts.mask_id)).any()

    def _run(self, runner: Runner, seen: Seen, stale: list[bool] | None) -> Tensor:
        start, stop = seen.block
        done = 0 if self._prefix is None else self._prefix.shape[1]
        if done < start:
            plan = StepPlan(Rows(done, start), None, stop=start, triangular=self.facts.block_length)
            runner.forward(plan, self._policy, seen)
            self._prefix = self._seen[:, :start].clone()
        elif self._prefix is None:
            self._prefix = self._seen[:, :0]
        external = self.reuse.next((start, stop), stale) if start else None
        rows = Rows(start, stop)
        self.tally.steps += 1
        self.tally.dense += stop
        return runner.forward(StepPlan(rows, rows, stop, external=external), self._policy, seen)

    def listen(self, listener: HeadListener) -> None:
        """Compute the part outside at every step, and let it be heard."""
        self.reuse.listener = listener

    def forget(self) -> None:
        """Free keys and values."""
        self._policy = self._prefix = self._seen = self._block = None
        self._window = 0
