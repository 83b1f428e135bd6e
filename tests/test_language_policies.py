"""Policies for diffusion language models: what they must equal, and what they compute."""

from __future__ import annotations

import pytest
import torch

from diffcache import list_methods
from diffcache.llm import generate, read_facts
from diffcache.llm.policies.elastic import Elastic

from .language import BIDIRECTIONAL, BLOCK_CAUSAL, MODELS, bench, logits_of, native_logits, prompt

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
@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_while_no_id_changes_every_step_equals_the_full_pass(name, method):
    loop = bench(model := BIDIRECTIONAL[name](), method)
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
@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_a_method_that_always_refreshes_is_vanilla(name, method):
    model = BIDIRECTIONAL[name]()
    settings = dict(gen_length=16, block_length=16, decoder="threshold", decoder_settings=dict(threshold=0.4))
    run = generate(model, prompt(2), method, **settings)
    assert same(run, generate(model, prompt(2), "vanilla", **settings))
    assert run.stats.full_forwards == run.stats.forwards
    assert run.stats.row_share == 1.0


@pytest.mark.parametrize("method", [m for m, c in list_methods("language").items() if "block-causal" in c.regimes])
@pytest.mark.parametrize("name", BLOCK_CAUSAL)
def test_block_causal_methods_that_are_exact_change_no_token(name, method):
    model = BLOCK_CAUSAL[name]()
    settings = dict(gen_length=20, decoder="threshold", decoder_settings=dict(threshold=0.4))
    run = generate(model, prompt(2), method, **settings)
    if list_methods()[method]().exact_on("block-causal"):
        assert same(run, generate(model, prompt(2), "vanilla", **settings))
    assert run.sequences.shape == (2, 33)


@pytest.mark.parametrize("method", [name for name in list_methods("language") if name != "elastic"])
@pytest.mark.parametrize("name", MODELS)
def test_a_sample_does_not_depend_on_its_companions(name, method):
    """elastic refreshes for all where one drifts."""
    model, both = MODELS[name](), prompt(2)
    if name in BIDIRECTIONAL and method == "flashblock":
        method = "flashblock:dual"
    elif read_facts(model).regime not in list_methods()[method].regimes:
        pytest.skip("another regime")
    settings = dict(gen_length=16, decoder="threshold", decoder_settings=dict(threshold=0.4))
    settings |= {} if name in BLOCK_CAUSAL else dict(block_length=8)
    together = generate(model, both, method, **settings).sequences
    assert torch.equal(together[:1], generate(model, both[:1], method, **settings).sequences)


# -- elastic -----------------------------------------------------------------------------------------------------------


def rows_of(method, steps=6):
    loop = bench(MODELS["llada"](), method)
    state, policy = loop.state, loop.policy
    counts = []
    for _ in range(steps):
        plan = policy.plan(state)
        before = loop.tally.row_layers
        logits_of(loop, plan)
        counts.append((plan.rows.count, loop.tally.row_layers - before))
        policy.after(state, torch.zeros_like(state.masked))
        state.step += 1
    return loop.state.length, counts


def test_elastic_with_a_gamma_above_one_refreshes_above_the_first_layer():
    length, counts = rows_of("elastic:gamma=2,window=6")
    assert counts[0] == (length, 3 * length)
    assert all(computed == rows + 2 * length for rows, computed in counts[1:])


def test_elastic_with_a_gamma_below_minus_one_never_refreshes():
    length, counts = rows_of("elastic:gamma=-2,window=6")
    assert all(computed == 3 * rows < 3 * length for rows, computed in counts[1:])


class Forced(Elastic):
    """Drifts at one layer."""

    at = 0

    def hear_after(self, current, layer, q, k, scale):
        super().hear_after(current, layer, q, k, scale)
        self._drifted = self._drifted or (layer == self.at and current.rows is not self._everything)


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_elastic_may_widen_at_any_layer(name, at):
    loop = bench(model := BIDIRECTIONAL[name](), "elastic:gamma=-2,window=6")
    loop.policy.__class__, loop.policy.at = Forced, at
    state = loop.state
    native = native_logits(model, state.ids)
    for state.step in range(3):
        plan = loop.policy.plan(state)
        before = loop.tally.row_layers
        torch.testing.assert_close(logits_of(loop, plan), plan.want.shifted(-loop.policy.shift).take(native), **CLOSE)
        computed = loop.tally.row_layers - before
        loop.policy.after(state, torch.zeros_like(state.masked))
    assert computed == plan.rows.count * (at + 1) + state.length * (2 - at)


# -- memory ------------------------------------------------------------------------------------------------------------


def test_residual_bytes_are_those_of_the_formulas():
    model, batch, length = MODELS["llada"](), 2, 13 + 16
    config, layers = model.config, 3
    width = config.num_key_value_heads * config.head_dim
    held = {m: generate(model, prompt(batch), m, gen_length=16, block_length=8).stats for m in list_methods("language")
            if m != "flashblock"}  # fmt: skip
    assert held["vanilla"].kv_bytes == 0
    for method, stats in held.items():
        if method != "vanilla":
            assert stats.kv_bytes == 2 * layers * batch * length * width * 4, method
    queries = config.num_attention_heads * config.head_dim
    assert held["elastic"].residual_bytes == layers * batch * length * (config.hidden_size + queries) * 4
    assert held["dllm-cache"].residual_bytes == 2 * layers * batch * length * config.hidden_size * 4
    kept = int(0.5 * (length - 8)) + 8
    assert held["sparse-dllm"].residual_bytes == 2 * layers * batch * kept * width * 4
    assert held["freecache"].residual_bytes == 0


def test_rows_are_counted_as_computed():
    stats = generate(MODELS["llada"](), prompt(), "fast-dllm:dual", gen_length=16, block_length=8).stats
    assert (stats.steps, stats.forwards, stats.full_forwards) == (16, 16, 2)
    assert stats.rows == 2 * 29 + 14 * 8
    assert stats.row_layers == 3 * stats.rows
