"""The loop: block by block, step by step, a plan, a forward, a choice."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..methods import make_config
from ..methods.base import NamedConfig
from ..methods.language import LanguageConfig
from .branches import Branches, guided, twice
from .decoders import Decoder, Guided, make_decoder
from .decoders.base import Sight, split_budget
from .families import read_facts
from .passes import attending
from .policies import Policy, Task, make_policy
from .request import Request, make_request
from .runner import Runner
from .state import SequenceState
from .stats import GenerationStats, Tally


@dataclass(frozen=True, eq=False)
class Generation:
    """What comes back.

    Attributes:
        sequences: ids ``[B, P + gen_length]``; behind the first end token of a sequence stand end tokens.
        stats: what was computed.
    """

    sequences: Tensor
    stats: GenerationStats


def language_config(method: Any, **overrides: Any) -> LanguageConfig:
    """The settings of a language model's method.

    Raises:
        ConfigError: unknown name or field, or a value out of range.
        UnsupportedModelError: a method for denoisers.
    """
    config: NamedConfig = make_config(method, **overrides)
    if not isinstance(config, LanguageConfig):
        raise UnsupportedModelError(f"{config.method} is a method for denoisers, not for diffusion language models")
    return config


def generate(
    model: nn.Module,
    input_ids: Tensor,
    method: Any = "vanilla",
    *,
    gen_length: int = 128,
    block_length: int | None = None,
    steps: int | None = None,
    mask_id: int | None = None,
    eos_id: int | None = None,
    decoder: str | Decoder = "topk",
    attention_mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    on_step: Callable[[SequenceState], None] | None = None,
    decoder_settings: dict[str, Any] | None = None,
    guide: nn.Module | None = None,
    cfg_scale: float = 0.0,
    **overrides: Any,
) -> Generation:
    """Generate with a diffusion language model.

    Args:
        model: of a class in :data:`diffcache.llm.FAMILIES` that is a diffusion language model (see ``declare``).
        input_ids: prompts ``[B, P]``, of one length or padded on the left.
        method: name, name with settings, configuration, or path; see ``list_methods("language")``.
        gen_length: new tokens.
        block_length: tokens of a block; of a block-causal model its own.
        steps: denoising steps in all, shared out over the blocks. None: the decoder decides (``topk``: one token each).
        mask_id, eos_id: by default those in the model's configuration.
        decoder: ``topk``, ``threshold``, ``factor``, ``entropy``, or a decoder object.
        attention_mask: ``[B, P]``, 0 at padding.
        generator: of the decoder's noise.
        on_step: called after each step.
        decoder_settings: of a decoder given by name.
        guide: a causal language model that says how many drafted tokens hold, instead of ``decoder``
            (:class:`diffcache.llm.Guided`, whose settings ``decoder_settings`` are then).
        cfg_scale: of classifier-free guidance, LLaDA's: every step computes the sequences a second time with masked
            prompts, and decodes from ``u + (cfg_scale + 1) * (l - u)``. 0: without.
        overrides: fields of the method.

    Raises:
        ConfigError: a value that is not valid.
        UnsupportedModelError: not a diffusion language model, or one that the method does not run on.
    """
    settings = decoder_settings or {}
    rule = make_decoder(decoder, **settings) if guide is None else Guided(guide=guide, **settings)
    loop = prepare(
        model, input_ids, language_config(method, **overrides), rule, generator, on_step,
        gen_length=gen_length, block_length=block_length, steps=steps, mask_id=mask_id, eos_id=eos_id,
        attention_mask=attention_mask, cfg_scale=cfg_scale,
    )  # fmt: skip
    return loop.run()


def prepare(
    model: nn.Module,
    input_ids: Tensor,
    config: LanguageConfig,
    decoder: Decoder,
    generator: torch.Generator | None = None,
    on_step: Callable[[SequenceState], None] | None = None,
    **asked: Any,
) -> Loop:
    """The generation that :func:`generate` runs; its policy may be exchanged before."""
    facts = read_facts(model)
    request = make_request(model, facts, config, input_ids, **asked)
    task = Task(facts, request.prompt.shape[1], request.length, request.block_length, model)
    return Loop(model, request, make_policy(config, task), decoder, generator, on_step)


class Loop:
    """One generation under way."""

    def __init__(
        self,
        model: nn.Module,
        request: Request,
        policy: Policy,
        decoder: Decoder,
        generator: torch.Generator | None,
        on_step: Callable[[SequenceState], None] | None,
    ) -> None:
        self.request, self.policy = request, policy
        self.generator, self.on_step = generator, on_step
        self.tally = Tally()
        self.runner = Runner(model, policy.task.facts, self.tally)
        self.state = SequenceState(request.prompt, request.length, request.mask_id, request.eos_id, request.padding)
        self.decoder = decoder.begin(self.state)
        #: what the policy and the runner see of the sequences
        self.seen: Any = Branches(self.state) if request.cfg_scale else self.state

    def run(self) -> Generation:
        """Decode every block."""
        with attending(self.runner.model):
            return self._run()

    def _run(self) -> Generation:
        began = time.perf_counter()
        blocks = self.policy.blocks()
        steps = _shares(self.request.steps, len(blocks))
        self._only_write(self.policy.prefill(self.seen), blocks[0])
        for block, budget in zip(blocks, steps):
            if not self._decode(block, budget):
                break
        return self._result(time.perf_counter() - began)

    def _decode(self, block: tuple[int, int], steps: int | None) -> bool:
        """One block; False when every sequence has ended."""
        state, policy = self.state, self.policy
        state.block, state.block_step = block, 0
        count = state.open[:, block[0] : block[1]].sum(1, keepdim=True)  # of a window policy, the whole canvas
        while self._glance(policy.decodable(self.seen).any()):
            self._step(count, steps)
        self._refine(count)
        if not bool(state.open.any()):
            return False
        self._only_write(policy.commit(self.seen), block)
        return True

    def _refine(self, count: Tensor) -> None:
        """Further steps on a full block, until a decoder that edits changes nothing more."""
        for _ in range(self.decoder.post_steps):
            edits = self._step(count, None)
            if edits is None or not self._glance(edits.any()):
                return

    def _glance(self, flag: Tensor) -> bool:
        """``flag``, 0-d, and what the policy asks, in the one read of the device a step."""
        asked = self.policy.asks()
        if asked is None:
            return bool(flag)
        flag, *answer = torch.cat([flag.view(1), asked]).tolist()
        self.policy.told(answer)
        return flag

    def _step(self, count: Tensor, steps: int | None) -> Tensor | None:
        """One step; where a decoded token was replaced, bool ``[B, W]``, for decoders that do."""
        state, seen, policy = self.state, self.seen, self.policy
        plan = policy.plan(seen)
        logits = self.runner.forward(plan, policy, seen)
        if self.request.cfg_scale:
            logits = guided(logits, self.request.cfg_scale)
        policy.read(seen, plan.want, logits if seen is state else twice(logits))
        positions = plan.want.positions(state.ids.device)[: len(state.ids)]  # the same in both branches
        open = plan.want.take(policy.decodable(seen))[: len(state.ids)]
        if plan.want.index is not None:
            open[:, 1:] &= positions.diff(dim=1) != 0  # a sample with fewer positions repeats its last one
        budget = torch.zeros_like(count) if steps is None else split_budget(count, steps, state.block_step)
        choice = self.decoder.choose(Sight(logits, positions, open, budget, state, self.generator))
        before = state.ids
        state.write(positions, choice.tokens, choice.transfer)
        self.tally.steps += 1
        self.tally.dense += state.length if not policy.task.facts.causal else state.block[1]
        changed = before != state.ids
        policy.after(seen, changed if seen is state else twice(changed))
        if self.on_step is not None:
            self.on_step(state)
        state.step += 1
        state.block_step += 1
        return choice.edits

    def _only_write(self, plan: Any, block: tuple[int, int]) -> None:
        if plan is not None:
            self.state.block = block
            self.runner.forward(plan, self.policy, self.seen)

    def _result(self, seconds: float) -> Generation:
        state, tally, request, facts = self.state, self.tally, self.request, self.policy.task.facts
        stop = state.prompt_length + request.gen_length
        ends = torch.minimum(state.end + 1, torch.full_like(state.end, stop))
        stats = replace(
            tally.stats(self.policy.config.method, self.decoder.name, facts.layers),
            batch=len(state.ids),
            prompt_tokens=state.prompt_length,
            length=stop,
            new_tokens=int((ends - state.prompt_length).sum()),
            guide_forwards=getattr(self.decoder, "forwards", 0),
            guide_rows=getattr(self.decoder, "rows", 0),
            seconds=seconds,
            notes=("guided: every row was computed with the prompt and without",) if request.cfg_scale else (),
        )
        return Generation(state.finished_ids()[:, :stop], stats)


def _shares(steps: int | None, blocks: int) -> list[int | None]:
    """Steps of each block."""
    if steps is None:
        return [None] * blocks
    return [max(steps // blocks + (block < steps % blocks), 1) for block in range(blocks)]
