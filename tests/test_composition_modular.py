"""diffusers' modular pipelines and their guiders: no ``cache_context``, one to three calls a step, nothing reset at the
end of a call."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    AdaptiveProjectedGuidance,
    AutoGuidance,
    ClassifierFreeGuidance,
    SkipLayerGuidance,
    TangentialClassifierFreeGuidance,
    UniPCMultistepScheduler,
    Wan22Blocks,
    WanBlocks,
)
from diffusers.hooks import LayerSkipConfig

from diffcache import accelerate_pipeline, restore

from .composing import LETTERS, SITES
from .models import TEXT, decisions, normal, wan

SKIPPED = LayerSkipConfig(indices=[1], fqn="blocks", skip_attention=True, skip_ff=True)

GUIDERS = {
    "cfg": lambda: ClassifierFreeGuidance(guidance_scale=3.0),
    "cfg-stops": lambda: ClassifierFreeGuidance(guidance_scale=3.0, stop=0.6),
    "none": lambda: ClassifierFreeGuidance(guidance_scale=1.0),
    "projected": lambda: AdaptiveProjectedGuidance(guidance_scale=3.0),
    "tangential": lambda: TangentialClassifierFreeGuidance(guidance_scale=3.0),
    "auto": lambda: AutoGuidance(guidance_scale=3.0, auto_guidance_config=SKIPPED),
}
#: calls the model once more with the same prompt, and hooks that leave some of its layers out
PERTURBING = {
    "skip-layer": lambda: SkipLayerGuidance(
        guidance_scale=3.0,
        skip_layer_config=SKIPPED,
        skip_layer_guidance_start=0.0,
        skip_layer_guidance_stop=1.0,
    ),
}


def modular(guider="cfg", blocks=WanBlocks, **more):
    """The part of a real modular pipeline between the text encoder and the decoder."""
    pipe = blocks().sub_blocks["denoise"].init_pipeline()
    pipe.update_components(
        transformer=wan(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        guider={**GUIDERS, **PERTURBING}[guider](),
        **more,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe, steps=9, *, seed=0):
    return pipe(
        prompt_embeds=normal(1, 6, TEXT, seed=seed + 100),
        negative_prompt_embeds=normal(1, 6, TEXT, seed=7),
        latents=normal(1, 4, 3, 4, 4, seed=seed),
        height=32,
        width=32,
        num_frames=9,
        num_inference_steps=steps,
        output="latents",
    )


@pytest.mark.parametrize("guider", [*GUIDERS, *PERTURBING])
def test_never_skipping_is_the_bare_pipeline(guider):
    bare = modular(guider)
    pipe = accelerate_pipeline(modular(guider), "interval", site="body", max_skip=0)
    for seed in (0, 1):
        assert torch.equal(run(pipe, 5, seed=seed), run(bare, 5, seed=seed))


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("guider", GUIDERS)
def test_branches_of_a_guider_are_predicted_together(guider, site):
    pipe = accelerate_pipeline(modular(guider), "interval", interval=3, site=site)
    first = run(pipe)
    assert first.isfinite().all()
    letters = decisions(pipe)
    assert letters[0] == LETTERS
    if guider == "cfg-stops":
        assert letters[1].rstrip("-") == LETTERS[: len(letters[1].rstrip("-"))]
        assert letters[1].endswith("-")
    else:
        assert len(letters) == (1 if guider == "none" else 2)
        assert set(letters) == {LETTERS}
    assert not any(s.fallbacks for s in pipe.diffcache.stats().segments)
    run(pipe, seed=1)
    assert torch.equal(run(pipe), first)
    restore(pipe)
    assert torch.equal(run(pipe, 3), run(modular(guider), 3))


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("guider", PERTURBING)
def test_a_call_with_changed_layers_is_never_predicted_from_one_without(guider, site):
    """Nothing in the call tells the two apart: the second one of a step is computed, and counted with its reason."""
    pipe = accelerate_pipeline(modular(guider), "interval", interval=3, site=site)
    first = run(pipe)
    assert first.isfinite().all()
    reasons = {f.reason for s in pipe.diffcache.stats().segments for f in s.fallbacks}
    assert reasons == {"one branch was called twice in a step"}
    assert "c" in decisions(pipe)[0]
    assert torch.equal(run(pipe), first)
    restore(pipe)
    assert torch.equal(run(pipe, 3), run(modular(guider), 3))


@pytest.mark.parametrize("at", [0, 3, 7])
def test_an_exception_in_mid_run_leaves_the_next_run_clean(at):
    pipe = accelerate_pipeline(modular(), "interval", interval=3, predictor="linear")
    wanted = run(pipe, seed=1)
    calls = iter(range(1000))

    def fail(module, args):
        if next(calls) >= 2 * at:
            raise RuntimeError("stop")

    handle = pipe.transformer.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="stop"):
        run(pipe, seed=2)
    handle.remove()
    assert torch.equal(run(pipe, seed=1), wanted)
    assert decisions(pipe) == [LETTERS] * 2


def test_a_guider_put_in_after_acceleration():
    pipe = accelerate_pipeline(modular("none"), "interval", interval=3)
    run(pipe)
    pipe.update_components(guider=GUIDERS["cfg"]())
    fresh = accelerate_pipeline(modular("cfg"), "interval", interval=3)
    assert torch.equal(run(pipe), run(fresh))
    assert decisions(pipe) == decisions(fresh) == [LETTERS] * 2


@pytest.mark.parametrize("max_skip", [0, 8])
def test_two_experts(max_skip):
    def build():
        pipe = modular(blocks=Wan22Blocks, transformer_2=wan(1), guider_2=GUIDERS["cfg"]())
        pipe.update_components(boundary_ratio=0.6)
        return pipe

    bare = run(build(), 16)
    pipe = accelerate_pipeline(build(), "interval", interval=3, max_skip=max_skip)
    latents = run(pipe, 16)
    segments = pipe.diffcache.stats().segments
    assert [s.expert for s in segments] == ["transformer"] * 2 + ["transformer_2"] * 2
    if max_skip == 0:
        assert torch.equal(latents, bare)
    else:
        assert latents.isfinite().all()
        assert all(s.decisions[0] == "F" and s.decisions[-1] == "F" and "c" in s.decisions for s in segments)
