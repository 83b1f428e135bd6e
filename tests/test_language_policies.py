"""Policies for diffusion language models: what they must equal, and what they compute."""

from __future__ import annotations

import pytest
import torch

from diffcache import list_methods
from diffcache.llm import generate, read_facts
from diffcache.llm.decoders import make_decoder
from diffcache.llm.driver import language_config, prepare
from diffcache.llm.policies.block import FastDLLM
from diffcache.llm.policies.elastic import Elastic

from .language import BLOCK_CAUSAL, CHUNKED, EVERY, FULL, MODELS, bench, logits_of, native_logits, prompt, question

CLOSE = dict(rtol=0.0, atol=2e-5)

#: settings under which nothing is left out of sight
WHOLE = {
    "vanilla": "",
    "freecache": "",
    "fast-dllm:prefix": "",
    "fast-dllm:dual": "",
    "fast-dllm:vicinity": ",before=3,behind=3",
    "window": ":active=6,window=64",
    "dkv": "",
    "sparse-dllm": ":keep=1",
    "elastic": ":window=6",
    "elastic:drift=key,gamma=-2": ",window=6,cache_masks=false",
    "dllm-cache": "",
    "d2cache": ":masks=4",
}


@pytest.mark.parametrize("method", [name + rest for name, rest in WHOLE.items()])
@pytest.mark.parametrize("name", FULL)
def test_while_no_id_changes_every_step_equals_the_full_pass(name, method):
    loop = bench(model := FULL[name](), method)
    state, policy = loop.state, loop.policy
    native = native_logits(model, state.ids)
    for _ in range(5):
        plan = policy.plan(state)
        got = logits_of(loop, plan)
        torch.testing.assert_close(got, plan.want.shifted(-policy.shift).take(native), **CLOSE)
        policy.read(state, plan.want, got)
        policy.after(state, torch.zeros_like(state.masked))
        state.step += 1
        state.block_step += 1


def same(a, b):
    return torch.equal(a.sequences, b.sequences)


ALWAYS = {
    "dllm-cache:prompt_interval=1,response_interval=1,ratio=0.1": "vanilla",
    "dkv:refresh=1": "vanilla",
    "freecache:warmup=1000": "vanilla",
    "fast-dllm:every=1": "vanilla",
    "window:active=16,refresh=1,window=64": "vanilla",
    "d2cache:warmup=1000": "vanilla",
    "elastic:warmup=1000,window=16": "vanilla",
    "sparse-dllm:warmup=1000": "vanilla",
}


@pytest.mark.parametrize("method", ALWAYS)
@pytest.mark.parametrize("name", FULL)
def test_a_method_that_always_refreshes_is_vanilla(name, method):
    model = FULL[name]()
    settings = dict(gen_length=16, block_length=16, decoder="threshold", decoder_settings=dict(threshold=0.4))
    run = generate(model, question(name), method, **settings)
    assert same(run, generate(model, question(name), "vanilla", **settings))
    assert run.stats.full_forwards == run.stats.forwards
    assert run.stats.row_share == 1.0


@pytest.mark.parametrize("method", [m for m, c in list_methods("language").items() if "block-causal" in c.regimes])
@pytest.mark.parametrize("name", CHUNKED)
def test_block_causal_methods_that_are_exact_change_no_token(name, method):
    model = CHUNKED[name]()
    settings = dict(gen_length=20, decoder="threshold", decoder_settings=dict(threshold=0.4))
    run = generate(model, question(name), method, **settings)
    if list_methods()[method]().exact_on("block-causal"):
        assert same(run, generate(model, question(name), "vanilla", **settings))
    assert run.sequences.shape == (2, question(name).shape[1] + 20)


@pytest.mark.parametrize("method", [name for name in list_methods("language") if name != "elastic"])
@pytest.mark.parametrize("name", MODELS)
def test_a_sample_does_not_depend_on_its_companions(name, method):
    """elastic refreshes for all where one drifts."""
    model, both = MODELS[name](), prompt(2)
    if name in FULL and method == "flashblock":
        method = "flashblock:dual"
    elif read_facts(model).regime not in list_methods()[method].regimes:
        pytest.skip("another regime")
    settings = dict(gen_length=16, decoder="threshold", decoder_settings=dict(threshold=0.4))
    settings |= {} if name in BLOCK_CAUSAL else dict(block_length=8)
    together = generate(model, both, method, **settings).sequences
    assert torch.equal(together[:1], generate(model, both[:1], method, **settings).sequences)


# -- elastic -----------------------------------------------------------------------------------------------------------


def rows_of(name, method, steps=6):
    loop = bench(FULL[name](), method)
    state, policy = loop.state, loop.policy
    counts = []
    for _ in range(steps):
        plan = policy.plan(state)
        before = loop.tally.row_layers
        logits_of(loop, plan)
        counts.append((plan.rows.count, loop.tally.row_layers - before))
        policy.after(state, torch.zeros_like(state.masked))
        state.step += 1
    return loop.state.length, read_facts(loop.runner.model).layers, counts


@pytest.mark.parametrize("name", FULL)
def test_elastic_with_a_gamma_above_one_refreshes_above_the_first_layer(name):
    length, layers, counts = rows_of(name, "elastic:gamma=2,window=6")
    assert counts[0] == (length, layers * length)
    assert all(computed == rows + (layers - 1) * length for rows, computed in counts[1:])


@pytest.mark.parametrize("name", FULL)
def test_elastic_with_a_gamma_below_minus_one_never_refreshes(name):
    length, layers, counts = rows_of(name, "elastic:gamma=-2,window=6")
    assert all(computed == layers * rows < layers * length for rows, computed in counts[1:])


class Forced(Elastic):
    """Drifts at one layer."""

    at = 0

    def hear_after(self, current, layer, q, k, scale):
        super().hear_after(current, layer, q, k, scale)
        self._drifted = self._drifted or (layer == self.at and current.rows is not self._everything)


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("name", FULL)
def test_elastic_may_widen_at_any_layer(name, at):
    loop = bench(model := FULL[name](), "elastic:gamma=-2,window=6")
    loop.policy.__class__, loop.policy.at = Forced, at
    state = loop.state
    native = native_logits(model, state.ids)
    for state.step in range(3):
        plan = loop.policy.plan(state)
        before = loop.tally.row_layers
        torch.testing.assert_close(logits_of(loop, plan), plan.want.shifted(-loop.policy.shift).take(native), **CLOSE)
        computed = loop.tally.row_layers - before
        loop.policy.after(state, torch.zeros_like(state.masked))
    layers = read_facts(model).layers
    assert computed == plan.rows.count * (at + 1) + state.length * (layers - 1 - at)


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_bytes_are_those_of_the_formulas(name):
    model, batch = EVERY[name](), 2
    facts, config = read_facts(model), model.config
    own = facts.block_length
    asked = dict(gen_length=16) | ({} if own else dict(block_length=8))
    length = 13 + 16 if own is None else -(-29 // own) * own
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width, queries, layers = config.num_key_value_heads * head, config.num_attention_heads * head, facts.layers
    methods = [m for m, c in list_methods("language").items() if facts.regime in c.regimes and m != "flashblock"]
    held = {method: generate(model, prompt(batch), method, **asked).stats for method in methods}
    assert held.pop("vanilla").kv_bytes == 0
    for method, stats in held.items():
        assert stats.kv_bytes == 2 * layers * batch * length * width * 4, method
    block = 8 + facts.shift  # with the row that predicts its first position
    kept = int(0.5 * (length - block)) + block
    besides = {"elastic": layers * batch * length * (config.hidden_size + queries) * 4,
               "dllm-cache": 2 * layers * batch * length * config.hidden_size * 4,
               "sparse-dllm": 2 * layers * batch * kept * width * 4}  # fmt: skip
    assert {method: stats.residual_bytes for method, stats in held.items()} == {m: besides.get(m, 0) for m in held}


class Delayed(FastDLLM):
    """Dual, with a second full pass in each block."""

    def plan(self, state):
        return self.full(state) if state.block_step < 2 else super().plan(state)


@pytest.mark.parametrize("name", FULL)
def test_sparse_that_keeps_every_key_is_dual_delayed_by_one_step(name):
    model, asked = FULL[name](), dict(gen_length=24, block_length=None, steps=None, mask_id=None, eos_id=None)
    rule = make_decoder("threshold", threshold=0.4)
    asked |= dict(attention_mask=None, block_length=8)
    methods = "fast-dllm", "sparse-dllm:keep=1"
    loops = [prepare(model, question(name), language_config(m), rule, **asked) for m in methods]
    loops[0].policy.__class__ = Delayed
    dual, sparse = (loop.run() for loop in loops)
    assert same(dual, sparse)
    assert dual.stats.full_forwards == sparse.stats.full_forwards
    assert dual.stats.rows == sparse.stats.rows


def test_rows_are_counted_as_computed():
    stats = generate(MODELS["llada"](), prompt(), "fast-dllm:dual", gen_length=16, block_length=8).stats
    assert (stats.steps, stats.forwards, stats.full_forwards) == (16, 16, 2)
    assert stats.rows == 2 * 29 + 14 * 8
    assert stats.row_layers == 3 * stats.rows
