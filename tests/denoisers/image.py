"""Image denoisers that take their text by cross-attention, or a class label."""

from __future__ import annotations

import torch
from diffusers import (
    DiTTransformer2DModel,
    HunyuanDiT2DModel,
    LuminaNextDiT2DModel,
    PixArtTransformer2DModel,
    PRXTransformer2DModel,
    SanaTransformer2DModel,
)

from ..models import normal
from .base import TEXT, WORDS, Denoiser, picture, turns, unit, whole, words

SMALL = dict(num_attention_heads=2, attention_head_dim=8, in_channels=4, sample_size=8)
#: Sana makes pictures and videos
SANA = dict(out_channels=4, num_layers=2, num_cross_attention_heads=2, caption_channels=TEXT)


def _two_texts(seed: int, size: int):
    return {
        **words(seed, size),
        "text_embedding_mask": torch.ones(1, WORDS),
        "encoder_hidden_states_t5": normal(1, 3, TEXT, seed=seed + 1),
        "text_embedding_mask_t5": torch.ones(1, 3),
        "image_rotary_emb": turns(8 * size, 8),
    }


def _lumina_next(seed: int, size: int):
    angles = normal(16, 16, 4, seed=3)
    return {
        **words(seed, size),
        "encoder_mask": torch.ones(1, WORDS),
        "image_rotary_emb": torch.polar(torch.ones_like(angles), angles),
        "cross_attention_kwargs": {},
    }


def _lumina_next_model() -> LuminaNextDiT2DModel:
    model = LuminaNextDiT2DModel(
        sample_size=16,
        hidden_size=16,
        num_layers=2,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        cross_attention_dim=TEXT,
        learn_sigma=False,
    )
    torch.nn.init.normal_(model.pad_token)  # left as the memory was
    return model


IMAGE = {
    "DiTTransformer2DModel": Denoiser(
        lambda: DiTTransformer2DModel(out_channels=4, num_layers=2, **SMALL),
        lambda seed, size: {"hidden_states": normal(1, 4, 8 * size, 8 * size, seed=seed)},
        lambda seed, size: {"class_labels": torch.tensor([seed % 1000])},
        whole,
    ),
    "PixArtTransformer2DModel": Denoiser(
        lambda: PixArtTransformer2DModel(
            num_layers=2, cross_attention_dim=16, caption_channels=TEXT, use_additional_conditions=False, **SMALL
        ),
        picture(),
        words,
    ),
    "HunyuanDiT2DModel": Denoiser(
        lambda: HunyuanDiT2DModel(
            num_layers=4,
            patch_size=2,
            hidden_size=16,
            cross_attention_dim=TEXT,
            cross_attention_dim_t5=TEXT,
            pooled_projection_dim=8,
            text_len=WORDS,
            text_len_t5=3,
            use_style_cond_and_image_meta_size=False,
            **SMALL,
        ),
        picture(),
        _two_texts,
    ),
    "LuminaNextDiT2DModel": Denoiser(_lumina_next_model, picture(), _lumina_next, unit),
    "SanaTransformer2DModel": Denoiser(
        lambda: SanaTransformer2DModel(cross_attention_head_dim=8, cross_attention_dim=16, **SANA, **SMALL),
        picture(),
        words,
    ),
    "PRXTransformer2DModel": Denoiser(
        lambda: PRXTransformer2DModel(
            in_channels=4, context_in_dim=TEXT, hidden_size=16, num_heads=2, depth=2, axes_dim=[4, 4]
        ),
        picture(),
        words,
        unit,
    ),
}
