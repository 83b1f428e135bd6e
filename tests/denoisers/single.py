"""Image denoisers that read text and picture as one sequence."""

from __future__ import annotations

import torch
from diffusers import (
    ErnieImageTransformer2DModel,
    Ideogram4Transformer2DModel,
    Krea2Transformer2DModel,
    Lumina2Transformer2DModel,
    OmniGenTransformer2DModel,
    QwenImage21Transformer2DModel,
    ZImageTransformer2DModel,
)
from diffusers.models.transformers.transformer_ideogram4 import LLM_TOKEN_INDICATOR, OUTPUT_IMAGE_INDICATOR

from ..models import normal
from .base import HEADS, PACKED, TEXT, WORDS, Denoiser, picture, tokens, unit, words_where


def _ernie(seed: int, size: int):
    return {"text_bth": normal(1, WORDS, TEXT, seed=seed), "text_lens": torch.tensor([WORDS])}


def _ideogram_noise(seed: int, size: int):
    return {"hidden_states": normal(1, WORDS + 8 * size, 16, seed=seed)}


def _ideogram(seed: int, size: int):
    length = WORDS + 8 * size
    kinds = [LLM_TOKEN_INDICATOR] * WORDS + [OUTPUT_IMAGE_INDICATOR] * (8 * size)
    return {
        "encoder_hidden_states": normal(1, length, TEXT, seed=seed),
        "position_ids": torch.arange(length)[None, :, None].expand(1, length, 3),
        "segment_ids": torch.zeros(1, length, dtype=torch.long),
        "indicator": torch.tensor([kinds]),
    }


def _krea(seed: int, size: int):
    length = WORDS + 8 * size
    return {
        "encoder_hidden_states": normal(1, WORDS, 2, TEXT, seed=seed),
        "position_ids": torch.arange(length)[:, None].expand(length, 3).float(),
    }


def _omnigen(seed: int, size: int):
    length = WORDS + 1 + 8 * size
    return {
        "input_ids": (torch.arange(WORDS)[None] * (seed + 1)) % 32,
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": torch.ones(1, length, length),
        "position_ids": torch.arange(length)[None],
    }


def _qwen21(seed: int, size: int):
    slots = 2 * size
    return {
        "encoder_hidden_states": normal(1, WORDS, TEXT, seed=seed),
        "img_shapes": [[(1, 2, 4 * size)]],
        "img_mask": torch.tensor([[False] * WORDS + [True] * slots]),
    }


def _z_image(seed: int, size: int):
    return {"x": [normal(4, 1, 8, 4 * size, seed=seed)]}


def _captions(seed: int, size: int):
    return {"cap_feats": [normal(WORDS, TEXT, seed=seed)]}


SINGLE = {
    "Lumina2Transformer2DModel": Denoiser(
        lambda: Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=32,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=8,
            axes_dim_rope=(4, 6, 6),
            axes_lens=(32, 32, 32),
            cap_feat_dim=TEXT,
        ),
        picture(),
        words_where,
        unit,
    ),
    "ZImageTransformer2DModel": Denoiser(
        lambda: ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=TEXT,
            axes_dims=[4, 6, 6],
            axes_lens=[128, 32, 32],
        ),
        _z_image,
        _captions,
        lambda level: {"t": torch.tensor([1.0 - level])},
    ),
    "ErnieImageTransformer2DModel": Denoiser(
        lambda: ErnieImageTransformer2DModel(
            hidden_size=32,
            num_attention_heads=2,
            num_layers=2,
            ffn_hidden_size=32,
            in_channels=4,
            out_channels=4,
            text_in_dim=TEXT,
            rope_axes_dim=(4, 6, 6),
        ),
        picture(height=4),
        _ernie,
    ),
    "Ideogram4Transformer2DModel": Denoiser(
        lambda: Ideogram4Transformer2DModel(
            intermediate_size=32, adaln_dim=8, llm_features_dim=TEXT, mrope_section=(4, 2, 2), **PACKED, **HEADS
        ),
        _ideogram_noise,
        _ideogram,
        unit,
    ),
    "Krea2Transformer2DModel": Denoiser(
        lambda: Krea2Transformer2DModel(
            num_key_value_heads=1,
            intermediate_size=32,
            timestep_embed_dim=16,
            text_hidden_dim=TEXT,
            num_text_layers=2,
            text_num_attention_heads=2,
            text_num_key_value_heads=2,
            text_intermediate_size=32,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 6, 6),
            **PACKED,
            **HEADS,
        ),
        tokens(),
        _krea,
        unit,
    ),
    "OmniGenTransformer2DModel": Denoiser(
        lambda: OmniGenTransformer2DModel(
            in_channels=4,
            hidden_size=32,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=32,
            num_layers=2,
            pad_token_id=0,
            vocab_size=32,
            max_position_embeddings=64,
            original_max_position_embeddings=64,
            rope_scaling={"long_factor": [1.0] * 8, "short_factor": [1.0] * 8},
            pos_embed_max_size=16,
            time_step_dim=16,
        ),
        picture(),
        _omnigen,
        unit,
    ),
    "QwenImage21Transformer2DModel": Denoiser(
        lambda: QwenImage21Transformer2DModel(
            out_channels=16, context_in_dim=TEXT, axes_dims_rope=(4, 6, 6), **PACKED, **HEADS
        ),
        tokens(),
        _qwen21,
        unit,
    ),
}
