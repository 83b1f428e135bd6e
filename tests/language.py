"""Tiny diffusion language models with random weights, one of each family, and plain generations to compare with."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from diffcache.llm import TopK, declare, read_facts
from diffcache.llm.driver import Loop, language_config
from diffcache.llm.passes import attending
from diffcache.llm.plan import StepPlan
from diffcache.llm.policies import Task, make_policy
from diffcache.llm.request import Request
from diffcache.zoo import list_language_models, load_language_model, load_problems

VOCABULARY, MASK, BLOCK = 64, 63, 8

COMMON = dict(
    vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, initializer_range=0.2, bos_token_id=None, eos_token_id=None, pad_token_id=None,
)  # fmt: skip
EXPERTS = dict(
    moe_intermediate_size=32, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1, first_k_dense_replace=1,
    n_group=2, topk_group=1, use_qk_norm=True, head_dim=16,
)  # fmt: skip
CAUSAL = dict(regime="block-causal", block_length=BLOCK)


def _build(model: type, config: Any, **facts: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return declare(model(config).eval(), mask_id=MASK, **facts)


def llada() -> torch.nn.Module:
    return _build(LlamaForCausalLM, LlamaConfig(**COMMON))


def dream() -> torch.nn.Module:
    return _build(Qwen2ForCausalLM, Qwen2Config(**COMMON))


def sdar() -> torch.nn.Module:
    return _build(Qwen3ForCausalLM, Qwen3Config(**COMMON, head_dim=16), **CAUSAL)


def llada2() -> torch.nn.Module:
    return _build(Glm4MoeForCausalLM, Glm4MoeConfig(**COMMON, **EXPERTS), **CAUSAL)


BIDIRECTIONAL: dict[str, Callable[[], torch.nn.Module]] = {"llada": llada, "dream": dream}
BLOCK_CAUSAL: dict[str, Callable[[], torch.nn.Module]] = {"sdar": sdar, "llada2": llada2}
MODELS = {**BIDIRECTIONAL, **BLOCK_CAUSAL}


@cache
def _loaded(name: str) -> Any:
    return load_language_model(name)


def trained(name: str) -> torch.nn.Module:
    """A model that ships; the laws hold on what has learned something, too."""
    return _loaded(name)[0]


def _shipped(regime: str) -> dict[str, Callable[[], torch.nn.Module]]:
    known = list_language_models()
    return {name: partial(trained, name) for name, e in known.items() if e.embedded and e.regime == regime}


#: with the trained ones, for the laws of specs/dllm.md, section 8.6
FULL = {**BIDIRECTIONAL, **_shipped("bidirectional")}
CHUNKED = {**BLOCK_CAUSAL, **_shipped("block-causal")}
EVERY = {**FULL, **CHUNKED}


def prompt(batch: int = 1, length: int = 13, seed: int = 1) -> Tensor:
    """Random ids ``[batch, length]`` without the mask token."""
    return torch.randint(0, VOCABULARY - 2, (batch, length), generator=torch.Generator().manual_seed(seed))


def question(name: str, batch: int = 2) -> Tensor:
    """What a model is asked ``[batch, length]``: random ids, of a trained one held-out problems of one length."""
    if name in MODELS:
        return prompt(batch)
    tokenizer = _loaded(name)[1]
    ids = [tokenizer(problem.question).input_ids for problem in load_problems("binary_matrix", batch)]
    return torch.tensor(ids)


@torch.no_grad()
def native_logits(model: torch.nn.Module, ids: Tensor, block: int | None = None) -> Tensor:
    """What transformers' own forward gives on whole sequences, under a block-causal mask if ``block`` is given."""
    mask = None
    if block is not None:
        blocks = torch.arange(ids.shape[1]) // block
        mask = (blocks[:, None] >= blocks[None, :])[None, None]
    return model(ids, attention_mask=mask, use_cache=False).logits


def bench(model: torch.nn.Module, method: Any, length: int = 37, start: int = 13, block: int = BLOCK) -> Loop:
    """A generation that was not begun, for plans of one's own: random ids everywhere, the last block under way."""
    config, facts = language_config(method), read_facts(model)
    block = facts.block_length or block
    first = start // block * block if facts.causal else start
    end = first + -(-(length - first) // block) * block
    policy = make_policy(config, Task(facts, start, end, block, model))
    request = Request(prompt(2, start), None, end - start, end, block, None, facts.mask_id, None)
    loop = Loop(model, request, policy, TopK(), None, None)
    loop.state.ids[:] = prompt(2, end, seed=2)
    loop.state.block = policy.blocks()[-1]
    return loop


def logits_of(loop: Loop, plan: StepPlan) -> Tensor:
    """What a plan predicts."""
    with attending(loop.runner.model):
        return loop.runner.forward(plan, loop.policy, loop.state)
