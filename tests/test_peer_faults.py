"""What cache-dit 1.5.3 and diffusers 0.42.1 get wrong, and must hold here: values, decisions and coverage.

Each test names the law; its docstring says what was seen to fail elsewhere. The state of hooks, pipelines and graphs is
in ``test_peer_faults_state.py``, what documents say in ``test_peer_faults_documents.py``.
"""

from __future__ import annotations

import re

import pytest
import torch
from diffusers import ChromaPipeline, FlowMatchEulerDiscreteScheduler
from torch import nn

from diffcache import NothingSkippedWarning, accelerate_model, accelerate_pipeline, denoising, restore
from diffcache.hooks.modules import find_units, unit_kinds

from .composing import LETTERS
from .denoisers import DENOISERS
from .denoisers.conformance import outcome
from .denoisers.running import METHODS, STEPS, bare, equal, letters, method_on, model_of, run, run_constant
from .models import FAMILIES, TEXT, decisions, flux_pipeline, normal, run_flux, run_wan, wan, wan_pipeline
from .test_composition_control import controlled, draw

# -- what a model adds between its blocks ------------------------------------------------------------------------------

PACKED = normal(1, 8, 32, seed=9)
#: class -> arguments that make it add something between its blocks; none where it always does
ADDING = {
    "FluxTransformer2DModel": dict(controlnet_block_samples=[PACKED], controlnet_single_block_samples=[-PACKED]),
    "ChromaTransformer2DModel": dict(controlnet_block_samples=[PACKED], controlnet_single_block_samples=[-PACKED]),
    "BriaTransformer2DModel": dict(controlnet_block_samples=[PACKED]),
    "QwenImageTransformer2DModel": dict(controlnet_block_samples=[PACKED]),
    "SD3Transformer2DModel": dict(block_controlnet_hidden_states=[PACKED]),
    "SanaTransformer2DModel": dict(controlnet_block_samples=(normal(1, 32, 16, seed=9),)),
    "ConsisIDTransformer3DModel": {},  # a face
    "WanVACETransformer3DModel": {},  # control blocks
    "WanAnimateTransformer3DModel": {},  # a face
}


def adding(name):
    return lambda step, arguments: {**arguments, **ADDING[name]}


@pytest.mark.filterwarnings("ignore:.*nothing was skipped")
@pytest.mark.parametrize("name", ADDING)
def test_what_a_model_adds_between_its_blocks_is_not_lost(name):
    """cache-dit 1.5.3: with a ControlNet (Flux, Bria) or a face (ConsisID) wrong at threshold 0, or a RuntimeError."""
    wanted = run(name, before=adding(name))
    assert not ADDING[name] or not equal(wanted, bare(name))
    with method_on(name, "first", threshold=0.0) as model:
        assert equal(run(name, before=adding(name)), wanted)
        assert letters(model) == "F" * STEPS


@pytest.mark.parametrize("site", ["body", "first"])
@pytest.mark.parametrize("name", ADDING)
def test_what_a_model_adds_between_its_blocks_is_not_counted_twice(name, site):
    """diffusers 0.42.1: FirstBlockCache's residual holds the ControlNet's part, and the loop adds it once more."""
    with method_on(name, site) as model:
        dense, *outputs = run_constant(name, **ADDING[name])
        assert "c" in letters(model)
    for output in outputs:
        for part, truth in zip(output, dense, strict=True):
            assert (part - truth).norm() <= 1e-5 * truth.norm()


# -- branches ----------------------------------------------------------------------------------------------------------


def test_guidance_halves_no_saving_when_it_is_off_and_mixes_nothing_when_it_is_on():
    """cache-dit 1.5.3: branches by parity of calls: guidance 1 loses half the saving, and cond is up to 24 % off."""
    pipe = accelerate_pipeline(wan_pipeline(), "interval", interval=3)
    run_wan(pipe, 9, guidance=1.0)
    assert decisions(pipe) == [LETTERS]
    run_wan(pipe, 9, guidance=3.0)
    assert decisions(pipe) == [LETTERS] * 2
    flux = accelerate_pipeline(flux_pipeline(), "interval", interval=3)
    run_flux(flux, 9)  # true CFG, which nobody announces
    assert decisions(flux) == [LETTERS] * 2


def outputs_of(model, branches, steps=9):
    """What the model returns to each branch on inputs that shrink, with a sampler that marks the steps."""
    kind, sampler, outputs = FAMILIES["wan"], FlowMatchEulerDiscreteScheduler(), {name: [] for name in branches}
    texts = {name: kind.conditioning(seed, 1) for name, seed in (("cond", 100), ("uncond", 7))}
    sampler.set_timesteps(steps)
    sampler.set_begin_index(0)
    with torch.no_grad(), denoising(model, steps, sampler):
        for step, t in enumerate(sampler.timesteps):
            x = kind.latents(0, 1, 2) * (1 - step / (2 * steps))
            for name in branches:
                outputs[name].append(model(x, t[None], **texts[name], return_dict=False)[0].clone())
            sampler.step(x, t, x)
    return outputs


@pytest.mark.parametrize("site", ["output", "body", "block", "module", "attention"])
def test_no_branch_gets_what_the_other_one_computed(site):
    """diffusers 0.42.1: PAB has one cache a module: uncond gets the attention of cond, and cond is never skipped."""
    way = METHODS[site]
    model = accelerate_model(wan(), way.method, **way.settings)
    both = outputs_of(model, ("cond", "uncond"))
    (decided,) = set(decisions(model))
    assert set(decided) & {"c", "p"}
    for name, found in both.items():
        alone = outputs_of(model, (name,))[name]
        assert decisions(model) == [decided]
        assert all(torch.equal(a, b) for a, b in zip(found, alone, strict=True))


def chroma():
    pipe = ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=DENOISERS["ChromaTransformer2DModel"].tiny(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def paint(pipe, steps=9):
    words = {
        f"{prefix}{name}": value
        for prefix, seed in (("", 100), ("negative_", 7))
        for name, value in (
            ("prompt_embeds", normal(1, 6, TEXT, seed=seed)),
            ("prompt_attention_mask", torch.ones(1, 6)),
        )
    }
    return pipe(
        **words,
        height=64,
        width=64,
        num_inference_steps=steps,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).images


@pytest.mark.parametrize("site", ["output", "body", "module"])
@pytest.mark.parametrize(("build", "go"), [(chroma, paint), (controlled, draw)], ids=["chroma", "flux-controlnet"])
def test_pipelines_without_a_cache_context_are_cached_branch_by_branch(build, go, site):
    """diffusers 0.42.1: 36 of 88 pipelines set no cache context: caches raise, or mix cond and uncond (MagCache)."""
    dense = build()
    wanted = go(dense)
    pipe = accelerate_pipeline(build(), "interval", interval=3, site=site, max_skip=0)
    assert torch.equal(go(pipe), wanted)
    accelerate_pipeline(pipe, "interval", interval=3, site=site)
    calls = []
    pipe.transformer.register_forward_hook(
        lambda module, args, kwargs, output: calls.append((kwargs["encoder_hidden_states"], output[0].clone())),
        with_kwargs=True,
    )
    go(pipe)
    branches = decisions(pipe)
    assert set(branches) == {LETTERS}
    assert len(calls) == len(branches) * len(LETTERS)
    if site == "output":  # reuse: what is returned is what this very branch computed last
        for i, (text, output) in enumerate(calls):
            if LETTERS[i // len(branches)] == "c":
                before = [o for t, o in calls[:i] if torch.equal(t, text)]
                assert torch.equal(output, before[-1])


# -- coverage ----------------------------------------------------------------------------------------------------------

#: rejected by cache-dit, or shadowed by another class's name
UNKNOWN = """Latte MiniMaxH3 MotifVideo NucleusMoEImage AceStep Ideogram4 HunyuanVideoFramepack SanaVideo SanaWM
    StableAudio3 WanAnimate WanAnimate2 JoyImageEditPlus Kandinsky6 Flux3 QwenImage21 SD3"""
#: FirstBlockCache: "not registered", or a crash
UNREGISTERED = """Allegro Chroma SkyReelsV2 Helios HunyuanVideo15 LTX2Video LongCatImage OvisImage GlmImage Bria AceStep
    ChronoEdit WanAnimate MiniMaxH3 NucleusMoEImage Flux2 SD3 Cosmos3 Kandinsky5 ZImage Latte"""
#: TaylorSeer hooks nothing
UNHOOKED = """Wan CogVideoX CogView4 LTXVideo Mochi Allegro Latte SkyReelsV2 Helios PixArt DiT Sana Cosmos3 Kandinsky5
    Lumina2 ZImage"""


def classes(text):
    """Full names of classes."""
    return [next((n for n in DENOISERS if re.match(rf"{b}(Omni)?(Transformer|DiT)", n)), b) for b in text.split()]


def check_first(name):
    found = outcome(name, "first")
    assert found.exact
    assert found.works, found


@pytest.mark.parametrize("name", classes(UNKNOWN))
def test_models_are_known_by_what_they_are_not_by_their_names(name):
    """cache-dit 1.5.3: looks classes up by the first letters of their names; these it rejects."""
    check_first(name)


def test_a_class_may_have_a_name_that_begins_like_another_one():
    """cache-dit 1.5.3: a longer name (HunyuanDiTPAG) is taken for the shorter one (HunyuanDiT)."""
    wanted = accelerate_model(wan(), "fbcache", threshold=10.0)
    renamed = wan()
    renamed.__class__ = type("FluxTransformer2DModelForWan", (type(renamed),), {})
    accelerate_model(renamed, "fbcache", threshold=10.0)
    for a, b in zip(outputs_of(renamed, ("cond",))["cond"], outputs_of(wanted, ("cond",))["cond"], strict=True):
        assert torch.equal(a, b)
    assert "c" in decisions(renamed)[0]


@pytest.mark.parametrize("name", classes(UNREGISTERED))
def test_the_first_block_decides_on_classes_that_nobody_registered(name):
    """diffusers 0.42.1: FirstBlockCache runs on 13 classes; on these it raises or crashes."""
    check_first(name)


@pytest.mark.parametrize("name", classes(UNHOOKED))
def test_taylorseer_finds_attention_and_feed_forward_by_what_they_are(name):
    """diffusers 0.42.1: the default TaylorSeer hooks nothing where attention is called attn1, and does not say so."""
    model = accelerate_model(model_of(name), "taylorseer", interval=3, warmup=2)
    try:
        run_constant(name)
        (segment,) = model.diffcache.stats().segments
    finally:
        restore(model)
    assert "c" in segment.decisions
    assert segment.cached_bytes > 0
    kinds = {unit.kind for unit in find_units(model, "module", unit_kinds("module"))}
    assert kinds & {"spatial", "temporal", "cross", "fused"}
    assert kinds & {"feedforward", "fused"}


# -- decisions ---------------------------------------------------------------------------------------------------------


def heard(method, inputs, model=None, **settings):
    """Decisions and outputs on given inputs, each with a timestep of its own."""
    model, kind, outputs = model or wan(), FAMILIES["wan"], []
    accelerate_model(model, method, **settings)
    with torch.no_grad(), denoising(model, len(inputs)):
        for step, x in enumerate(inputs):
            text = {name: value.expand(len(x), -1, -1) for name, value in kind.conditioning(1, 1).items()}
            t = kind.time(1 - 1e-3 * step).expand(len(x))  # hardly moves: it is the inputs that count
            outputs.append(model(x, t, **text, return_dict=False)[0].clone())
    return decisions(model)[0], outputs


def noise(seed, batch=1):
    return FAMILIES["wan"].latents(seed, batch, 2)


class Adding(nn.Module):
    """A block that adds what it is given: its residual moves as the input does."""

    def __init__(self):
        super().__init__()
        self.attn = nn.Linear(8, 8, bias=False)
        nn.init.eye_(self.attn.weight)

    def forward(self, hidden_states):
        return hidden_states + self.attn(hidden_states)


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks, self.head = nn.ModuleList([Adding() for _ in range(3)]), nn.Linear(8, 8)

    def forward(self, hidden_states, timestep):
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return self.head(hidden_states)


@pytest.mark.parametrize("threshold", [0.5, 1.0, 2.0])
def test_a_threshold_of_one_has_no_meaning_of_its_own(threshold):
    """cache-dit 1.5.3: from 1.0 on a threshold means "always alike"."""
    model, x, decided = accelerate_model(Sum(), "fbcache", threshold=threshold), normal(1, 4, 8, seed=0), []
    for change in (0.9 * threshold, 1.1 * threshold):
        with torch.no_grad(), denoising(model, 3):
            for step in range(3):
                model(x * (1 + change * (step > 0)), torch.tensor(1.0 - step / 10))
        decided += decisions(model)
    assert decided == ["Fcc", "FFc"]


#: methods that decide by what they hear, at a threshold that lets everything pass
LISTENING = {
    "fbcache": dict(threshold=1e9),
    "teacache": dict(threshold=1e9, polynomial=(1.0, 0.0)),
    "easycache": dict(threshold=1e9, warmup=2),
}


@pytest.mark.parametrize("method", LISTENING)
def test_a_signal_that_is_not_a_number_computes(method):
    """diffusers 0.42.1: FirstBlockCache skips on NaN, for NaN > threshold is False."""
    inputs = [noise(0) + 0.1 * step * noise(1) for step in range(10)]
    inputs[5] = inputs[5] * float("nan")
    decided, outputs = heard(method, inputs, **LISTENING[method])
    assert decided[4:7] == "cFF"
    assert [bool(x.isfinite().all()) for x in outputs] == [step != 5 for step in range(10)]


@pytest.mark.filterwarnings("ignore:.*nothing was skipped")
def test_a_first_block_that_adds_nothing_is_no_reason_to_skip():
    """diffusers 0.42.1: FirstBlockCache takes 0/0, which untrained gates give, for "no change"."""
    idle = wan()
    with torch.no_grad():
        for part in (idle.blocks[0].attn1.to_out[0], idle.blocks[0].attn2.to_out[0], idle.blocks[0].ffn.net[2]):
            part.weight.zero_(), part.bias.zero_()
    inputs = [noise(seed) for seed in range(6)]
    wanted = heard("none", inputs, idle)[1]
    decided, outputs = heard("fbcache", inputs, idle, threshold=10.0)
    assert decided == "F" * 6
    assert all(torch.equal(a, b) for a, b in zip(outputs, wanted, strict=True))


@pytest.mark.parametrize("method", LISTENING)
def test_fifteen_still_samples_never_hide_one_that_moves(method):
    """diffusers 0.42.1: the mean over the batch decides; the moving sample is off by a fifth, alone it is not."""
    settings = {**LISTENING[method], "threshold": 0.2}
    moving = [noise(0) + step / 8 * noise(1) for step in range(9)]
    still = [noise(2) + 1e-3 * step * noise(3) for step in range(9)]
    alone, wanted = heard(method, moving, **settings)
    resting, _ = heard(method, still, **settings)
    assert resting.count("c") > alone.count("c")
    together, outputs = heard(
        method, [torch.cat([s.expand(15, *s.shape[1:]), m]) for s, m in zip(still, moving)], **settings
    )
    assert together.replace("p", "F") == alone  # p: the moving one by itself
    for found, want in zip(outputs, wanted, strict=True):
        torch.testing.assert_close(found[15:], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["fbcache", "teacache", "easycache", "worldcache", "magcache", "interval", "pab"])
def test_a_method_that_skips_nothing_says_so_and_why(method):
    """diffusers 0.42.1: SeaCache attaches to 18 classes, skips on 2, and calls itself enabled on all."""
    never = {
        "teacache": dict(threshold=0.0, polynomial=(1.0, 0.0)),
        "magcache": dict(threshold=0.0, ratios=(2.0,) * 8),
        "interval": dict(interval=1),
        "pab": dict(low=0, high=1),
    }
    model = accelerate_model(wan(), method, **never.get(method, dict(threshold=0.0)))
    with pytest.warns(NothingSkippedWarning, match=f"{method}: nothing was skipped: .+"):
        outputs_of(model, ("cond", "uncond"), 8)
    assert set("".join(decisions(model))) == {"F"}
    assert "nothing was skipped" in str(model.diffcache.stats())
