"""Sites ``block`` and ``module``: which parts are found, what runs at a predicted step, what is stored."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn
from torch.overrides import TorchFunctionMode

from diffcache import ConfigError, UnsupportedModelError, accelerate_model, accelerate_pipeline, denoising
from diffcache.hooks.modules import find_units, unit_kinds

from .denoisers import DENOISERS
from .models import FAMILIES, decisions, normal, run_wan, sample, walk_steps, wan_pipeline

KINDS = {
    "wan": ["spatial", "cross", "feedforward"] * 2,
    "cogvideox": ["spatial", "feedforward"] * 2,
    "flux": ["spatial", "feedforward", "feedforward", "fused", "fused"],
    "dit": ["spatial", "feedforward"] * 2,
}


@pytest.mark.parametrize("family", KINDS)
def test_attention_and_feed_forward_of_every_block_are_found(family):
    units = find_units(FAMILIES[family].build(0), "module", unit_kinds("module"))
    assert [unit.kind for unit in units] == KINDS[family]


#: class -> kinds that names alone would get wrong, by the end of a unit's name
ODD_KINDS = {
    "OmniGenTransformer2DModel": {"self_attn": "spatial"},
    "T5FilmDecoder": {"layer.0.attention": "spatial", "layer.1.attention": "cross", "DenseReluDense": "feedforward"},
    "Kandinsky6Transformer3DModel": {"va_cross_attention": "spatial", "video_dec_block.cross_attention": "cross"},
    "LTX2VideoTransformer3DModel": {"audio_to_video_attn": "spatial", "audio_attn2": "cross"},
    "LatteTransformer3DModel": {"temporal_transformer_blocks.0.attn1": "temporal", "attn2": "cross"},
    "WanAnimateTransformer3DModel": {"face_adapter.0": "cross"},
    "SanaWMTransformer3DModel": {"blocks.0.attn": "spatial", "blocks.0.cross_attn": "cross"},
    "Flux2Transformer2DModel": {"single_transformer_blocks.0.attn": "fused", "transformer_blocks.0.attn": "spatial"},
    "RFD4ProteinaTransformer": {"mhba.mha": "spatial", "transition.transition": "feedforward"},
}  # fmt: skip


@pytest.mark.parametrize("name", ODD_KINDS)
def test_kinds_of_unusual_modules(name):
    units = {unit.name: unit.kind for unit in find_units(DENOISERS[name].tiny(), "module", unit_kinds("module"))}
    for end, kind in ODD_KINDS[name].items():
        found = {k for unit, k in units.items() if unit == end or unit.endswith(f".{end}")}
        assert found == {kind}, (end, units)


def test_attention_of_a_fused_block_is_found_where_attention_alone_is_asked_for():
    units = find_units(FAMILIES["flux"].build(0), "module", frozenset({"spatial"}))
    assert [unit.name.rsplit(".", 1)[-1] for unit in units] == ["attn"] * 3


class Matrices(TorchFunctionMode):
    """Notes the parameters that are multiplied with, whatever module forward was replaced."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.names = {id(p): name for name, p in model.named_parameters()}
        self.used: set[str] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is nn.functional.linear:
            self.used.add(self.names[id(args[1])])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", KINDS)
def test_no_matrix_of_a_cached_module_runs_at_a_predicted_step(family):
    model = FAMILIES[family].build(0)
    accelerate_model(model, "fora", interval=3)
    units = find_units(model, "module", unit_kinds("module"))
    joined = [unit.name.removesuffix("proj_out") for unit in units if unit.kind == "fused"]
    inside = tuple(f"{unit.name}." for unit in units)
    inside += tuple(f"{block}{part}." for block in joined for part in ("attn", "proj_mlp"))
    with Matrices(model) as matrices:
        for step, _ in enumerate(walk_steps(family, model, 9)):
            heavy = [name for name in matrices.used if name.startswith(inside)]
            assert bool(heavy) == (decisions(model)[0][step] == "F")
            matrices.used.clear()
    assert "cc" in decisions(model)[0]


#: blocks that hold parts of their attention or feed-forward as single matrices
SINGLE = {
    "PRXTransformer2DModel": ("gate_proj", "up_proj", "down_proj"),
    "MiniMaxMusic3Transformer1DModel": ("ff_in", "ff_out"),
    "NucleusMoEImageTransformer2DModel": ("encoder_proj",),
}


@pytest.mark.parametrize("name", SINGLE)
def test_what_only_feeds_a_cached_part_does_not_run(name):
    model, arguments = DENOISERS[name].tiny(), DENOISERS[name].trajectory()
    accelerate_model(model, "fora", interval=3)
    letters, used = "", []
    with torch.no_grad(), denoising(model, 4), Matrices(model) as matrices:
        for step in range(4):
            model(**arguments(1 - step / 4))
            used.append({n.split(".")[-2] for n in matrices.used} & set(SINGLE[name]))
            matrices.used.clear()
        letters = decisions(model)[0]
    assert "c" in letters
    assert [bool(found) for found in used] == [letter == "F" for letter in letters]
    assert used[0] == set(SINGLE[name])


@pytest.mark.parametrize(("method", "depth"), [("fora", 1), ("taylorseer", 2), ("hicache", 3)])
def test_memory_is_depth_times_the_results(method, depth):
    model = FAMILIES["wan"].build(0)
    results = {}

    def keep(module, args, output):
        results[module] = output.numel() * output.element_size()

    handles = [u.module.register_forward_hook(keep) for u in find_units(model, "module", unit_kinds("module"))]
    sample("wan", model)
    for handle in handles:
        handle.remove()
    accelerate_model(model, method, interval=3)
    sample("wan", model)
    assert {s.cached_bytes for s in model.diffcache.stats().segments} == {depth * sum(results.values())}


def test_results_are_not_copied():
    model = FAMILIES["wan"].build(0)
    accelerate_model(model, "fora", interval=3)
    seen = {}
    model.blocks[0].ffn.net[2].register_forward_hook(lambda m, a, out: seen.setdefault(out.data_ptr(), out))
    for _ in walk_steps("wan", model, 3):
        ((_, hook),) = model.diffcache.hooks.values()
        for branch in hook.segment.branches.values():
            (value,) = branch.cache.slots["blocks.0.ffn", 0].values[0]
            assert value.data_ptr() in seen


def test_a_stored_result_that_somebody_overwrites_is_not_used_again():
    model = FAMILIES["wan"].build(0)
    accelerate_model(model, "fora", interval=3)
    for step, _ in enumerate(walk_steps("wan", model, 8)):
        if step == 3:
            ((_, hook),) = model.diffcache.hooks.values()
            for branch in hook.segment.branches.values():
                branch.cache.slots["blocks.0.ffn", 0].values[0][0].add_(1.0)
    assert decisions(model)[0][4] == "F"
    assert {f.reason for s in model.diffcache.stats().segments for f in s.fallbacks} == {
        "a stored result was written to by the model"
    }


def test_pab_computes_each_kind_at_its_own_range():
    pipe = accelerate_pipeline(wan_pipeline(), "pab", spatial=2, cross=4, low=0, high=1001)
    calls = {}
    block = pipe.transformer.blocks[0]
    for name in ("attn1", "attn2", "ffn"):
        inner = getattr(block, name).to_q if name != "ffn" else getattr(block, name).net[2]
        inner.register_forward_pre_hook(lambda m, a, name=name: calls.update({name: calls.get(name, 0) + 1}))
    run_wan(pipe, 12)
    (letters,) = {s.decisions for s in pipe.diffcache.stats().segments}
    assert letters == "FcpcFcpcFcpF"
    branches = len(pipe.diffcache.stats().segments)
    assert calls == {"ffn": 12 * branches, "attn1": 7 * branches, "attn2": 4 * branches}


def test_a_predictor_that_measures_tokens_is_refused():
    with pytest.raises(ConfigError, match="predictor: trend measures every token"):
        accelerate_model(FAMILIES["wan"].build(0), "interval", site="module", predictor="trend")


def test_a_kind_that_the_model_lacks_is_refused():
    with pytest.raises(UnsupportedModelError, match="no module of kind cross, temporal; it has: "):
        accelerate_model(FAMILIES["dit"].build(0), "pab", spatial=None)


def test_a_module_that_was_not_called_when_computing_runs():
    """A value that is missing is no reason to invent one."""
    model = FAMILIES["wan"].build(0)
    accelerate_model(model, "fora", interval=4)
    kind, skipped = FAMILIES["wan"], model.blocks[1]
    with torch.no_grad(), denoising(model, 6):
        for step in range(6):
            if step == 1:
                ((_, hook),) = model.diffcache.hooks.values()
                for branch in hook.segment.branches.values():
                    del branch.cache.slots["blocks.1.ffn", 0]
            ran = []
            handle = skipped.ffn.net[2].register_forward_pre_hook(lambda m, a, ran=ran: ran.append(1))
            model(
                hidden_states=kind.latents(step, 1, 2),
                timestep=kind.time(1 - step / 6)[None],
                **kind.conditioning(1, 1),
            )
            handle.remove()
            if step == 1:
                assert ran


def test_branches_with_texts_of_unlike_length_do_not_mix():
    """Flux's fused blocks: what stands in for a part that does not run has the shape of its own branch."""
    kind, model = FAMILIES["flux"], FAMILIES["flux"].build(0)
    accelerate_model(model, "fora", interval=3)
    calls, outputs = [], []
    for words in (6, 9):
        text = {"encoder_hidden_states": normal(1, words, 16, seed=words), "txt_ids": torch.zeros(words, 3)}
        calls.append({**kind.conditioning(words, 1), **kind.fixed(2), **text})
    with torch.no_grad(), denoising(model, 4):
        for step in range(4):
            time = torch.tensor([1.0 - 1e-6 * step])
            outputs.append([model(hidden_states=kind.latents(0, 1, 2), timestep=time, **c).sample for c in calls])
    assert decisions(model) == ["FccF"] * 2
    for found in outputs[1:]:
        for a, b in zip(found, outputs[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_value_that_is_not_finite_leaves_with_the_step_that_made_it():
    """Some kinds of attention are computed at a partial step: what they stored is watched like a full step's."""
    kind, model, finite = FAMILIES["wan"], FAMILIES["wan"].build(0), []
    accelerate_model(model, "pab", spatial=2, cross=4, low=0, high=1001)
    sampler, bias = FlowMatchEulerDiscreteScheduler(), model.blocks[0].attn1.to_out[0].bias
    sampler.set_timesteps(8)
    sampler.set_begin_index(0)
    with torch.no_grad(), denoising(model, 8, sampler):
        for step, t in enumerate(sampler.timesteps):
            bias.data.fill_(float("nan") if step == 2 else 0.0)  # which computes self-attention
            output = model(kind.latents(step, 1, 2), t[None], **kind.conditioning(1, 1)).sample
            finite.append(bool(output.isfinite().all()))
            sampler.step(output, t, output)
    assert decisions(model)[0].startswith("FcpF")
    assert [step for step, fine in enumerate(finite) if not fine] == [2]


class Overwriting(nn.Module):
    """A block that adds to the tensor that it was given."""

    def __init__(self):
        super().__init__()
        self.attn = nn.Linear(8, 8)

    def forward(self, hidden_states):
        return hidden_states.add_(self.attn(hidden_states))


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Overwriting() for _ in range(2)])

    def forward(self, hidden_states, timestep):
        hidden_states = hidden_states * (1 + timestep)
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return hidden_states


@pytest.mark.filterwarnings("ignore:.*nothing was skipped")
def test_a_block_that_writes_into_its_input_is_never_predicted():
    """What it added can no longer be told."""
    dense, outputs = InPlace().eval(), []
    model = InPlace().eval()
    model.load_state_dict(dense.state_dict())
    accelerate_model(model, "interval", site="block")
    with torch.no_grad(), denoising(model, 6):
        for step in range(6):
            call = dict(hidden_states=normal(1, 4, 8, seed=step), timestep=torch.tensor(1.0 - step / 6))
            outputs.append(torch.equal(model(**call), dense(**call)))
    assert all(outputs)
    (segment,) = model.diffcache.stats().segments
    assert {f.reason for f in segment.fallbacks} == {"Overwriting writes into its input"}
