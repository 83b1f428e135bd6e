"""The Wan family: video by cross-attention, with control, faces, history or chunks."""

from __future__ import annotations

from functools import cache

import torch
from diffusers import (
    AnyFlowFARTransformer3DModel,
    AnyFlowTransformer3DModel,
    ChronoEditTransformer3DModel,
    HeliosTransformer3DModel,
    SkyReelsV2Transformer3DModel,
    WanAnimate2Transformer3DModel,
    WanAnimateTransformer3DModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)
from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache
from torch.nn.attention.flex_attention import create_block_mask

from ..models import normal
from .base import TEXT, WORDS, Denoiser, film, frames_first, together, words

SMALL = dict(
    num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=TEXT, freq_dim=16, ffn_dim=32
)


def _control(seed: int, size: int):
    return {"control_hidden_states": normal(1, 6, 3, 8, 4 * size, seed=seed + 3)}


def _face(seed: int, size: int):
    return {
        "pose_hidden_states": normal(1, 4, 2, 8, 4 * size, seed=seed + 3),
        "face_pixel_values": normal(1, 3, 5, 16, 16, seed=seed + 4),
        "encoder_hidden_states_image": normal(1, 2, 8, seed=seed + 5),
    }


def _history(seed: int, size: int):
    return {
        "indices_hidden_states": torch.arange(4, 7)[None],
        "indices_latents_history_short": torch.arange(2, 4)[None],
        "latents_history_short": normal(1, 4, 2, 8, 4 * size, seed=seed + 3),
    }


def _flow_map(level: float):
    """From this noise level to the next one; one number a frame."""
    return {
        "timestep": torch.full((1, 3), 1000.0 * level),
        "r_timestep": torch.full((1, 3), 1000.0 * max(level - 0.1, 0.0)),
    }


def _far() -> AnyFlowFARTransformer3DModel:
    return AnyFlowFARTransformer3DModel(num_layers=2, rope_max_seq_len=32, chunk_partition=(1, 2), **SMALL)


@cache
def _far_mask(size: int):
    """Made once, as users are told to: the model makes it anew at every call otherwise."""
    return _far().build_attention_mask(chunk_partition=[1, 2], height=8, width=4 * size)


def _chunks(seed: int, size: int):
    return {"chunk_partition": [1, 2], "attention_mask": _far_mask(size)}


def _reference(tokens: int, layers: int = 2) -> WanAnimate2KVCache:
    """What the reference pass leaves behind: keys and values of each layer."""
    cache = WanAnimate2KVCache(num_layers=layers)
    for i in range(layers):
        cache.get(i).store(normal(1, tokens, 2, 12, seed=20 + i), normal(1, tokens, 2, 12, seed=30 + i))
    return cache


def _animate_2_model() -> WanAnimate2Transformer3DModel:
    """With the attention masks of both sizes in the model's own memory: it would compile them, for a minute."""
    model = WanAnimate2Transformer3DModel(
        text_len=8, in_dim=8, dim=24, ffn_dim=32, freq_dim=16, text_dim=TEXT, out_dim=4, num_heads=2, num_layers=2,
        use_img_emb=False,
    )  # fmt: skip
    everything = lambda batch, head, query, key: query < 10_000  # noqa: E731
    for size in (1, 2):
        model.block_masks[(2, 8 * size)] = create_block_mask(everything, None, None, 128, 256, device="cpu")
    return model


def _animate_list(seed: int, size: int):
    return {"hidden_states": [normal(4, 2, 8, 4 * size, seed=seed)]}


def _animate_2(seed: int, size: int):
    grid = torch.tensor([[1, 4, 2 * size]])
    return {
        "encoder_hidden_states": [normal(WORDS, TEXT, seed=seed)],
        "condition_latents": [normal(4, 2, 8, 4 * size, seed=seed + 1)],
        "reference_grid_sizes": grid,
        "kv_cache": _reference(8 * size),
        "kv_cache_mode": "cached",
        "seq_len": 16 * size,
        "origin_len": 4,
        "origin_area": (64, 32 * size),
    }


WAN = {
    "WanTransformer3DModel": Denoiser(
        lambda: WanTransformer3DModel(num_layers=2, rope_max_seq_len=32, **SMALL), film(), words
    ),
    "WanVACETransformer3DModel": Denoiser(
        lambda: WanVACETransformer3DModel(
            num_layers=3, rope_max_seq_len=32, vace_layers=[0, 2], vace_in_channels=6, **SMALL
        ),
        film(),
        together(words, _control),
    ),
    "WanAnimateTransformer3DModel": Denoiser(
        lambda: WanAnimateTransformer3DModel(
            num_layers=4,
            rope_max_seq_len=32,
            latent_channels=4,
            image_dim=8,
            inject_face_latents_blocks=2,
            motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8},
            motion_encoder_size=16,
            motion_style_dim=8,
            motion_dim=4,
            motion_encoder_dim=8,
            face_encoder_hidden_dim=8,
            face_encoder_num_heads=2,
            **{**SMALL, "in_channels": 12},
        ),
        film(12),
        together(words, _face),
    ),
    "WanAnimate2Transformer3DModel": Denoiser(
        _animate_2_model,
        _animate_list,
        _animate_2,
    ),
    "ChronoEditTransformer3DModel": Denoiser(
        lambda: ChronoEditTransformer3DModel(num_layers=2, rope_max_seq_len=32, **SMALL), film(), words
    ),
    "SkyReelsV2Transformer3DModel": Denoiser(
        lambda: SkyReelsV2Transformer3DModel(num_layers=2, rope_max_seq_len=32, **SMALL), film(), words
    ),
    "HeliosTransformer3DModel": Denoiser(
        lambda: HeliosTransformer3DModel(num_layers=2, rope_dim=(4, 4, 4), **SMALL), film(), together(words, _history)
    ),
    "AnyFlowTransformer3DModel": Denoiser(
        lambda: AnyFlowTransformer3DModel(num_layers=2, rope_max_seq_len=32, **SMALL), frames_first(), words, _flow_map
    ),
    "AnyFlowFARTransformer3DModel": Denoiser(
        _far,
        frames_first(),
        together(words, _chunks),
        _flow_map,
    ),
}
