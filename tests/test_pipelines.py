"""Whole pipelines of diffusers with all their components, and a sampler that starts late."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FluxImg2ImgPipeline,
    Ideogram4Pipeline,
)
from diffusers.image_processor import VaeImageProcessor

from diffcache import accelerate_pipeline

from .composing import SITES
from .denoisers import DENOISERS
from .models import TEXT, decisions, flux, normal, run_wan, seeded, wan, wan_pipeline, wan_whole


@pytest.fixture(scope="module")
def whole_wan():
    return wan_whole(transformer=wan(0))


def film(pipe, steps: int = 9) -> np.ndarray:
    return pipe(
        "the player turns left",
        negative_prompt="walks forward",
        height=32,
        width=32,
        num_frames=5,
        num_inference_steps=steps,
        guidance_scale=3.0,
        max_sequence_length=8,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).frames


def test_prompts_to_pictures(whole_wan):
    bare = film(whole_wan)
    accelerate_pipeline(whole_wan, "worldcache", max_skip=0)
    assert np.array_equal(film(whole_wan), bare)
    accelerate_pipeline(whole_wan, "worldcache", threshold=float("inf"))
    frames = film(whole_wan)
    assert frames.shape == bare.shape == (1, 5, 32, 32, 3)
    assert np.isfinite(frames).all()
    assert not np.array_equal(frames, bare)
    letters = decisions(whole_wan)
    assert len(letters) == 2
    assert all("c" in text and len(text) == 9 for text in letters)


def repaint(pipe, steps: int, strength: float) -> torch.Tensor:
    return pipe(
        image=normal(1, 4, 8, 8, seed=3),  # latents pass the encoder by
        prompt_embeds=normal(1, 6, TEXT, seed=1),
        pooled_prompt_embeds=normal(1, TEXT, seed=2),
        height=64,
        width=64,
        strength=strength,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).images


@pytest.mark.parametrize(("strength", "site"), [(1.0, "output"), *((0.6, site) for site in SITES)])
def test_a_late_start_by_the_pipelines_own_call(strength, site):
    pipe = FluxImg2ImgPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=flux(0),
    )
    pipe.latent_channels = 4
    pipe.image_processor = VaeImageProcessor(vae_scale_factor=16, vae_latent_channels=4)
    pipe.set_progress_bar_config(disable=True)
    bare = repaint(pipe, 15, strength)
    accelerate_pipeline(pipe, "interval", site=site, max_skip=0)
    assert torch.equal(repaint(pipe, 15, strength), bare)
    accelerate_pipeline(pipe, "interval", site=site, interval=3)
    assert repaint(pipe, 15, strength).isfinite().all()
    runs = round(15 * strength)
    (letters,) = decisions(pipe)
    assert letters == ("FFF" + "ccF" * 9)[: runs - 1] + "F"  # warm-up and cool-down of the steps that run


@pytest.mark.parametrize("site", SITES)
def test_a_sampler_of_second_order_by_the_pipelines_own_call(site):
    """Heun's calls the denoiser twice in every step but the last: each call is a step of the method."""
    bare, pipe = (wan_pipeline(scheduler=FlowMatchHeunDiscreteScheduler()) for _ in range(2))
    accelerate_pipeline(pipe, "interval", site=site, max_skip=0)
    assert torch.equal(run_wan(pipe, 6), run_wan(bare, 6))
    accelerate_pipeline(pipe, "interval", site=site, interval=3)
    assert run_wan(pipe, 6).isfinite().all()
    assert decisions(pipe) == ["FFFccFccFcF"] * 2


class TextAtHand(Ideogram4Pipeline):
    """The text features are given: the real encoder has 36 layers, whatever its width."""

    def encode_prompt(self, prompt, grid_h, grid_w, max_sequence_length, device):
        length = max_sequence_length + grid_h * grid_w
        ids = self._prepare_ids([3], grid_h, grid_w, max_sequence_length, device)
        return normal(1, length, TEXT, seed=len(prompt)), *ids


def asymmetric() -> Ideogram4Pipeline:
    with seeded(0):
        vae = AutoencoderKLFlux2(
            block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=4, latent_channels=4
        )
    denoisers = [DENOISERS["Ideogram4Transformer2DModel"].tiny(seed) for seed in (0, 1)]
    pipe = TextAtHand(FlowMatchEulerDiscreteScheduler(), vae, None, None, *denoisers)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def two_sided(pipe, steps: int = 12) -> torch.Tensor:
    noise = torch.Generator().manual_seed(0)
    options = dict(guidance_schedule=[3.0] * steps, height=32, width=32, max_sequence_length=6, output_type="latent")
    return pipe("a cat", num_inference_steps=steps, generator=noise, **options).images


def test_two_denoisers_of_one_step_are_cached_side_by_side():
    pipe = asymmetric()
    bare = two_sided(pipe)
    accelerate_pipeline(pipe, "worldcache", max_skip=0)
    assert torch.equal(two_sided(pipe), bare)
    accelerate_pipeline(pipe, "interval", interval=3, warmup=2, predictor="linear")
    assert torch.isfinite(two_sided(pipe)).all()
    segments = pipe.diffcache.stats().segments
    assert [s.expert for s in segments] == ["transformer", "unconditional_transformer"]
    assert len({s.decisions for s in segments}) == 1
    assert all(len(s.decisions) == 12 and s.predicted >= 6 for s in segments)
