"""Image denoisers whose text and picture attend to each other."""

from __future__ import annotations

import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    CogView3PlusTransformer2DModel,
    CogView4Transformer2DModel,
    GlmImageTransformer2DModel,
    HiDreamImageTransformer2DModel,
    HunyuanImageTransformer2DModel,
    JoyImageEditPlusTransformer3DModel,
    JoyImageEditTransformer3DModel,
    NucleusMoEImageTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
)

from ..models import normal
from .base import (
    HEADS,
    LATENT,
    TEXT,
    WORDS,
    Denoiser,
    film,
    masked_words,
    picture,
    pooled,
    together,
    tokens,
    unit,
    words,
)


def _sizes(seed: int, size: int):
    pixels = torch.tensor([[64.0, 32.0 * size]])
    return {"target_size": pixels, "crop_coords": torch.zeros(1, 2)}


def _original(seed: int, size: int):
    return {"original_size": torch.tensor([[64.0, 32.0 * size]])}


def _prior(seed: int, size: int):
    return {
        "prior_token_id": torch.arange(8 * size)[None] % 16,
        "prior_token_drop": torch.zeros(1, 8 * size, dtype=torch.bool),
    }


def _llama(seed: int, size: int):
    return {
        "encoder_hidden_states_t5": normal(1, 3, TEXT, seed=seed),
        "encoder_hidden_states_llama3": normal(4, 1, WORDS, TEXT, seed=seed + 1),
        "pooled_embeds": normal(1, TEXT, seed=seed + 2),
    }


def _hidream_time(level: float):
    return {"timesteps": torch.tensor([1000.0 * level])}


def _qwen(seed: int, size: int):
    return {
        **words(seed, size),
        "encoder_hidden_states_mask": torch.ones(1, WORDS, dtype=torch.bool),
        "img_shapes": [[(1, 2, 4 * size)]],
    }


def _patches(seed: int, size: int):
    return {"hidden_states": normal(1, 8 * size, 4, 1, 2, 2, seed=seed)}


def _patch_shapes(seed: int, size: int):
    return {
        **words(seed, size),
        "encoder_hidden_states_mask": torch.ones(1, WORDS),
        "shape_list": [[(1, 2, 4 * size)]],
    }


def _nucleus() -> NucleusMoEImageTransformer2DModel:
    """The experts' weights are left as the memory was: checkpoints bring them."""
    model = NucleusMoEImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=5,
        joint_attention_dim=TEXT,
        axes_dims_rope=(4, 6, 6),
        num_experts=2,
        moe_intermediate_dim=16,
        capacity_factors=2.0,
        **HEADS,
    )
    for name, parameter in model.named_parameters():
        if name.endswith(("gate_up_proj", "down_proj")):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


#: CogView and GLM: the picture's size is a condition
VIEW = dict(text_embed_dim=TEXT, time_embed_dim=8, condition_dim=4, **LATENT, **HEADS)
JOY = dict(
    in_channels=4, hidden_size=32, num_attention_heads=2, text_dim=TEXT, num_layers=2, rope_dim_list=[4, 6, 6],
    theta=256,
)  # fmt: skip
#: text and picture in 32 features each
CAPTIONS = dict(joint_attention_dim=TEXT, caption_projection_dim=32, **HEADS)

JOINT = {
    "SD3Transformer2DModel": Denoiser(
        lambda: SD3Transformer2DModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            num_layers=3,
            pooled_projection_dim=TEXT,
            pos_embed_max_size=16,
            **CAPTIONS,
        ),
        picture(),
        together(words, pooled()),
    ),
    "AuraFlowTransformer2DModel": Denoiser(
        lambda: AuraFlowTransformer2DModel(
            sample_size=8, num_mmdit_layers=2, num_single_dit_layers=2, pos_embed_max_size=64, **CAPTIONS
        ),
        picture(),
        words,
        unit,
    ),
    "CogView3PlusTransformer2DModel": Denoiser(
        lambda: CogView3PlusTransformer2DModel(pos_embed_max_size=8, sample_size=8, **VIEW),
        picture(),
        together(words, _sizes, _original),
    ),
    "CogView4Transformer2DModel": Denoiser(
        lambda: CogView4Transformer2DModel(sample_size=8, rope_axes_dim=(16, 16), **VIEW),
        picture(),
        together(words, _sizes, _original),
    ),
    "GlmImageTransformer2DModel": Denoiser(
        lambda: GlmImageTransformer2DModel(prior_vq_quantizer_codebook_size=16, **VIEW),
        picture(),
        together(words, _sizes, _prior),
    ),
    "QwenImageTransformer2DModel": Denoiser(
        lambda: QwenImageTransformer2DModel(
            in_channels=16, out_channels=4, num_layers=2, joint_attention_dim=TEXT, axes_dims_rope=(4, 6, 6), **HEADS
        ),
        tokens(),
        _qwen,
        unit,
    ),
    "NucleusMoEImageTransformer2DModel": Denoiser(_nucleus, tokens(), _qwen, unit),
    "HiDreamImageTransformer2DModel": Denoiser(
        lambda: HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            num_layers=2,
            num_single_layers=2,
            caption_channels=[TEXT, TEXT],
            text_emb_dim=TEXT,
            axes_dims_rope=(8, 4, 4),
            max_resolution=(16, 16),
            llama_layers=[0, 1, 2, 3],
            num_routed_experts=2,
            num_activated_experts=1,
            **HEADS,
        ),
        picture(),
        _llama,
        _hidream_time,
    ),
    "HunyuanImageTransformer2DModel": Denoiser(
        lambda: HunyuanImageTransformer2DModel(
            num_single_layers=2,
            num_refiner_layers=1,
            patch_size=(2, 2),
            text_embed_dim=TEXT,
            rope_axes_dim=(8, 8),
            **LATENT,
            **HEADS,
        ),
        picture(),
        masked_words,
    ),
    "JoyImageEditTransformer3DModel": Denoiser(lambda: JoyImageEditTransformer3DModel(**JOY), film(), words),
    "JoyImageEditPlusTransformer3DModel": Denoiser(
        lambda: JoyImageEditPlusTransformer3DModel(**JOY), _patches, _patch_shapes
    ),
}
