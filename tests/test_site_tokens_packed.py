"""Site ``token`` on packed rows: whole blocks run on the chosen tokens, and equal the same module by module."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch.utils._python_dispatch import TorchDispatchMode

from diffcache import UnsupportedModelError, accelerate_model, denoising
from diffcache.hooks.steady import Giving, Noting
from diffcache.kernels import checked, counting, few_rows
from diffcache.kernels.dispatch import Kernel

from .denoisers import DENOISERS
from .denoisers.running import bare, equal, model_of, run
from .models import decisions, dit, normal, randomise, seeded
from .test_site_tokens import CLASSES, put_on, site_of, table


def outputs_of(name, packs, keep, **settings):
    bare(name)
    model = model_of(name)
    put_on(model, keep, **settings)
    site = site_of(model)
    site.packs = packs
    try:
        return run(name), site
    finally:
        model.diffcache.restore()


@pytest.mark.parametrize("name", CLASSES)
def test_packed_rows_equal_module_by_module(name):
    """Identity 9: any table of shares, the input moving. In rank order it is what it is in token order, to the bit."""
    packed, site = outputs_of(name, True, table(3))
    assert equal(packed, outputs_of(name, True, table(3), layout="dense")[0])
    apart, _ = outputs_of(name, False, table(3))
    dense = bare(name)
    assert site.unpacked == {}
    for step, parts in enumerate(zip(packed, apart, dense, strict=True)):
        for a, b, c in zip(*parts, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
            assert step == 0 or not torch.allclose(a, c, rtol=1e-3, atol=1e-4)  # the test is not empty


@pytest.mark.parametrize("name", CLASSES)
def test_blocks_hand_the_stream_on(name):
    """Rows are packed once: every block but the last hands them to the next."""
    _, site = outputs_of(name, True, lambda offset, depth, kind: 0.5)
    (known,) = site._lessons.values()
    assert [lesson.chained for lesson in known.blocks.values()] == [True] * (len(known.blocks) - 1) + [False]


def steps_of(model, steps=3, before=lambda step: None, still=False, dtype=torch.float32):
    """Outputs of a tiny DiT; ``still``: on one input, at steps that a sampler tells."""
    outputs, sampler = [], FlowMatchEulerDiscreteScheduler()
    sampler.set_timesteps(steps)
    sampler.set_begin_index(0)
    with torch.no_grad(), denoising(model, steps, sampler if still else None):
        for step, t in enumerate(sampler.timesteps):
            before(step)
            x = normal(1, 4, 8, 8, seed=0 if still else step).to(dtype), torch.tensor([900 - (0 if still else step)])
            outputs.append(model(*x, class_labels=torch.tensor([3])).sample.clone())
            if still:
                sampler.step(torch.zeros(1), t, torch.zeros(1))
    return outputs


@pytest.mark.parametrize("fuses", [True, False])
def test_norms_and_sums_see_only_the_chosen_rows(fuses):
    """The block's own norms get a row for each gate, and two that tell shift and scale or all chosen rows."""
    model, seen = dit(), []
    put_on(model, lambda offset, depth, kind: 0.5)

    def before(step):
        (known,) = [*site_of(model)._lessons.values()] or [None]
        if step == 1 and not fuses:
            for block in known.blocks.values():
                block.sources, block.unfused = None, "for once"
        if step == 2:
            for block in model.transformer_blocks:
                for norm in (block.norm1, block.norm3):
                    norm.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))

    steps_of(model, before=before)
    assert sorted(set(seen)) == ([4] if fuses else [2, 8])  # of 16 tokens
    slow = model.diffcache.stats().segments[0].slow_kernels
    assert slow == ({} if fuses else {"gather_norm: for once": 4})  # two blocks, two steps


@pytest.mark.parametrize("name", CLASSES)
def test_norms_of_every_family_are_the_kernels_own(name):
    _, site = outputs_of(name, True, table(3))
    assert site.unfused == {}
    (known,) = site._lessons.values()
    kinds = {source.kind for block in known.blocks.values() for of in block.sources.values() for source in of if source}
    assert kinds & {"layer", "rms"}
    eps = {s.eps for b in known.blocks.values() for of in b.sources.values() for s in of if s and s.kind == "layer"}
    assert eps <= {1e-5, 1e-6}


def test_two_attentions_on_one_stream_are_normed_by_kernels():
    """SD3.5: what the second one gets is a norm of the stream as it was in front of the first one."""
    outputs, trajectory = [], DENOISERS["SD3Transformer2DModel"].trajectory()
    for packs in (True, False):
        with seeded(0):
            model = SD3Transformer2DModel(
                sample_size=16, in_channels=4, out_channels=4, num_layers=3, pooled_projection_dim=16,
                pos_embed_max_size=16, caption_projection_dim=36, joint_attention_dim=16, attention_head_dim=18,
                num_attention_heads=2, dual_attention_layers=(0, 1), qk_norm="rms_norm",
            )  # fmt: skip
        put_on(randomise(model), table(3))
        site = site_of(model)
        site.packs = packs
        with torch.no_grad(), denoising(model, 5):
            outputs.append([model(**trajectory(1.0 - step / 5)).sample for step in range(5)])
        if packs:
            assert site.ways == {f"transformer_blocks.{i}": ("kernels", None) for i in range(3)}
            assert {"transformer_blocks.0.attn", "transformer_blocks.0.attn2"} <= site.unformed.keys()
    for a, b in zip(*outputs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_by_kernels_are_no_less_exact_in_16_bits(dtype):
    def outputs(packs, kind):
        model = dit().to(dtype).to(kind)
        put_on(model, lambda offset, depth, kind: 0.5)
        site_of(model).packs = packs
        found = steps_of(model, dtype=kind)
        assert {way for way, _ in site_of(model).ways.values()} == {"kernels"} or not packs
        return torch.cat(found).float()

    exact = outputs(False, torch.float32)
    packed, apart = ((outputs(packs, dtype) - exact).norm() for packs in (True, False))
    assert packed < 1.5 * apart


def test_inference_mode_gives_the_same():
    found = []
    for mode in (torch.no_grad, torch.inference_mode):
        model = dit()
        put_on(model, lambda offset, depth, kind: 0.5)
        with mode():
            found.append(torch.cat(steps_of(model)))
        assert decisions(model) == ["Fpp"]
    assert torch.equal(*found)


def test_a_norm_that_is_not_of_the_stream_stays_the_block_s_own():
    model = dit()
    for block in model.transformer_blocks:
        block.norm3.register_forward_hook(lambda module, args, result: result.sin())
    put_on(model, lambda offset, depth, kind: 0.5)
    steps_of(model)
    assert site_of(model).unpacked == {}
    why = site_of(model).unfused
    assert list(why) == ["transformer_blocks.0", "transformer_blocks.1"]
    assert all("gets is no norm of the stream" in reason for reason in why.values())


def test_fp64_is_left_to_the_block_s_own_norms():
    model = dit().double()
    put_on(model, lambda offset, depth, kind: 0.5)
    with torch.no_grad(), denoising(model, 2):
        for step in range(2):
            x = normal(1, 4, 8, 8, seed=step).double(), torch.tensor([900 - step])
            model(*x, class_labels=torch.tensor([3]))
    assert "fp64" in site_of(model).unfused["transformer_blocks.0"]


def test_a_stream_that_is_worked_on_between_blocks_is_put_together_there():
    def changed(model):
        model.transformer_blocks[0].register_forward_hook(lambda module, args, result: result * 1.5)
        return model

    outputs = []
    for packs in (True, False):
        model = changed(dit())
        put_on(model, lambda offset, depth, kind: 0.5)
        site = site_of(model)
        site.packs = packs
        with torch.no_grad(), denoising(model, 3):
            outputs.append(
                [
                    model(normal(1, 4, 8, 8, seed=s), torch.tensor([900 - s]), class_labels=torch.tensor([3])).sample
                    for s in range(3)
                ]
            )
        assert not any(b.chained for k in site._lessons.values() for b in k.blocks.values())
    for a, b in zip(*outputs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_model_that_breaks_the_chain_later_is_computed_in_full():
    model = dit()
    put_on(model, lambda offset, depth, kind: 0.5)
    site, plain = site_of(model), dit()
    with torch.no_grad(), denoising(model, 3):
        for step in range(3):
            if step == 1:
                for each in (model, plain):
                    each.transformer_blocks[0].register_forward_hook(lambda module, args, result: result * 1.5)
            given = normal(1, 4, 8, 8, seed=step), torch.tensor([900 - step])
            found = model(*given, class_labels=torch.tensor([3])).sample
            if step == 1:
                assert torch.equal(found, plain(*given, class_labels=torch.tensor([3])).sample)
    assert "another stream" in site.unpacked[""]


def test_post_norms_go_module_by_module():
    """A block that norms what it adds does more than adding up results; what trying it out left behind is renewed."""

    model = dit()
    for block in model.transformer_blocks:
        inner = block.forward
        block.forward = lambda *args, inner=inner, **kwargs: inner(*args, **kwargs).tanh()
    put_on(model, lambda offset, depth, kind: 0.25)
    first, *others = steps_of(model, still=True)
    assert model.diffcache.stats().segments[0].decisions == "Fpp"
    assert "more than adding up" in site_of(model).unpacked[""]
    assert all(torch.equal(other, first) for other in others)


# -- kernels -----------------------------------------------------------------------------------------------------------


def test_the_kernels_carry_a_step(monkeypatch):
    """G where the stream enters, F from module to module, S behind the last, A to put it back; P in each attention."""
    calls = []
    run_kernel = Kernel.__call__
    model = dit()
    put_on(model, lambda offset, depth, kind: 0.5)
    with torch.no_grad(), denoising(model, 3), checked():
        for step in range(3):
            if step == 2:
                monkeypatch.setattr(Kernel, "__call__", lambda k, *a: (calls.append(k.name), run_kernel(k, *a))[1])
            model(normal(1, 4, 8, 8, seed=step), torch.tensor([900 - step]), class_labels=torch.tensor([3]))
    between = ["project_epilogue", "scatter_gather_norm"]
    around = ["gather_norm", *between, "scatter_gather_norm", *between, "scatter_update"]
    assert calls == [*around, "accumulate", "accumulate"]  # the computed rows, and the others, into token order


def test_counting_within_counting_counts_for_both():
    with counting() as outer, counting() as inner:
        from diffcache.kernels.dispatch import _count

        _count("scatter_update", "dtype float64")
    assert outer == inner == {("scatter_update", "dtype float64"): 1}


# -- bonus -------------------------------------------------------------------------------------------------------------


def test_the_bonus_spreads_the_chosen_over_the_picture():
    model = dit()
    accelerate_model(model, "toca", keep=0.25, warmup=1, cooldown=0, bonus=1e3, age_weight=0.0, oldest=0)
    with torch.no_grad(), denoising(model, 3):
        for step in range(2):
            model(normal(1, 4, 8, 8, seed=step), torch.tensor([900 - step]), class_labels=torch.tensor([3]))
        ((_, hook),) = model.diffcache.hooks.values()
        (branch,) = hook.segment.branches.values()
        chosen = branch.cache.chosen
        assert branch.cache.grid == (4, 4)
    assert len({(i // 4 // 2, i % 4 // 2) for i in chosen.tolist()}) == len(chosen)


def test_a_bonus_without_rows_and_columns_is_refused():
    name = "FluxTransformer2DModel"
    bare(name)
    accelerate_model(model_of(name), "toca", keep=0.25, warmup=1, bonus=0.4)
    try:
        with pytest.raises(UnsupportedModelError, match=r"bonus: 0\.4 needs rows and columns"):
            run(name)
    finally:
        model_of(name).diffcache.restore()


# -- worldcache-partial ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blend", [0.0, 0.3])
def test_a_recomputed_token_is_taken_at_its_weight(blend):
    """Of k tokens, ``(k / N) ** blend`` of the difference to their prediction; of all, the computed output itself."""
    found = {}
    for keep in (0.25, 1.0):
        model = dit()
        settings = dict(keep=keep, blend=blend, warmup=3, computed=3, threshold=torch.inf, cooldown=0)
        accelerate_model(model, "worldcache-partial", **settings)
        with torch.no_grad(), denoising(model, 6):
            for step in range(4):
                given = normal(1, 4, 8, 8, seed=step), torch.tensor([900 - step])
                found[keep] = model(*given, class_labels=torch.tensor([3])).sample
            assert model.diffcache.stats().segments[0].decisions == "FFFp"
            ((_, hook),) = model.diffcache.hooks.values()
            (branch,) = hook.segment.branches.values()
            if keep == 1.0:
                assert torch.equal(found[keep], dit()(*given, class_labels=torch.tensor([3])).sample)
            else:
                moved = branch.cache.grid.sums(branch.cache.correction.square())
                assert set(moved.nonzero().flatten().tolist()) == set(branch.cache.tokens.chosen.tolist())


# -- products of a block that runs twice -------------------------------------------------------------------------------


def test_modulation_of_a_block_that_runs_twice_is_computed_once():
    name, counts = "FluxTransformer2DModel", [0]
    bare(name)
    model = model_of(name)
    weight = model.transformer_blocks[0].norm1.linear.weight

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            counts[-1] += func is torch.ops.aten.addmm.default and args[2].data_ptr() == weight.data_ptr()
            return func(*args, **(kwargs or {}))

    put_on(model, lambda offset, depth, kind: 0.5)
    with Counting():
        try:
            run(name, before=lambda step, arguments: counts.append(0) or arguments)
        finally:
            model.diffcache.restore()
    assert counts[2:] == [1] * 4


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_products_of_few_rows_come_in_slices_where_some_tokens_are_left_out(share, monkeypatch):
    """Of attention and feed-forward, of text and tokens; a step that computes everything is the dense model's own."""
    name, seen = "FluxTransformer2DModel", [[]]
    fits = few_rows._fits
    bare(name)

    def note(x, weight):
        seen[-1].append(id(weight))
        return fits(x, weight)

    monkeypatch.setattr(few_rows, "_fits", note)
    monkeypatch.setattr(few_rows, "LEAST_COLUMNS", 1)
    monkeypatch.setattr(few_rows, "SLICE", 5)
    model = model_of(name)
    put_on(model, lambda offset, depth, kind: share)
    try:
        run(name, before=lambda step, arguments: seen.append([]) or arguments)
    finally:
        model.diffcache.restore()
    double, single = model.transformer_blocks[0], model.single_transformer_blocks[0]
    parts = [
        double.attn.to_q,
        double.attn.add_v_proj,
        double.attn.to_out[0],
        double.ff.net[2],
        double.ff_context.net[2],
    ]
    parts += [single.attn.to_q, single.proj_mlp, single.proj_out]
    found = {part: id(part.weight) in seen[-1] for part in parts}
    assert set(found.values()) == {share < 1.0}, found


def test_a_product_that_may_differ_or_was_written_to_is_computed_again():
    steady, moving, weight = torch.ones(1, 4), torch.ones(1, 4), torch.eye(4)
    with Noting([moving]) as noting:
        first = [F.linear(x, weight) for x in (steady, moving * 2.0, steady, steady)]
        first[2].add_(1.0)
    with Giving(noting.products):
        second = [F.linear(x, weight) for x in (steady, moving * 3.0, steady, torch.ones(2, 4))]
    assert second[0] is first[0]
    assert [float(x.mean()) for x in second] == [1.0, 3.0, 1.0, 1.0]
    assert second[3].shape == (2, 4)
