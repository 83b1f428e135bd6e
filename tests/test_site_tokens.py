"""Site ``token``: partial steps recompute the chosen tokens exactly, and leave the others what they had."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffcache import ConfigError, UnsupportedModelError, accelerate_model, denoising, restore
from diffcache.hooks.selection import Selection
from diffcache.hooks.tokens import _WITHOUT
from diffcache.methods.token import ToCaConfig
from diffcache.predictors import Taylor
from diffcache.schedules import Explicit
from diffcache.schedules.selectors import SCORES, Evidence, Selector

from .denoisers.running import bare, equal, letters, method_on, model_of, run, run_constant
from .models import decisions, dit, normal

#: block families, each with its own way to hold text, positions and modulation
CLASSES = [
    "DiTTransformer2DModel",
    "PixArtTransformer2DModel",
    "FluxTransformer2DModel",
    "SD3Transformer2DModel",
    "WanTransformer3DModel",
    "CogVideoXTransformer3DModel",
    "LTXVideoTransformer3DModel",
    "HunyuanVideoTransformer3DModel",
    "QwenImageTransformer2DModel",
]
ALL = dict(attention=1.0, cross=1.0, depth=0.0)


def put_on(model, keep, steps=(0,), selector=None, **settings):
    """Site ``token`` with a table of shares: ``keep(offset, depth, kind)``."""
    config = ToCaConfig(warmup=1, cooldown=0, **settings)
    recipe = config.recipe()
    given = dict(schedule=lambda: Explicit(steps, 1, 0, 64), predictor=Taylor(0), keep=keep)
    planned = type(recipe)(**{**vars(recipe), **given, "selector": selector or recipe.selector})

    class Planned(ToCaConfig):
        def recipe(self):
            return planned

    return accelerate_model(model, Planned(warmup=1, cooldown=0))


def site_of(model):
    ((_, hook),) = model.diffcache.hooks.values()
    return hook.site


@pytest.mark.parametrize("name", CLASSES)
def test_law_7_all_tokens_are_the_dense_model_bit_for_bit(name):
    wanted, model = bare(name), model_of(name)
    put_on(model, lambda offset, depth, kind: 1.0)
    try:
        assert equal(run(name), wanted)
        assert letters(model) == "Fpppp"
        assert model.diffcache.stats().segments[0].block_share == 1.0
    finally:
        model.diffcache.restore()


def table(seed):
    """A share for every step, depth and kind, none of them alike."""

    def keep(offset, depth, kind):
        drawn = torch.Generator().manual_seed(hash((seed, offset, round(depth, 3), len(kind))) % 2**31)
        return [0.0, 0.2, 0.5, 0.8, 1.0][int(torch.randint(5, (), generator=drawn))]

    return keep


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", CLASSES)
def test_law_6_any_table_gives_the_dense_output_while_nothing_moves(name, seed):
    bare(name)
    model = model_of(name)
    put_on(model, table(seed))
    try:
        outputs = run_constant(name)
        assert letters(model)[0] == "F"
        assert "p" in letters(model)
    finally:
        model.diffcache.restore()
    for output in outputs[1:]:
        for part, dense in zip(output, outputs[0], strict=True):
            torch.testing.assert_close(part, dense, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CLASSES)
def test_the_order_of_the_chosen_tokens_is_no_matter(name):
    outputs = []
    for flip in (False, True):

        class Fixed(Selector):
            def rank(self, evidence, flip=flip):
                order = torch.arange(len(evidence.age))
                first = order[: max(len(order) // 2, 1)]
                return torch.cat([first.flip(0) if flip else first, order[len(first) :]])

        bare(name)
        model = model_of(name)
        put_on(model, lambda offset, depth, kind: 0.5, selector=Fixed(score="random"))
        try:
            outputs.append(run(name))
        finally:
            model.diffcache.restore()
    assert equal(*outputs)


# -- against the same computation written out --------------------------------------------------------------------------


class WrittenOut:
    """Partial steps of a tiny DiT in plain tensor operations, block by block, in fp64."""

    def __init__(self, model):
        self.model, self.held = model, {}

    def step(self, x, arguments, rows):
        model = self.model
        tokens = model.pos_embed(x)
        for index, block in enumerate(model.transformer_blocks):
            time = dict(timestep=arguments["timestep"], class_labels=arguments["class_labels"])
            normed, gate, shift, scale, gate_ff = block.norm1(tokens, **time, hidden_dtype=tokens.dtype)
            tokens = tokens + gate.unsqueeze(1) * self._attention(index, block.attn1, normed, rows)
            normed = block.norm3(tokens) * (1 + scale[:, None]) + shift[:, None]
            tokens = tokens + gate_ff.unsqueeze(1) * self._keep((index, "ff"), block.ff(normed[:, rows]), rows, tokens)
        return tokens

    def _keep(self, key, new, rows, like):
        held = self.held.setdefault(key, torch.zeros(*like.shape[:2], new.shape[-1], dtype=new.dtype))
        held[:, rows] = new
        return held.clone()

    def _attention(self, index, attention, normed, rows):
        def heads(x):
            return x.unflatten(-1, (attention.heads, -1)).transpose(1, 2)

        chosen = normed[:, rows]
        key = self._keep((index, "k"), attention.to_k(chosen), rows, normed)
        value = self._keep((index, "v"), attention.to_v(chosen), rows, normed)
        mixed = F.scaled_dot_product_attention(heads(attention.to_q(chosen)), heads(key), heads(value))
        return self._keep((index, "o"), attention.to_out[0](mixed.transpose(1, 2).flatten(2)), rows, normed)


def test_a_partial_step_is_what_it_is_said_to_be():
    model = dit().double()
    chosen = []

    class Noted(Selector):
        def rank(self, evidence):
            order = torch.randperm(len(evidence.age), generator=torch.Generator().manual_seed(len(chosen)))
            chosen.append(order)
            return order

    streams = []
    model.transformer_blocks[-1].register_forward_hook(lambda module, args, result: streams.append(result.clone()))
    put_on(model, lambda offset, depth, kind: 0.4, selector=Noted(score="random"))
    reference = WrittenOut(dit().double())
    arguments = dict(class_labels=torch.tensor([3]))
    with torch.no_grad(), denoising(model, 5):
        for step in range(5):
            x = normal(1, 4, 8, 8, seed=0).double() * (1.0 - step / 6)
            arguments["timestep"] = torch.tensor([900 - 100 * step])
            streams.clear()
            model(x, **arguments)
            count = round(0.4 * streams[0].shape[1])
            rows = torch.arange(streams[0].shape[1]) if step == 0 else chosen[-1][:count].sort().values
            torch.testing.assert_close(streams[0], reference.step(x, arguments, rows), rtol=1e-10, atol=1e-12)
    assert decisions(model) == ["Fpppp"]
    assert len(chosen) == 4


# -- what runs, and what is held ---------------------------------------------------------------------------------------


def rows_through(model, layer_class=nn.Linear):
    """Rows that each matrix of the blocks gets, while the returned list is alive."""
    seen = []
    for block in model.transformer_blocks:
        for part in (block.attn1.to_q, block.attn1.to_out[0], block.ff.net[2]):
            part.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    return seen


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.75])
def test_only_the_chosen_rows_are_computed(share):
    model = dit()
    put_on(model, lambda offset, depth, kind: share)
    with torch.no_grad(), denoising(model, 3):
        for step in range(3):
            seen = rows_through(model) if step == 2 else []
            model(normal(1, 4, 8, 8, seed=step), torch.tensor([900 - step]), class_labels=torch.tensor([3]))
    count = round(share * 16)
    assert seen == ([count] * 6 if count else [])
    segment = model.diffcache.stats().segments[0]
    assert segment.decisions == ("Fpp" if count else "Fcc")
    assert segment.token_share == pytest.approx((1 + 2 * count / 16) / 3)


def test_rows_that_are_not_chosen_keep_what_they_had():
    model = dit()
    put_on(model, lambda offset, depth, kind: 0.25)
    site, before = site_of(model), {}
    with torch.no_grad(), denoising(model, 4):
        for step in range(4):
            model(normal(1, 4, 8, 8, seed=step), torch.tensor([900 - step]), class_labels=torch.tensor([3]))
            ((_, hook),) = model.diffcache.hooks.values()
            if hook.segment is None:
                break
            (branch,) = hook.segment.branches.values()
            cache = branch.cache
            for call, memory in cache.memories.items():
                for index, tensor in enumerate(memory.held()):
                    old = before.get((call, index))
                    if step > 0 and old is not None:
                        axis = 1 if tensor.dim() == 3 else 2
                        same = (tensor == old).all(-1).amin(0)
                        same = same if axis == 1 else same.amin(0)
                        assert same.sum() == 12  # of 16 tokens
                        assert torch.equal(same, cache.age > 0)
                    before[call, index] = tensor.clone()
    assert not site.whole


@pytest.mark.parametrize("score", ["input", "value", "random"])
@pytest.mark.parametrize("name", CLASSES[:6])
def test_every_score_ranks_the_tokens_of_every_family(name, score):
    bare(name)
    with method_on(name, "token", score=score) as model:
        outputs = run(name)
        assert "p" in letters(model)
    assert all(part.isfinite().all() for output in outputs for part in output)


@pytest.mark.parametrize("name", CLASSES)
def test_law_8_memory_is_the_sum_of_results_keys_and_values(name):
    model = model_of(name)
    put_on(model, lambda offset, depth, kind: 0.5, score="random")
    results, attended = [], []
    site = site_of(model)
    for unit in site.units:
        unit.module.register_forward_hook(lambda module, args, result: results.append(_numbers(result)))
    try:
        run(name)
        segment = model.diffcache.stats().segments[0]
        lessons = next(iter(site._lessons.values())).units
    finally:
        model.diffcache.restore()
        for unit in site.units:
            unit.module._forward_hooks.clear()
    full = sum(results[: len(site.units)]) if len(results) >= len(site.units) else None
    assert full is not None
    assert segment.cached_bytes % 4 == 0
    assert segment.cached_bytes > 4 * full  # keys and values come on top
    attended = sum(place is not None for lesson in lessons.values() for place in lesson.keys)
    assert attended > 0


def _numbers(result):
    parts = result if isinstance(result, tuple) else (result,)
    return sum(part.numel() for part in parts if isinstance(part, torch.Tensor))


def test_law_8_memory_of_a_dit_by_hand():
    model = dit()
    accelerate_model(model, "toca", keep=0.5, interval=4, warmup=1, **ALL)
    with torch.no_grad(), denoising(model, 4):
        for step in range(4):
            model(normal(1, 4, 8, 8, seed=step), torch.tensor([900 - step]), class_labels=torch.tensor([3]))
    tokens, width, blocks = 16, model.inner_dim, 2
    values = blocks * (2 * tokens * width + 2 * tokens * width)  # attention and feed-forward; keys and values
    assert model.diffcache.stats().segments[0].cached_bytes == 4 * (values + tokens * width + tokens)


# -- what cannot be taken apart ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "unit", "why"),
    [
        ("SanaTransformer2DModel", "transformer_blocks.0.ff", "depends on other tokens"),
        ("SanaTransformer2DModel", "transformer_blocks.0.attn1", "depends on which others are computed"),
        ("FluxTransformer2DModel", "transformer_blocks.0.ff_context", "no token reaches it"),
        ("WanAnimateTransformer3DModel", "face_adapter.0", "unflatten"),
    ],
)
def test_modules_that_mix_tokens_are_computed_in_full(name, unit, why):
    bare(name)
    model = model_of(name)
    put_on(model, lambda offset, depth, kind: 0.5)
    try:
        run(name)
        assert why in site_of(model).whole[unit]
    finally:
        model.diffcache.restore()


@pytest.mark.parametrize("name", list(_WITHOUT))
def test_what_is_known_to_have_no_tokens_is_refused_at_once_and_for_a_reason(name):
    with pytest.raises(UnsupportedModelError, match=f"cannot be taken apart: {_WITHOUT[name]}"):
        put_on(model_of(name), lambda offset, depth, kind: 0.5)
    reason = _WITHOUT.pop(name)  # and indeed it cannot
    try:
        put_on(model_of(name), lambda offset, depth, kind: 0.5)
        with pytest.raises(UnsupportedModelError, match="cannot be taken apart"):
            run(name)
    finally:
        _WITHOUT[name] = reason
        restore(model_of(name))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(keep=1.5), "keep: 1.5 is out of range"),
        (dict(keep=-0.1), "keep: -0.1 is out of range"),
        (dict(score="attention"), "score: unknown value 'attention'"),
        (dict(oldest=-1), "oldest: -1 is out of range"),
        (dict(depth=2.0), "depth: 2.0 is out of range"),
        (dict(attention=-1.0), "attention: -1.0 is out of range"),
        (dict(layout="dens"), "layout: unknown value 'dens': did you mean 'dense'"),
    ],
)
def test_bad_input_is_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        ToCaConfig(**settings)


# -- selectors ---------------------------------------------------------------------------------------------------------


def evidence(score, age=None, grid=None):
    score = torch.as_tensor(score, dtype=torch.float32)
    age = torch.zeros(len(score)) if age is None else torch.as_tensor(age, dtype=torch.float32)
    return Evidence(age, {name: lambda: score.clone() for name in SCORES}, grid)


def test_the_largest_score_comes_first_and_ties_keep_their_order():
    assert Selector("input").rank(evidence([1.0, 3.0, 2.0, 3.0])).tolist() == [1, 3, 2, 0]


def test_age_counts_in_units_of_the_mean_score():
    ranked = Selector("input", age_weight=1.0, oldest=0).rank(evidence([2.0, 2.0, 5.0], [1.0, 2.0, 0.0]))
    assert ranked.tolist() == [1, 2, 0] or ranked.tolist() == [1, 0, 2]
    assert Selector("input", age_weight=0.0, oldest=0).rank(evidence([2.0, 2.0, 5.0], [9.0, 9.0, 0.0]))[0] == 2


def test_old_tokens_come_first_whatever_they_score():
    ranked = Selector("input", age_weight=0.0, oldest=4).rank(evidence([9.0, 8.0, 0.0], [0.0, 3.0, 4.0]))
    assert ranked.tolist() == [2, 0, 1]


def test_a_score_that_is_not_finite_is_urgent():
    assert Selector("input").rank(evidence([1.0, math.nan, 2.0]))[0] == 1


def test_no_token_starves():
    """Even a score that never changes: every token is computed again within the bound."""
    age, selector, last = torch.zeros(10), Selector("input", age_weight=0.0, oldest=5), torch.zeros(10)
    for step in range(40):
        age += 1.0
        chosen = selector.rank(evidence(torch.arange(10.0), age))[:3]
        age[chosen] = 0.0
        last[chosen] = step
        assert age.max() <= 5 + 2  # more may come due at once than fit
    assert (last > 30).all()


def test_the_best_of_each_window_gets_the_bonus():
    score = torch.tensor([[1.0, 2.0, 5.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    got = Selector("input", age_weight=0.0, bonus=0.5, window=2).scores(evidence(score.flatten(), grid=(2, 4)))
    relative = got.view(2, 4) / got.view(2, 4)[1, 0]
    assert relative[0, 1] == pytest.approx(3.0)
    assert relative[0, 2] == pytest.approx(7.5)
    assert relative[1, 1] == pytest.approx(1.0)


def test_a_selection_keeps_the_text():
    rows = Selection(torch.tensor([3, 0, 2, 1])).rows(2, offset=2, length=7)
    assert rows.tolist() == [0, 1, 2, 5, 6]
