"""Measures which heads of a block-causal model may keep their attention outside the block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..errors import ConfigError
from ..methods.checks import check_number
from ..methods.language import FlashBlockConfig
from .decoders import Decoder, make_decoder
from .driver import prepare
from .families import read_facts
from .heads import HeadListener, HeadMask
from .plan import StepPlan
from .policies.flashblock import FlashBlock
from .state import SequenceState


class Listening(FlashBlock):
    """Computes the part outside at every step, and lets it be heard."""

    listener: HeadListener

    def plan(self, state: SequenceState) -> StepPlan:
        self._held = None
        if state.block_step == 0:
            self.listener.begin()
        plan = super().plan(state)
        self.listener.step = state.block_step
        if plan.external is None:
            return plan
        return replace(plan, external=replace(plan.external, store=False, listener=self.listener))


def calibrate_heads(
    model: nn.Module,
    prompts: list[Tensor],
    *,
    gen_length: int,
    similarity: float = 0.85,
    shift: float = 0.05,
    steps: int = 8,
    decoder: str | Decoder = "threshold",
    over: str | None = None,
    on_step: Callable[[int, SequenceState], None] | None = None,
    **asked: Any,
) -> HeadMask:
    """Which heads must compute attention outside the block at which step (FlashBlock's calibration, section 3.3).

    Args:
        model: a diffusion language model.
        prompts: ids ``[B, P]``, each a generation of its own.
        gen_length: new tokens of each.
        similarity: least mean cosine similarity of the part outside, in [-1, 1].
        shift: largest mean change of its log-sum-exp, >= 0.
        steps: steps of a block that are told apart; later ones are like the last.
        decoder: as in the generations that it is for.
        over: as in :class:`diffcache.methods.language.FlashBlockConfig`; None: what the model's regime needs.
        on_step: called after each step, with the number of the prompt.
        asked: what else :func:`diffcache.llm.generate` takes: ``block_length``, ``steps`` of the whole are not.

    Raises:
        ConfigError: a value that is not valid.
        UnsupportedModelError: not a model that FlashBlock runs on.
    """
    check_number("similarity", similarity, -1.0, 1.0, whole=False)
    check_number("shift", shift, 0.0, 1e6, whole=False)
    check_number("steps", steps, 1, 10_000, whole=True)
    if not prompts:
        raise ConfigError("prompts: none given, calibration needs at least one")
    over = over or ("exact" if read_facts(model).causal else "dual")
    rule, config = make_decoder(decoder), FlashBlockConfig(over=over)
    shape = model.config.num_hidden_layers, model.config.num_attention_heads
    listener = HeadListener(*shape, steps, similarity, shift)
    defaults = dict(block_length=None, steps=None, mask_id=None, eos_id=None, attention_mask=None)
    for number, prompt in enumerate(prompts):
        heard = None if on_step is None else partial(on_step, number)
        loop = prepare(model, prompt, config, rule, None, heard, gen_length=gen_length, **{**defaults, **asked})
        loop.policy = policy = Listening(config, loop.policy.task)
        policy.listener = listener
        loop.run()
    facts = {"over": over, "block_length": policy.task.block_length, "similarity": similarity, "shift": shift}
    return HeadMask(listener.mask(), type(model).__name__, len(prompts), facts)
