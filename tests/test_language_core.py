"""Diffusion language models: attention with its log-sum-exp, rows, the cache, and forwards of only some rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from diffcache.kernels import merge_attention
from diffcache.llm import generate, read_facts
from diffcache.llm.attention import attend, attend_lse, attend_outside, probabilities
from diffcache.llm.kv import PositionKVCache
from diffcache.llm.passes import TILE
from diffcache.llm.plan import External, StepPlan
from diffcache.llm.rows import Rows, picked

from .language import (
    BIDIRECTIONAL,
    BLOCK,
    BLOCK_CAUSAL,
    CHUNKED,
    EVERY,
    FULL,
    MASK,
    MODELS,
    bench,
    logits_of,
    native_logits,
    prompt,
)

CLOSE = dict(rtol=0.0, atol=2e-5)


def qkv(heads=4, groups=2, queries=5, keys=11, width=16):
    draw = torch.Generator().manual_seed(3)
    shapes = ((2, heads, queries, width), (2, heads // groups, keys, width), (2, heads // groups, keys, width))
    return [torch.randn(shape, generator=draw) for shape in shapes]


def dense(q, k, v, mask=None):
    repeat = q.shape[1] // k.shape[1]
    return F.scaled_dot_product_attention(
        q, k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1), attn_mask=mask, scale=0.25
    )


MASKS = {
    "none": None,
    "keys": (torch.arange(11) > 2).view(1, 1, 1, 11),
    "pairs": (torch.arange(5)[:, None] + 3 >= torch.arange(11)).view(1, 1, 5, 11),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_is_sdpa_with_its_log_sum_exp(groups, mask):
    q, k, v = qkv(groups=groups)
    want = dense(q, k, v, mask)
    out, lse = attend_lse(q, k, v, 0.25, mask)
    torch.testing.assert_close(attend(q, k, v, 0.25, mask), want, rtol=0, atol=1e-6)
    torch.testing.assert_close(out, want, rtol=0, atol=1e-6)
    scores = (q @ k.repeat_interleave(groups, 1).mT) * 0.25
    scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
    torch.testing.assert_close(lse, scores.logsumexp(-1), rtol=0, atol=1e-5)
    torch.testing.assert_close(probabilities(q, k, 0.25, mask), scores.softmax(-1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("inner", [(0, 11), (0, 4), (4, 9), (7, 11), (10, 11)])
def test_a_split_anywhere_merges_to_the_whole(inner, mask):
    q, k, v = qkv()
    first, last = inner
    own = None if mask is None else mask[..., first:last]
    inside = attend_lse(q, k[:, :, first:last], v[:, :, first:last], 0.25, own)
    merged, _ = merge_attention(*attend_outside(q, k, v, 0.25, inner, mask), *inside)
    torch.testing.assert_close(merged, dense(q, k, v, mask), rtol=0, atol=1e-6)


def test_a_query_that_sees_no_key_gives_nothing():
    q, k, v = qkv()
    for keys, mask in ((0, None), (11, torch.zeros(1, 1, 1, 11, dtype=torch.bool))):
        out, lse = attend_lse(q, k[:, :, :keys], v[:, :, :keys], 0.25, mask)
        assert not out.any()
        assert (lse == -torch.inf).all()


SOME = {
    "span": Rows(3, 7),
    "index": Rows(index=torch.tensor([1, 4, 8])),
    "of each": Rows(index=torch.tensor([[0, 4, 4], [2, 5, 9]])),
}


@pytest.mark.parametrize("rows", SOME.values(), ids=SOME)
def test_rows_are_taken_and_put_where_their_positions_say(rows):
    values = torch.randn(2, 10, 3)
    positions = rows.positions(values.device).expand(2, -1)
    taken = rows.take(values)
    assert torch.equal(taken, torch.stack([values[b, positions[b]] for b in range(2)]))
    held = torch.zeros(2, 1, 10, 3)
    rows.put(held, taken[:, None], axis=2)
    assert torch.equal(rows.take(held[:, 0]), taken)
    assert int(held.any(-1).sum()) == sum(len(set(row.tolist())) for row in positions)
    assert torch.equal(rows.within(Rows(0, 10)).take(values), taken)


def test_samples_with_fewer_rows_repeat_their_last():
    mask = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    assert picked(mask, 3, torch.tensor([0, 0, 4])).index.tolist() == [[1, 3, 4], [2, 2, 2], [4, 4, 4]]


def test_the_version_rises_when_a_finished_row_is_written_again():
    kv = PositionKVCache(16)
    for rows, behind, version in ((Rows(0, 8), 0, 0), (Rows(8, 12), 8, 0), (Rows(8, 12), 8, 0), (Rows(4, 12), 8, 1)):
        kv.announce(rows, behind)
        assert kv.version == version
    kv.announce(Rows(index=torch.tensor([1])), 8)
    assert kv.version == 2


# -- forwards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_a_full_pass_is_the_models_own_forward(name):
    """And one that keeps keys is the very same, bit for bit."""
    loop = bench(model := EVERY[name](), "vanilla")
    got = logits_of(loop, plan := loop.policy.plan(loop.state))
    facts, stop = read_facts(model), loop.state.block[1]
    native = native_logits(model, loop.state.ids[:, :stop], facts.block_length)
    torch.testing.assert_close(got, plan.want.shifted(-facts.shift).take(native), **CLOSE)
    assert torch.equal(logits_of(loop, loop.policy.full(loop.state)), got)


@pytest.mark.parametrize("name", MODELS)
def test_the_implementation_is_put_back(name):
    model = MODELS[name]()
    before, keys = model.config._attn_implementation, set(vars(model))
    bare = native_logits(model, prompt(2))
    generate(model, prompt(2), "freecache", gen_length=8)
    assert model.config._attn_implementation == before
    assert set(vars(model)) == keys
    assert torch.equal(native_logits(model, prompt(2)), bare)


PARTS = {
    "block": lambda loop: Rows(*loop.state.block),
    "most": lambda loop: Rows(2, loop.state.length),
    "scattered": lambda loop: Rows(index=torch.tensor([0, 5, *range(loop.state.block[0] - 1, loop.state.block[1])])),
    "of each": lambda loop: Rows(
        index=torch.stack([torch.tensor([p, 7, *range(loop.state.block[0] - 1, loop.state.block[1])]) for p in (1, 3)])
    ),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", FULL)
def test_some_rows_over_cached_keys_equal_the_full_pass_while_no_id_changes(name, part):
    loop = bench(FULL[name](), "fast-dllm")
    full = logits_of(loop, loop.policy.full(loop.state))
    rows = PARTS[part](loop)
    if part == "block" and loop.policy.shift:
        rows = Rows(rows.start - 1, rows.stop)
    got = logits_of(loop, StepPlan(rows, loop.policy.want(loop.state), loop.state.length))
    torch.testing.assert_close(got, full, **CLOSE)


@pytest.mark.parametrize("name", CHUNKED)
def test_block_by_block_equals_the_full_pass(name):
    loop = bench(model := CHUNKED[name](), "freecache")
    state, policy = loop.state, loop.policy
    blocks = policy.blocks()
    logits_of(loop, policy.prefill(state))
    for state.block in blocks:
        got = logits_of(loop, policy.within(state))
        native = native_logits(model, state.ids[:, : state.block[1]], read_facts(model).block_length)
        torch.testing.assert_close(got, policy.want(state).take(native), **CLOSE)


class Sizes(TorchDispatchMode):
    """The largest bool tensor that was made, within torch's attention, too."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype == torch.bool:
            self.largest = max(self.largest, out.numel())
        return out


@pytest.mark.parametrize("padded", [0, BLOCK])
@pytest.mark.parametrize("name", BLOCK_CAUSAL)
def test_a_long_prompt_is_read_without_a_mask_of_its_square(name, padded):
    """Tile by tile it is what the model gives under the whole mask; of a padded prompt, at its own rows."""
    length = 5 * TILE + 5 * BLOCK
    model, loop = BLOCK_CAUSAL[name](), bench(BLOCK_CAUSAL[name](), "freecache", length + BLOCK, length)
    ids, keys = loop.state.ids, torch.ones(1, length, dtype=torch.bool)
    if padded:
        keys[:, :padded] = False
        loop.state.padding = torch.nn.functional.pad(keys, (0, BLOCK), value=True).expand(2, -1)
    plan = StepPlan(Rows(0, length), Rows(padded, length), length, triangular=BLOCK)
    with Sizes() as made:
        got = logits_of(loop, plan)
    blocks = torch.arange(length) // BLOCK
    whole = (blocks[:, None] >= blocks[None, :]) & keys | torch.eye(length, dtype=torch.bool)
    with torch.no_grad():
        want = model(ids[:, :length], attention_mask=whole[None, None], use_cache=False).logits
    torch.testing.assert_close(got, want[:, padded:], **CLOSE)
    assert made.largest <= model.config.num_attention_heads * TILE * length


@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_padding_is_honoured(name):
    """A padded prompt in a batch gives what it gives alone."""
    model, alone = BIDIRECTIONAL[name](), prompt(1, 9)
    both = torch.cat([torch.cat([torch.zeros(1, 4, dtype=torch.long), alone], 1), prompt(1, 13)])
    mask = torch.ones_like(both)
    mask[0, :4] = 0
    for method in ("vanilla", "freecache", "fast-dllm"):
        settings = dict(method=method, gen_length=16, block_length=8, decoder="threshold")
        padded = generate(model, both, attention_mask=mask, **settings).sequences
        assert torch.equal(padded[0, 13:], generate(model, alone, **settings).sequences[0, 9:])


@pytest.mark.parametrize("name", CHUNKED)
def test_an_external_part_from_memory_is_exact_while_the_queries_are_the_same(name):
    model = CHUNKED[name]()
    loop = bench(model, "freecache")
    state, policy = loop.state, loop.policy
    for plan in (policy.prefill(state), *(StepPlan(Rows(a, b), None, stop=b) for a, b in policy.blocks()[:-1])):
        logits_of(loop, plan)
    plain = logits_of(loop, policy.within(state))
    for fresh in (None, (), (1,), (0, 1)):
        external = External(state.block, fresh)
        plan = StepPlan(Rows(*state.block), policy.want(state), state.block[1], external=external)
        torch.testing.assert_close(logits_of(loop, plan), plain, **CLOSE)
    a, lse = policy.store.parts[0]
    assert policy.store.bytes == model.config.num_hidden_layers * 4 * (a.numel() + lse.numel())


def test_bytes_are_those_of_the_formula():
    model = MODELS["llada"]()
    stats = generate(model, prompt(2), "freecache", gen_length=16).stats
    config = model.config
    assert stats.kv_bytes == 2 * 3 * 2 * (13 + 16) * config.num_key_value_heads * config.head_dim * 4
    assert MASK not in generate(model, prompt(2), "freecache", gen_length=16).sequences[:, 13:]
