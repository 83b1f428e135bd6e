"""HunyuanVideo and what has its shape: video and text attend to each other, in two lists."""

from __future__ import annotations

import torch
from diffusers import (
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoFramepackTransformer3DModel,
    HunyuanVideoTransformer3DModel,
    MotifVideoTransformer3DModel,
)

from ..models import normal
from .base import HEADS, LATENT, TEXT, Denoiser, film, masked_words, pooled, together, words

SMALL = dict(text_embed_dim=TEXT, rope_axes_dim=(4, 6, 6), **LATENT, **HEADS)
ONE_TEXT = dict(num_single_layers=2, num_refiner_layers=1, pooled_projection_dim=TEXT, guidance_embeds=False, **SMALL)


def _two_texts(seed: int, size: int):
    return {
        **masked_words(seed, size),
        "encoder_hidden_states_2": normal(1, 3, 8, seed=seed + 1),
        "encoder_attention_mask_2": torch.ones(1, 3),
        "image_embeds": normal(1, 2, 8, seed=seed + 2),
    }


def _sections(seed: int, size: int):
    """Framepack: the section's frames, and clean and shrunk ones of the history."""
    latent = lambda frames, scale: normal(1, 4, frames, 8 * scale, 4 * size * scale, seed=seed + frames)  # noqa: E731
    return {
        **masked_words(seed, size),
        "image_embeds": normal(1, 2, 8, seed=seed + 2),
        "indices_latents": torch.arange(7, 10),
        "latents_clean": latent(2, 1),
        "indices_latents_clean": torch.arange(2),
        "latents_history_2x": latent(2, 1),
        "indices_latents_history_2x": torch.arange(2, 4),
        "latents_history_4x": latent(4, 1),
        "indices_latents_history_4x": torch.arange(3, 7),
    }


HUNYUAN = {
    "HunyuanVideoTransformer3DModel": Denoiser(
        lambda: HunyuanVideoTransformer3DModel(**ONE_TEXT), film(), together(masked_words, pooled())
    ),
    "HunyuanVideo15Transformer3DModel": Denoiser(
        lambda: HunyuanVideo15Transformer3DModel(
            num_refiner_layers=1, patch_size=2, text_embed_2_dim=8, image_embed_dim=8, task_type="t2v", **SMALL
        ),
        film(),
        _two_texts,
    ),
    "HunyuanVideoFramepackTransformer3DModel": Denoiser(
        lambda: HunyuanVideoFramepackTransformer3DModel(
            has_image_proj=True, image_proj_dim=8, has_clean_x_embedder=True, **ONE_TEXT
        ),
        film(),
        together(_sections, pooled()),
    ),
    "MotifVideoTransformer3DModel": Denoiser(
        lambda: MotifVideoTransformer3DModel(num_single_layers=3, num_decoder_layers=1, **SMALL), film(), words
    ),
}
