"""ControlNet residuals and an audio pipeline: real pipelines of diffusers without a ``cache_context``."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderOobleck,
    EDMDPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxControlNetPipeline,
    StableAudioDiTModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
)
from torch.nn.modules.module import register_module_forward_pre_hook

from diffcache import accelerate_pipeline, restore

from .composing import LETTERS, SITES
from .models import TEXT, decisions, flux, normal, randomise, seeded


def controlled(seed=0):
    with seeded(seed):
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8,) * 4,
            norm_num_groups=4,
            latent_channels=4,
            shift_factor=0.0,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ).eval()
        controlnet = FluxControlNetModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=TEXT,
            pooled_projection_dim=TEXT,
            axes_dims_rope=(4, 4, 8),
        )
    pipe = FluxControlNetPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=flux(seed),
        controlnet=randomise(controlnet, seed),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, steps=9, *, seed=0, scale=1.0):
    return pipe(
        prompt_embeds=normal(1, 6, TEXT, seed=seed + 100),
        pooled_prompt_embeds=normal(1, TEXT, seed=seed + 101),
        control_image=normal(1, 3, 64, 64, seed=3).clamp(-1, 1),
        controlnet_conditioning_scale=scale,
        height=64,
        width=64,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
    ).images


def sounding():
    with seeded(0):
        transformer = StableAudioDiTModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=8,
            num_key_value_attention_heads=1,
            cross_attention_dim=8,
            cross_attention_input_dim=TEXT,
            time_proj_dim=8,
            global_states_input_dim=2 * TEXT,
        )
        vae = AutoencoderOobleck(
            encoder_hidden_size=4,
            downsampling_ratios=[2, 2],
            channel_multiples=[1, 1],
            decoder_channels=4,
            decoder_input_channels=4,
            sampling_rate=16,
        ).eval()
        projection = StableAudioProjectionModel(TEXT, TEXT, min_value=0, max_value=64).eval()
    pipe = StableAudioPipeline(
        vae=vae,
        text_encoder=None,
        projection_model=projection,
        tokenizer=None,
        transformer=randomise(transformer),
        scheduler=EDMDPMSolverMultistepScheduler(prediction_type="v_prediction", sigma_data=1.0),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def play(pipe, steps=9, *, seed=0):
    """Batched guidance."""
    return pipe(
        prompt_embeds=normal(1, 6, TEXT, seed=seed + 100),
        negative_prompt_embeds=normal(1, 6, TEXT, seed=7),
        audio_end_in_s=1.0,
        num_inference_steps=steps,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
    ).audios


PIPES = {"flux + controlnet": (controlled, draw), "stable audio": (sounding, play)}


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("kind", PIPES)
def test_never_skipping_is_the_bare_pipeline(kind, site):
    build, run = PIPES[kind]
    bare, pipe = build(), accelerate_pipeline(build(), "interval", site=site, max_skip=0)
    for seed in (0, 1):
        assert torch.equal(run(pipe, 4, seed=seed), run(bare, 4, seed=seed))


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("kind", PIPES)
def test_steps_are_predicted_in_every_call(kind, site):
    build, run = PIPES[kind]
    pipe = accelerate_pipeline(build(), "interval", interval=3, site=site)
    first = run(pipe)
    assert first.isfinite().all()
    assert decisions(pipe) == [LETTERS]
    assert not pipe.diffcache.stats().segments[0].fallbacks
    run(pipe, seed=1)
    assert torch.equal(run(pipe), first)
    restore(pipe)
    assert torch.equal(run(pipe, 3), run(build(), 3))


def test_a_step_with_control_is_not_counted_twice():
    """At a predicted step of site ``body`` the residual, in which the control is, stands for all blocks: with a
    history that stands still, prediction and computation agree."""
    pipe = accelerate_pipeline(controlled(), "interval", interval=3, site="body")
    model, outputs = pipe.transformer, []
    frozen = {}

    def hold(module, args, kwargs):
        """The same inputs at every step; only the number of the step goes on."""
        frozen.update({k: v for k, v in kwargs.items() if k not in frozen})
        return args, dict(frozen)

    before = model.register_forward_pre_hook(hold, with_kwargs=True, prepend=True)
    after = model.register_forward_hook(lambda module, args, output: outputs.append(output[0]))
    draw(pipe)
    before.remove()
    after.remove()
    assert decisions(pipe) == [LETTERS]
    for output in outputs:
        torch.testing.assert_close(output, outputs[0], rtol=1e-4, atol=1e-5)


def test_the_controlnet_itself_is_left_alone():
    pipe = accelerate_pipeline(controlled(), "interval", interval=3)
    calls = [0]

    def count(module, args):
        calls[0] += module is pipe.controlnet

    handle = register_module_forward_pre_hook(count)
    draw(pipe)
    handle.remove()
    assert calls[0] == 9
    assert "forward" not in pipe.controlnet.__dict__
