"""Exact savings: bit for bit the bare model, whatever happens in a trajectory."""

from __future__ import annotations

import copy
import dataclasses
import gc
import json
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.nn.attention.flex_attention import flex_attention

from diffcache import ConfigError, accelerate_model, accelerate_pipeline, denoising, list_methods, restore
from diffcache.hooks.exact import LEAST_PARAMETERS, SMALL_PARAMETERS, patience, pays
from diffcache.zoo import load_pipeline

from .cases import SKIPPING
from .models import FAMILIES, PIPELINES, denoisers, normal, randomise, run_wan, sample, seeded, walk_steps, wan_pipeline
from .reads import Reads, watched
from .states import attributes, forward_hooks


@pytest.fixture(autouse=True)
def _no_older_graphs():
    """flex attention is compiled by torch itself: why it compiles again is not always told in one process."""
    torch.compiler.reset()


def saved(owner):
    """Module calls answered from memory, one number a branch."""
    return [s.exact_calls for s in owner.diffcache.stats().segments]


def exact(family="wan", seed=0):
    return accelerate_model(FAMILIES[family].build(seed), "exact")


# -- the bare model's values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg", ["none", "batched", "separate"])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "dit"])
def test_bit_identical_and_something_is_saved(family, cfg):
    model = exact(family)
    for seed, size in ((0, 2), (1, 2), (1, 3), (0, 2)):
        assert sample(family, model, 6, seed=seed, size=size, cfg=cfg).equals(
            sample(family, FAMILIES[family].build(0), 6, seed=seed, size=size, cfg=cfg)
        )
        assert len(saved(model)) == (2 if cfg == "separate" else 1)
        assert all(saved(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bit_identical_in_half_precision(dtype):
    model, bare = exact().to(dtype), FAMILIES["wan"].build(0).to(dtype)
    assert sample("wan", model, 6, dtype=dtype).equals(sample("wan", bare, 6, dtype=dtype))
    assert all(saved(model))


@pytest.mark.parametrize("kind", PIPELINES)
def test_bit_identical_by_the_pipelines_own_call(kind):
    build, run = PIPELINES[kind]
    pipe, bare = accelerate_pipeline(build(), "exact"), build()
    for seed in (0, 1):
        assert torch.equal(run(pipe, 6, seed=seed), run(bare, 6, seed=seed))
    assert all(saved(pipe))  # of DiT what its blocks repeat: class labels are only looked up


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("cfg", ["batched", "separate"])
def test_bit_identical_in_inference_mode(cfg, inference):
    model = exact()
    with torch.inference_mode(inference):
        outputs = sample("wan", model, 6, cfg=cfg).outputs
        wanted = sample("wan", FAMILIES["wan"].build(0), 6, cfg=cfg).outputs
    assert all(torch.equal(a, b) for a, b in zip(outputs, wanted, strict=True))
    assert all(saved(model))


def test_bit_identical_under_autocast():
    model = exact()
    with torch.autocast("cpu", torch.bfloat16):
        assert sample("wan", model, 6).equals(sample("wan", FAMILIES["wan"].build(0), 6))
    assert all(saved(model))
    assert sample("wan", model, 6).equals(sample("wan", FAMILIES["wan"].build(0), 6))


@pytest.mark.parametrize("case", SKIPPING)
def test_every_method_predicts_the_same_with_and_without(case):
    name, settings = SKIPPING[case]
    with_savings = accelerate_model(FAMILIES["wan"].build(0), name, **settings, exact=True)
    without = accelerate_model(FAMILIES["wan"].build(0), name, **settings, exact=False)
    for seed in (0, 1):
        assert sample("wan", with_savings, seed=seed).equals(sample("wan", without, seed=seed))
    assert all(saved(with_savings))
    assert not any(saved(without))


# -- what changes in mid-trajectory ------------------------------------------------------------------------------------


def walk(model, steps=8, change=lambda step, inputs: None, context=None):
    """One branch whose inputs ``change`` may write to or replace; the outputs."""
    kind = FAMILIES["wan"]
    inputs = {"conditioning": kind.conditioning(100, 1), "size": 2}
    outputs = []
    with torch.no_grad(), denoising(model, steps):
        for step in range(steps):
            change(step, inputs)
            noise = kind.latents(3, 1, inputs["size"]) * (1.0 - 0.5 * step / steps)
            timestep = kind.time(1.0 - step / steps)[None]
            outputs.append(model(noise, timestep, **inputs["conditioning"], return_dict=False)[0].clone())
    return outputs


def write_to_the_prompt(step, inputs):
    if step == 4:
        inputs["conditioning"]["encoder_hidden_states"].mul_(1.5)


def write_to_a_view_of_the_prompt(step, inputs):
    if step == 4:
        inputs["conditioning"]["encoder_hidden_states"][:, 2].zero_()


def another_prompt(step, inputs):
    if step in (3, 5):
        inputs["conditioning"] = FAMILIES["wan"].conditioning(100 + step, 1)


def the_prompt_made_anew_at_every_step(step, inputs):
    inputs["conditioning"] = FAMILIES["wan"].conditioning(100, 1)


def a_longer_prompt(step, inputs):
    if step == 4:
        inputs["conditioning"] = {"encoder_hidden_states": normal(1, 9, 16, seed=4)}


def another_size(step, inputs):
    inputs["size"] = 3 if step >= 4 else 2


CHANGES = [
    write_to_the_prompt,
    write_to_a_view_of_the_prompt,
    another_prompt,
    the_prompt_made_anew_at_every_step,
    a_longer_prompt,
    another_size,
]


@pytest.mark.parametrize("label", [None, "cond"])
@pytest.mark.parametrize("change", CHANGES)
def test_inputs_may_change_in_mid_trajectory(change, label):
    model, bare = exact(), FAMILIES["wan"].build(0)
    if label is not None:  # as a pipeline names its branches
        for each in (model, bare):
            inner = each.forward
            each.forward = labelled(each, inner, label)
    outputs = walk(model, change=change)
    assert all(torch.equal(a, b) for a, b in zip(outputs, walk(bare, change=change), strict=True))
    assert sum(saved(model)) > 0


def labelled(model, forward, label):
    def call(*args, **kwargs):
        with model.cache_context(label):
            return forward(*args, **kwargs)

    return call


def scale_a_weight(model):
    with torch.no_grad():
        model.blocks[0].attn2.to_k.weight.mul_(2.0)


def replace_a_weight(model):
    layer = model.blocks[0].attn2.to_v
    layer.weight = nn.Parameter(layer.weight.detach() * 2.0, requires_grad=False)


def replace_a_module(model):
    old = model.condition_embedder.text_embedder
    model.condition_embedder.text_embedder = nn.Sequential(Unpacked(old), nn.Tanh())


class Unpacked(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, caption):
        return self.inner(caption)


def write_to_a_buffer(model):
    model.rope.freqs_cos.mul_(0.5)


def replace_a_buffer(model):
    model.rope.freqs_sin = model.rope.freqs_sin * 0.5


def add_a_lora(model):
    peft = pytest.importorskip("peft")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model.add_adapter(peft.LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False))


@pytest.mark.parametrize(
    "touch", [scale_a_weight, replace_a_weight, replace_a_module, write_to_a_buffer, replace_a_buffer, add_a_lora]
)
def test_the_model_may_change_in_mid_trajectory(touch):
    def run(model):
        return [*walk(model, change=lambda step, _: touch(model) if step == 4 else None), *walk(model)]

    model = exact()
    assert all(torch.equal(a, b) for a, b in zip(run(model), run(FAMILIES["wan"].build(0)), strict=True))
    assert all(saved(model))


# -- other people's hooks, and what they do with results ---------------------------------------------------------------


@pytest.mark.parametrize("when", [(1, 4, 5, 7), (2, 5), (4, 5, 7)])
def test_a_hook_of_others_may_change_results_when_it_likes(when):
    def spoil(model):
        model.condition_embedder.text_embedder.register_forward_hook(write, with_kwargs=False)
        return model

    def write(module, args, result):
        module.times = getattr(module, "times", 0) + 1
        if module.times in when:
            result.mul_(1.25)

    model, bare = spoil(exact()), spoil(FAMILIES["wan"].build(0))
    assert all(torch.equal(a, b) for a, b in zip(walk(model), walk(bare), strict=True))
    assert all(saved(model))  # rotary tables


@pytest.mark.parametrize("when", [(1,), (2,), (5,), (1, 2, 3), (4, 5, 7)])
def test_an_answer_that_the_model_writes_to_is_computed_again(when):
    """Where the watched pass shows it, the model gets copies; where it comes later, the version tells."""

    def build():
        with seeded(1):
            return randomise(Odd(Text()))

    def run(model):
        given = normal(1, 5, 16, seed=2)
        write = [1.0 - i / 8 for i in range(8) if i + 1 in when]
        with torch.no_grad(), denoising(model, 8):
            return [model(normal(1, 4, 16, seed=i), torch.tensor(1.0 - i / 8), given, write) for i in range(8)]

    model = accelerate_model(build(), "exact")
    assert all(torch.equal(a, b) for a, b in zip(run(model), run(build()), strict=True))


def test_what_passes_through_other_peoples_hooks_is_never_answered():
    heard = {"outer": [], "inner": []}
    model = exact()
    text = model.condition_embedder.text_embedder
    walk(model)  # a plan is made before the hooks come
    text.register_forward_hook(lambda module, args, result: heard["outer"].append(result.clone()))
    text.linear_1.register_forward_hook(lambda module, args, result: heard["inner"].append(result.clone()))
    outputs = walk(model)
    assert len(heard["outer"]) == len(heard["inner"]) == 8
    assert all(torch.equal(heard[k][0], other) for k in heard for other in heard[k])
    assert all(torch.equal(a, b) for a, b in zip(outputs, walk(FAMILIES["wan"].build(0)), strict=True))


# -- modules that are not functions of their inputs --------------------------------------------------------------------


class Odd(nn.Module):
    """A denoiser whose text goes through a module with a mind of its own."""

    def __init__(self, text):
        super().__init__()
        self.text = text
        self.blocks = nn.ModuleList([Block() for _ in range(2)])

    def forward(self, hidden_states, timestep, encoder_hidden_states, write=None):
        text = self.text(encoder_hidden_states)
        if write is not None and float(timestep) in write:
            text.mul_(1.25)
        for block in self.blocks:
            hidden_states = block(hidden_states * (1 + timestep), text)
        return hidden_states


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.Linear(16, 16)

    def forward(self, hidden_states, text):
        return hidden_states + self.attn(text).mean(1, keepdim=True)


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(16, 16)
        self.calls = 0
        self.said = []
        self.register_buffer("total", torch.zeros(16))

    def forward(self, text):
        return self.proj(text)


class Counting(Text):
    def forward(self, text):
        self.calls += 1
        return self.proj(text) * self.calls


class CountingElsewhere(Text):
    seen = []

    def forward(self, text):
        self.seen.append(0)
        return self.proj(text) * len(self.seen)


class Speaking(Text):
    def forward(self, text):
        self.said.append(1)
        return self.proj(text) * len(self.said)


class Summing(Text):
    def forward(self, text):
        self.total.add_(text.mean((0, 1)))
        return self.proj(text) + self.total


class Random(Text):
    def forward(self, text):
        return self.proj(text) + torch.rand(text.shape)


class NumpyRandom(Text):
    def forward(self, text):
        import numpy as np

        return self.proj(text) + torch.from_numpy(np.random.rand(*text.shape)).float()


class Writing(Text):
    def forward(self, text):
        text.mul_(1.01)
        return self.proj(text)


class Twice(Text):
    def forward(self, text):
        return self.proj(self.proj(text))


@pytest.mark.parametrize("text", [Counting, CountingElsewhere, Speaking, Summing, Random, NumpyRandom, Writing, Twice])
def test_a_module_that_is_no_function_of_its_inputs_runs_at_every_step(text):
    import numpy as np

    def run(model):
        CountingElsewhere.seen.clear()
        np.random.seed(0)
        torch.manual_seed(0)
        given = normal(1, 5, 16, seed=2)
        with torch.no_grad(), denoising(model, 8):
            return [model(normal(1, 4, 16, seed=i), torch.tensor(1.0 - i / 8), given) for i in range(8)]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        bare = randomise(Odd(text()))
        model = accelerate_model(Odd(text()).eval(), "exact")
        model.load_state_dict(bare.state_dict())
        model.requires_grad_(False)
        assert all(torch.equal(a, b) for a, b in zip(run(model), run(bare), strict=True))
        assert len(model.text.said) == len(bare.text.said)
        assert model.text.calls == bare.text.calls


class Flexible(Text):
    """Text that passes through flex attention after its projection."""

    def forward(self, text):
        heads = self.proj(text)[:, None]
        return flex_attention(heads, heads, heads)[:, 0]


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("inference", [False, True])
def test_flex_attention_moves_and_what_is_beside_it_is_answered(inference):
    def run(model):
        with torch.inference_mode(inference), torch.no_grad(), denoising(model, 8):
            given = normal(1, 5, 16, seed=2)
            return [model(normal(1, 4, 16, seed=i), torch.tensor(1.0 - i / 8), given) for i in range(8)]

    with seeded(1):
        bare = randomise(Odd(Flexible()))
    model = accelerate_model(copy.deepcopy(bare), "exact")
    assert all(torch.equal(a, b) for a, b in zip(run(model), run(bare), strict=True))
    ((_, hook),) = model.diffcache.hooks.values()
    assert hook.exact.answered == ["text.proj"]
    assert all(saved(model))


@pytest.mark.parametrize("training", [False, True])
def test_nothing_is_answered_where_somebody_may_want_gradients_or_trains(training):
    model, bare = exact(), FAMILIES["wan"].build(0)
    for each in (model, bare):
        each.train(training).requires_grad_(not training)
    outputs = [[], []]
    for kept, each in zip(outputs, (model, bare), strict=True):
        with denoising(each, 6):
            for i in range(6):
                kept.append(each(normal(1, 4, 3, 8, 8, seed=i), torch.tensor([9.0 - i]), TEXT_INPUT).sample)
        if not training:
            sum(kept).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
    assert not any(saved(model))
    if not training:
        gradients = [[p.grad for p in each.parameters() if p.grad is not None] for each in (model, bare)]
        assert len(gradients[0]) > 20
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


TEXT_INPUT = normal(1, 6, 16, seed=1)


# -- lifetime ----------------------------------------------------------------------------------------------------------


def test_an_exception_in_mid_trajectory_leaves_the_next_generation_clean():
    def fail(step):
        if step == 4:
            raise KeyboardInterrupt

    model = exact()
    with pytest.raises(KeyboardInterrupt):
        sample("wan", model, 8, before=fail)
    assert sample("wan", model, 8, seed=1).equals(sample("wan", FAMILIES["wan"].build(0), 8, seed=1))


@pytest.mark.parametrize("failing", [0, 1, 3])
def test_an_exception_inside_the_model_leaves_the_next_generation_clean(failing):
    model, calls = exact(), []

    def fail(module, args):
        calls.append(0)
        if len(calls) == failing + 1:
            raise RuntimeError("out of memory")

    handle = model.blocks[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        walk(model)
    handle.remove()
    assert all(torch.equal(a, b) for a, b in zip(walk(model), walk(FAMILIES["wan"].build(0)), strict=True))
    assert all(saved(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_restore_leaves_nothing(family):
    model = FAMILIES[family].build(0)
    bare = sample(family, model, 6)
    before = attributes(model)
    accelerate_model(model, "exact")
    sample(family, model, 6)
    restore(model)
    assert attributes(model) == before
    assert forward_hooks(model) == 0
    assert sample(family, model, 6).equals(bare)


def test_restore_in_mid_trajectory_leaves_the_rest_bare():
    model = FAMILIES["wan"].build(0)
    before = attributes(model)
    accelerate_model(model, "exact")
    half = sample("wan", model, 8, before=lambda step: restore(model) if step == 4 else None)
    assert attributes(model) == before
    assert half.equals(sample("wan", FAMILIES["wan"].build(0), 8))


def test_memory_follows_the_formula_and_is_freed_at_the_end():
    names = ["condition_embedder.text_embedder", *(f"blocks.{i}.attn2.to_{x}" for i in range(2) for x in "kv"), "rope"]
    bare, sizes = FAMILIES["wan"].build(0), {}
    for name in names:

        def measure(module, args, result, name=name):
            tensors = result if isinstance(result, tuple) else [result]
            sizes[name] = sum(t.numel() * t.element_size() for t in tensors)

        bare.get_submodule(name).register_forward_hook(measure)
    sample("wan", bare, 2)
    model, held = exact(), []
    for step in walk_without_gradients(model):
        if step == 5:
            ((_, hook),) = model.diffcache.hooks.values()
            branches = hook.segment.branches.values()
            held = [weakref.ref(t) for b in branches for answer in b.exact.answers.values() for t in answer.tensors]
    assert [s.exact_bytes for s in model.diffcache.stats().segments] == [sum(sizes.values())] * 2
    gc.collect()
    assert len(held) == 2 * (len(names) + 1)  # the rotary table is two tensors
    assert not [tensor for tensor in held if tensor() is not None]


def walk_without_gradients(model, steps=8):
    with torch.no_grad():
        yield from walk_steps("wan", model, steps)


@pytest.mark.parametrize("family", ["wan", "flux", "cogvideox"])
def test_no_host_read_is_added(family):
    """Not in the pass that is watched, nor where the answers are compared, nor where they are given."""

    def count(method):
        reads, model = Reads(), accelerate_model(FAMILIES[family].build(0), method)
        with torch.no_grad(), watched(reads):
            for _ in (*walk_steps(family, model, 8), *walk_steps(family, model, 8)):
                pass
        return reads.names, saved(model)

    (names, calls), (wanted, _) = count("exact"), count("none")
    assert names == wanted
    assert all(calls)


def test_two_models_in_two_threads_give_what_they_give_alone():
    models = [exact(seed=i) for i in range(2)]
    wanted = [sample("wan", FAMILIES["wan"].build(i), 6, seed=i) for i in range(2)]
    found, barrier = {0: [], 1: []}, threading.Barrier(2)

    def work(i):
        barrier.wait()
        found[i] += [sample("wan", models[i], 6, seed=i) for _ in range(4)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    for i in range(2):
        assert len(found[i]) == 4
        assert all(run.equals(wanted[i]) for run in found[i])
        assert all(saved(models[i]))


# -- beside other features ---------------------------------------------------------------------------------------------


def model_offload(pipe):
    pipe.enable_model_cpu_offload(device="cpu")


def leaf_groups(pipe):
    pipe.transformer.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")


def casting(pipe):
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("setup", [model_offload, leaf_groups, casting])
def test_beside_offloading_and_casting(setup, first):
    pipe, bare = wan_pipeline(), wan_pipeline()
    run_wan(pipe, 2)  # leaves an empty registry of hooks behind
    setup(bare)
    if first:
        setup(pipe)
    accelerate_pipeline(pipe, "exact")
    if not first:
        setup(pipe)
    for seed in (0, 1):
        assert torch.equal(run_wan(pipe, 6, seed=seed), run_wan(bare, 6, seed=seed))
        # accelerate copies to "cpu:0" whatever stands on "cpu", at every call: not the same tensors
        assert all(saved(pipe)) == (setup is not model_offload)
    before = [attributes(m) for m in denoisers(bare)]
    restore(pipe)
    assert [attributes(m) for m in denoisers(pipe)] == before
    assert torch.equal(run_wan(pipe, 6), run_wan(bare, 6))


def test_a_compiled_model_is_left_alone():
    model = FAMILIES["wan"].build(0)
    accelerate_model(model, "exact")
    wanted = walk(model)
    assert all(saved(model))
    for block in model.blocks:
        block.compile(backend="eager")
    assert all(torch.equal(a, b) for a, b in zip(walk(model), wanted, strict=True))
    assert not any(saved(model))


# -- the method, and what it says --------------------------------------------------------------------------------------


def test_the_method_and_its_settings():
    assert list_methods()["exact"]().max_skip == 0
    model = FAMILIES["wan"].build(0)
    for wrong in (dict(max_skip=3), dict(exact=False)):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            accelerate_model(model, "exact", **wrong)
    with pytest.raises(ConfigError, match="exact: 3"):
        accelerate_model(model, "interval", exact=3)


def test_every_method_has_them_and_the_control_has_not():
    for name, config in list_methods("denoiser").items():
        defaults = {field.name: field.default for field in dataclasses.fields(config)}
        assert defaults["exact"] is {"none": False, "exact": True}.get(name), name


@pytest.mark.parametrize(("wanted", "has"), [(None, True), (True, True), (False, False)])
def test_a_denoiser_that_is_large_enough_has_them_unasked(wanted, has):
    assert pays(FAMILIES["wan"].build(0), None) is False
    with torch.device("meta"):
        large = nn.Linear(10_000, LEAST_PARAMETERS // 10_000)
    assert pays(large, wanted) is has


def test_a_small_denoiser_is_watched_from_its_second_trajectory_on():
    with torch.device("meta"):
        small, large = (nn.Linear(10_000, count // 10_000) for count in (LEAST_PARAMETERS, SMALL_PARAMETERS))
    assert (patience(small, None), patience(large, None), patience(small, True)) == (1, 0, 0)
    pipe = load_pipeline("tiny-wan")
    bare = copy.deepcopy(pipe.transformer)
    model = accelerate_model(pipe.transformer, "interval", max_skip=0)

    def run(each):
        with torch.no_grad(), denoising(each, 3):
            given = normal(1, 5, each.config.text_dim, seed=2), normal(1, each.config.in_channels, 2, 8, 8, seed=3)
            times = torch.tensor([[900.0], [600.0], [300.0]])
            return [each(given[1], time, given[0]).sample for time in times]

    counts = []
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(run(model), run(bare), strict=True))
        counts += saved(model)
    assert counts[0] == 0 < counts[1] <= counts[2]


@pytest.mark.parametrize("family", ["wan", "flux", "dit"])
def test_one_form_is_watched_once_whatever_the_prompt(family):
    def watched_calls(seed):
        for _ in walk_steps(family, model, 6, seed=seed):
            branches = list(hook.segment.branches.values())
        assert len(branches) == 2
        return sum(branch.exact.watches for branch in branches)

    model = exact(family)
    ((_, hook),) = model.diffcache.hooks.values()
    with torch.no_grad():
        assert [watched_calls(seed) for seed in range(3)] == [1, 0, 0]


def test_stats_count_what_was_saved_apart():
    model = exact()
    sample("wan", model, 6)
    stats = model.diffcache.stats()
    for segment in json.loads(json.dumps(stats.to_dict()))["segments"]:
        assert segment["decisions"] == "FFFFFF"
        assert segment["block_share"] == 1.0
        assert segment["cached_bytes"] == 0
        # the first call of the first branch is watched, the next one proves the answers
        assert segment["exact_calls"] in (6 * 4, 6 * 5)
        assert segment["exact_bytes"] > 0
        assert segment["exact_flops"] > 0
    assert "from memory" in str(stats)
    sample("wan", model, 6, seed=2)  # what was proved once need not be proved again
    assert saved(model) == [6 * 5] * 2


def test_none_is_the_bare_control():
    model = accelerate_model(FAMILIES["wan"].build(0), "none")
    sample("wan", model, 6)
    assert not any(saved(model))
