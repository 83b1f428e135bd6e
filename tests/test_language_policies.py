"""Policies for diffusion language models: what they must equal, and what they compute."""

from __future__ import annotations

import pytest
import torch

from diffcache import list_methods
from diffcache.llm import generate, read_facts
from diffcache.llm.decoders import make_decoder
from diffcache.llm.driver import language_config, prepare
from diffcache.llm.policies.block import FastDLLM
from diffcache.llm.policies.d2cache import column_mass
from diffcache.llm.policies.elastic import Elastic
from diffcache.llm.policies.increments import DLLMCache
from diffcache.llm.rows import Rows

from .language import (
    BIDIRECTIONAL,
    BLOCK_CAUSAL,
    CHUNKED,
    EVERY,
    FULL,
    MODELS,
    bench,
    logits_of,
    native_logits,
    prompt,
    question,
)

CLOSE = dict(rtol=0.0, atol=2e-5)

#: settings under which nothing is left out of sight
WHOLE = {
    "vanilla": "",
    "freecache": "",
    "freecache:block": "",
    "fast-dllm:prefix": "",
    "fast-dllm:dual": "",
    "fast-dllm:vicinity": ",before=3,behind=3",
    "window": ":active=6,window=64",
    "dkv": "",
    "sparse-dllm": ":keep=1",
    "elastic": ":window=6",
    "elastic:drift=key,threshold=-2": ",window=6,cache_masks=false",
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
def test_elastic_with_a_threshold_above_one_refreshes_above_the_first_layer(name):
    length, layers, counts = rows_of(name, "elastic:threshold=2,window=6")
    assert counts[0] == (length, layers * length)
    assert all(computed == rows + (layers - 1) * length for rows, computed in counts[1:])


@pytest.mark.parametrize("name", FULL)
def test_elastic_with_a_threshold_below_minus_one_never_refreshes(name):
    length, layers, counts = rows_of(name, "elastic:threshold=-2,window=6")
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
    loop = bench(model := FULL[name](), "elastic:threshold=-2,window=6")
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


@pytest.mark.parametrize("name", FULL)
def test_elastic_that_always_drifts_has_exact_keys_in_the_first_layer(name):
    """Ids change there, unlike above: each changed one is among the rows of the step behind."""
    loop = bench(FULL[name](), "elastic:threshold=2,window=6")
    state, policy = loop.state, loop.policy
    for state.step in range(4):
        logits_of(loop, plan := policy.plan(state))
        held = policy.kv.read(0, state.length)[0].clone()
        exact = bench(loop.runner.model, "elastic:warmup=9,window=6")
        exact.state.ids[:], exact.state.masked[:] = state.ids, state.masked
        logits_of(exact, exact.policy.plan(exact.state))
        torch.testing.assert_close(held, exact.policy.kv.read(0, state.length)[0], **CLOSE)
        before = state.ids
        state.write(
            plan.want.positions(state.ids.device)[:, :2], torch.full((2, 2), state.step + 1), torch.tensor(True)
        )
        policy.after(state, before != state.ids)


def test_drift_is_compared_across_heads_or_across_keys_and_padding_counts_in_neither():
    past, now = torch.rand(2, 2, 4, 3, 7, generator=torch.Generator().manual_seed(0)).softmax(-1)
    for drift, axis in (("head", 1), ("key", 3)):
        policy = bench(MODELS["llada"](), f"elastic:drift={drift}").policy
        cosine = (past * now).sum(axis) / (past.norm(dim=axis) * now.norm(dim=axis))
        torch.testing.assert_close(policy._similarity(past, now, None), cosine.mean((1, 2)))
        seen = (torch.arange(7) > 1).expand(2, -1)
        padded = [torch.where(seen[:, None, None], t, 0.0) for t in (past, now)]
        alone = policy._similarity(past[..., 2:], now[..., 2:], None)
        torch.testing.assert_close(policy._similarity(*padded, seen), alone)


# -- window, dllm-cache, d2cache ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FULL)
def test_a_window_sees_its_masks_and_decoded_tokens_and_computes_the_first_ones(name):
    """Active: the first masks and what the phase decoded; far field: unseen until the next refresh."""
    loop = bench(FULL[name](), "window:active=3,window=8,refresh=3")
    state, policy, first = loop.state, loop.policy, loop.state.prompt_length
    for state.step in range(4):
        plan, done = policy.plan(state), first + 2 * state.step
        at = plan.rows.positions(state.ids.device).expand(2, -1)[0].unique().tolist()
        if state.step % 3 == 0:
            assert (plan.full, plan.stop, at) == (True, state.length, list(range(state.length)))
        else:  # 8 masks from those on that were left after the refresh
            assert (plan.full, plan.stop) == (False, first + 2 + 8)
            assert at == list(range(first, done + 3))
        state.write(torch.tensor([[done, done + 1]]), torch.full((2, 2), 5), torch.tensor(True))


@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_a_phase_ends_where_its_window_ends(name):
    """Masks that are decoded now lie in what the step sees, however many a step decodes."""
    model, asked = FULL[name](), dict(gen_length=32, decoder="threshold", decoder_settings=dict(threshold=0.0))
    stats = generate(model, question(name), "window:active=4,window=8,refresh=100", **asked).stats
    assert stats.steps == 8
    assert stats.full_forwards == 3  # 4 tokens there, 8 from the window


class Whole(DLLMCache):
    """The prompt's rows flow along although it is not renewed."""

    def __init__(self, config, task):
        super().__init__(config, task)
        self._read = self._all


@pytest.mark.parametrize("method", ["dllm-cache", "dllm-cache:prompt_interval=3,response_interval=2,ratio=0.5"])
@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_rows_of_a_prompt_that_is_not_renewed_are_not_missed(name, method):
    asked = dict(gen_length=16, block_length=8, steps=None, mask_id=None, eos_id=None, attention_mask=None)
    rule = make_decoder("threshold", threshold=0.4)
    less, more = (prepare(FULL[name](), question(name), language_config(method), rule, **asked) for _ in range(2))
    more.policy = Whole(more.policy.config, more.policy.task)
    less, more = less.run(), more.run()
    assert same(less, more)
    assert less.stats.row_layers < more.stats.row_layers


def test_column_mass_is_that_of_the_rollout():
    """A repeated row counts once, rows that were not computed pass on what they are."""
    draw, length = torch.Generator().manual_seed(0), 6
    flow, rollout = [], torch.eye(length).repeat(2, 1, 1)
    for rows in ([[0, 1, 2, 3, 4, 5]] * 2, [[1, 3, 4], [2, 5, 5]], [[0, 5], [4, 4]]):
        rows = torch.tensor(rows)
        weights = torch.rand(2, rows.shape[1], length, generator=draw).softmax(-1)
        weights = torch.where(rows.diff(dim=1, prepend=rows[:, :1] - 1)[..., None] == 0, weights.roll(1, 1), weights)
        flow.append((rows, weights))
        Rows(index=rows).put(rollout, weights @ rollout)
    torch.testing.assert_close(column_mass(flow, length), rollout.sum(1))


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
