"""Diffusion language models: decoders, ends of sequences, what is refused, and the ways to call."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import diffcache
from diffcache import ConfigError, UnsupportedModelError, accelerate_model, accelerated, list_methods, restore, supports
from diffcache.llm import DECODERS, Factor, Threshold, custom_generate, declare, generate, make_decoder, read_facts
from diffcache.llm.decoders.base import Sight, split_budget
from diffcache.llm.state import SequenceState

from .language import BLOCK_CAUSAL, COMMON, MASK, MODELS, llada, prompt, sdar
from .models import wan

# -- decoders ----------------------------------------------------------------------------------------------------------


def choose(decoder, logits, open, budget=0):
    batch, width = open.shape
    state = SequenceState(prompt(batch, 2), 2 + width, MASK)
    positions = torch.arange(2, 2 + width)[None]
    return decoder.choose(Sight(logits.clone(), positions, open, torch.full((batch, 1), budget), state))


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("scale", [0.0, 0.3, 5.0])
def test_a_decoder_takes_at_least_one_open_position_and_no_other(name, scale):
    draw = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(3, 7, 64, generator=draw)
    logits[..., MASK] = 100.0
    open = torch.tensor([[1] * 7, [0, 0, 1, 0, 0, 0, 1], [0] * 7], dtype=torch.bool)
    choice = choose(make_decoder(name), logits, open)
    assert not (choice.transfer & ~open).any()
    assert (choice.transfer.sum(1) >= torch.tensor([1, 1, 0])).all()
    assert (choice.tokens != MASK).all()


def test_budgets_add_up_to_the_block():
    count = torch.tensor([[7], [1], [0]])
    for steps in (1, 3, 7, 9):
        shares = [split_budget(count, steps, step) for step in range(steps)]
        assert torch.equal(sum(shares), count)
        assert all((a >= b).all() for a, b in itertools.pairwise(shares))


def test_a_larger_factor_or_a_smaller_threshold_takes_more():
    logits = 2 * torch.randn(4, 16, 64, generator=torch.Generator().manual_seed(1))
    open = torch.ones(4, 16, dtype=torch.bool)
    for make, values in ((lambda f: Factor(factor=f), (0.1, 0.5, 1, 4, 100)),
                         (lambda t: Threshold(threshold=1 - t), (0.0, 0.5, 0.8, 0.95, 1.0))):  # fmt: skip
        taken = [choose(make(value), logits, open).transfer for value in values]
        assert all((less <= more).all() for less, more in itertools.pairwise(taken))
        assert taken[-1].all()
        assert taken[0].sum() < taken[-1].sum()


def test_threshold_falls_back_to_the_budget():
    logits = torch.randn(1, 8, 64, generator=torch.Generator().manual_seed(2))
    taken = choose(Threshold(threshold=1.0), logits, torch.ones(1, 8, dtype=torch.bool), budget=3)
    assert taken.transfer.sum() == 3


@pytest.mark.parametrize("method", ["freecache", "window", "elastic"])
@pytest.mark.parametrize("steps", [4, 8, 16])
def test_topk_takes_the_steps_asked_for(steps, method):
    stats = generate(llada(), prompt(2), method, gen_length=16, block_length=8, steps=steps).stats
    assert stats.steps == steps
    assert stats.new_tokens == 32


def test_noise_is_that_of_the_generator():
    model = llada()
    runs = [
        generate(model, prompt(), gen_length=8, decoder_settings=dict(temperature=1.0),
                 generator=torch.Generator().manual_seed(seed)).sequences for seed in (0, 0, 1)
    ]  # fmt: skip
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


# -- ends --------------------------------------------------------------------------------------------------------------


ENDING = [
    (build, method)
    for build, regime in ((llada, "bidirectional"), (sdar, "block-causal"))
    for method, config in list_methods("language").items()
    if regime in config.regimes
]


@pytest.mark.parametrize(("build", "method"), ENDING)
def test_an_end_token_inside_a_block_ends_the_sequence(build, method):
    model, method = build(), "flashblock:dual" if (build, method) == (llada, "flashblock") else method
    free = generate(model, prompt(2), method, gen_length=32, block_length=8).sequences
    eos = int(free[0, 13 + 5])
    run = generate(model, prompt(2), method, gen_length=32, block_length=8, eos_id=eos)
    for row in run.sequences[:, 13:]:
        ends = (row == eos).nonzero()
        assert MASK not in row
        if len(ends):
            assert (row[int(ends[0]) :] == eos).all()
    assert run.stats.new_tokens == sum(min(((r != eos).sum() + 1).item(), 32) for r in run.sequences[:, 13:])
    assert run.stats.steps <= 35  # to the end of the last block of a grid


def test_stopping_is_idempotent():
    state = SequenceState(prompt(1, 4), 12, MASK, eos_id=7)
    state.write(torch.tensor([[6]]), torch.tensor([[7]]), torch.tensor([[True]]))
    assert state.open.nonzero()[:, 1].tolist() == [4, 5]
    state.write(torch.tensor([[4, 5]]), torch.tensor([[1, 2]]), torch.tensor([[True, True]]))
    assert not state.open.any()
    done = state.finished_ids()
    assert done[0, 4:].tolist() == [1, 2, 7, 7, 7, 7, 7, 7]
    state.write(torch.tensor([[8]]), torch.tensor([[3]]), torch.tensor([[False]]))
    assert torch.equal(state.finished_ids(), done)


# -- what is refused ---------------------------------------------------------------------------------------------------


def bare():
    return LlamaForCausalLM(LlamaConfig(**COMMON))


def other():
    return GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=8))


def padded(model, *method):
    return generate(model, prompt(), *method, attention_mask=(torch.arange(13) > 2)[None])


WRONG = {
    "causal model": (lambda: generate(bare(), prompt()), UnsupportedModelError, "causal .autoregressive."),
    "other layout": (lambda: generate(other(), prompt()),
                     UnsupportedModelError, "model type 'gpt2' does not run here, known: llama"),
    "not a model": (lambda: generate(torch.nn.Linear(2, 2), prompt()), UnsupportedModelError, "is not a language"),
    "no mask token": (lambda: generate(declare(bare()), prompt()), ConfigError, "mask_id: missing"),
    "mask beyond": (lambda: generate(llada(), prompt(), mask_id=64), ConfigError, "mask_id: 64"),
    "mask is eos": (lambda: generate(llada(), prompt(), eos_id=MASK), ConfigError, "eos_id: 63 is the mask token"),
    "block": (lambda: generate(llada(), prompt(), gen_length=20, block_length=8), ConfigError,
              "block_length: 8 does not divide gen_length 20"),
    "own block": (lambda: generate(sdar(), prompt(), block_length=4), ConfigError, "block_length: 4.*trained with 8"),
    "ragged": (lambda: generate(llada(), [[1, 2], [3]]), ConfigError, "rows of different length .1 to 2 tokens."),
    "floats": (lambda: generate(llada(), torch.rand(1, 3)), ConfigError, "input_ids: shape"),
    "right padding": (lambda: generate(llada(), prompt(), attention_mask=(torch.arange(13) < 9)[None]), ConfigError,
                      "attention_mask: padding inside or right"),
    "mask shape": (lambda: generate(llada(), prompt(), attention_mask=torch.ones(1, 4)), ConfigError,
                   "attention_mask: shape"),
    "policy without padding": (lambda: padded(llada(), "sparse-dllm"), ConfigError,
                               "attention_mask: sparse-dllm cannot honour padding"),
    "padded blocks": (lambda: padded(sdar()), ConfigError, "its blocks would begin elsewhere"),
    "regime": (lambda: generate(sdar(), prompt(), "elastic"), UnsupportedModelError, "block-causal model are exact"),
    "denoiser's method": (lambda: generate(llada(), prompt(), "worldcache"), UnsupportedModelError, "for denoisers"),
    "field": (lambda: generate(llada(), prompt(), "elastic", wndow=1), ConfigError, "unknown field 'wndow'.*window"),
    "id": (lambda: generate(llada(), prompt() + 10**6), ConfigError, "input_ids: .* from 0 to"),
    "list": (lambda: generate(llada(), [1, 2, 3]), ConfigError, "input_ids: list is not a tensor"),
    "decoder": (lambda: generate(llada(), prompt(), decoder="treshold:tau=1"), ConfigError, "unknown decoder"),
    "decoder field": (lambda: generate(llada(), prompt(), decoder_settings=dict(tau=1)), ConfigError,
                      "unknown field 'tau'"),
    "threshold": (lambda: Threshold(threshold=2), ConfigError, "threshold: 2"),
    "temperature": (lambda: Threshold(temperature=-1), ConfigError, "temperature: -1"),
    "steps": (lambda: generate(llada(), prompt(), steps=0), ConfigError, "steps: 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_refused_with_one_line(case):
    call, error, text = WRONG[case]
    with pytest.raises(error, match=text) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_a_method_for_the_other_kind_is_refused():
    with pytest.raises(UnsupportedModelError, match="freecache is a method for diffusion language models"):
        diffcache.estimate_memory(wan(), "freecache")
    with pytest.raises(UnsupportedModelError, match="not a language model"):
        accelerate_model(wan(), "freecache")
    with pytest.raises(UnsupportedModelError, match=r"takes one of list_methods\('language'\)"):
        accelerate_model(llada(), "worldcache")
    assert not supports(wan(), "freecache")
    assert "WanTransformer3DModel" in supports(wan(), "freecache").reason
    assert not supports(llada(), "worldcache")


SUPPORT = {("llada", "vanilla"): "exact", ("llada", "freecache"): "works", ("sdar", "freecache"): "exact",
           ("sdar", "elastic"): "refused", ("dream", "elastic"): "works"}  # fmt: skip


@pytest.mark.parametrize("case", SUPPORT)
def test_supports(case):
    assert supports(MODELS[case[0]](), case[1]).status == SUPPORT[case]


# -- ways to call ------------------------------------------------------------------------------------------------------


def test_the_handle_and_its_numbers():
    model = llada()
    assert accelerate_model(model, "fast-dllm:prefix") is model
    run = model.diffcache.generate(prompt(2), gen_length=16, block_length=8, decoder="threshold")
    assert torch.equal(
        run.sequences,
        generate(model, prompt(2), "fast-dllm:prefix", gen_length=16, block_length=8, decoder="threshold").sequences,
    )
    stats = model.diffcache.stats()
    assert stats is run.stats
    assert json.loads(json.dumps(stats.to_dict()))["tokens_per_second"] > 0
    assert "forwards" in str(stats)
    assert "tokens/s" in str(stats)
    with accelerated(model, "elastic"):
        assert model.diffcache.config.method == "elastic"
    assert model.diffcache.config.method == "fast-dllm"
    with pytest.raises(UnsupportedModelError, match=r"model\.diffcache\.generate"):
        with diffcache.denoising(model, 3):
            pass
    model.diffcache.reset()
    assert model.diffcache.stats() is None
    restore(model)
    assert not hasattr(model, "diffcache")


@pytest.mark.parametrize("name", ["llada", "sdar"])
def test_generate_of_transformers_takes_it(name):
    model = MODELS[name]()
    more = {} if name in BLOCK_CAUSAL else {"block_length": 8}
    want = generate(model, prompt(2), "freecache", gen_length=16, decoder="threshold", **more).sequences
    got = model.generate(
        prompt(2), custom_generate=custom_generate("freecache"), max_new_tokens=16, decoder="threshold", **more
    )
    assert torch.equal(got, want)
    accelerate_model(model, "freecache")
    got = model.generate(
        prompt(2), custom_generate=model.diffcache.custom_generate, max_new_tokens=16, decoder="threshold", **more
    )
    assert torch.equal(got, want)
    assert model.diffcache.stats().new_tokens == 32
    with pytest.raises(ConfigError, match=r"logits_processor: .* would not be applied"):
        model.generate(prompt(1), custom_generate=custom_generate(), max_new_tokens=8, do_sample=True, top_k=3)


def test_a_declaration_is_saved_with_the_model(tmp_path):
    sdar().save_pretrained(tmp_path)
    from transformers import AutoModelForCausalLM

    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert read_facts(again) == read_facts(sdar())


def test_an_exception_leaves_the_model_as_it_was():
    model = llada()
    before = model.config._attn_implementation

    def stop(state):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(model, prompt(), "elastic", gen_length=8, on_step=stop)
    assert model.config._attn_implementation == before
    assert "_diffcache_attending" not in vars(model)
