"""Video denoisers: spatio-temporal tokens, some with sound."""

from __future__ import annotations

import torch
from diffusers import (
    AllegroTransformer3DModel,
    CogVideoXTransformer3DModel,
    ConsisIDTransformer3DModel,
    CosmosTransformer3DModel,
    EasyAnimateTransformer3DModel,
    LatteTransformer3DModel,
    LTX2VideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    MiniMaxH3Transformer3DModel,
    MochiTransformer3DModel,
    SanaVideoTransformer3DModel,
    SanaWMLTX2RefinerTransformer3DModel,
    SanaWMTransformer3DModel,
)

from ..models import normal
from .base import (
    HEADS,
    LATENT,
    TEXT,
    WORDS,
    Denoiser,
    constant,
    film,
    frames_first,
    masked_words,
    together,
    tokens,
    turns,
    whole,
    words,
    words_where,
)
from .image import SANA

SAMPLE = dict(sample_width=8, sample_height=8)


def _cog_turns(seed: int, size: int):
    return {"image_rotary_emb": turns(3 * 4 * 2 * size, 16)}


def _allegro_turns(seed: int, size: int):
    count = 3 * 4 * 2 * size
    axes = tuple(turns(count, 8) for _ in range(3))
    grid = torch.stack(torch.meshgrid(torch.arange(3), torch.arange(4), torch.arange(2 * size), indexing="ij"))
    return {"image_rotary_emb": (axes, tuple(grid.reshape(3, 1, -1)))}


def _face(seed: int, size: int):
    return {"id_cond": normal(1, 8, seed=seed + 3), "id_vit_hidden": [normal(1, 4, 8, seed=seed + 4)]}


def _ltx(seed: int, size: int):
    return {**masked_words(seed, size), "num_frames": 2, "height": 2, "width": 2 * size}


def _ltx2_noise(seed: int, size: int):
    return {
        "hidden_states": normal(1, 8 * size, 4, seed=seed),
        "audio_hidden_states": normal(1, 6, 4, seed=seed + 1),
    }


def _ltx2(seed: int, size: int):
    return {
        **masked_words(seed, size),
        "audio_encoder_hidden_states": normal(1, WORDS, TEXT, seed=seed + 2),
        "audio_encoder_attention_mask": torch.ones(1, WORDS),
        "num_frames": 2,
        "height": 2,
        "width": 2 * size,
        "audio_num_frames": 6,
    }


def _refiner(seed: int, size: int):
    return {**masked_words(seed, size), "video_rotary_emb": tuple(t[None] for t in turns(8 * size, 32))}


def _world(seed: int, size: int):
    """The text has an axis of its own for prompts; the time is one number a frame."""
    return {
        "encoder_hidden_states": normal(1, 1, WORDS, TEXT, seed=seed),
        "encoder_attention_mask": torch.ones(1, WORDS),
    }


def _h3_noise(seed: int, size: int):
    return {
        "hidden_states": normal(1, 8 * size, 16, seed=seed),
        "audio_hidden_states": normal(1, 6, 4, seed=seed + 1),
    }


def _h3(seed: int, size: int):
    """One packed sequence: text, then video, then sound."""
    counts = [WORDS, 8 * size, 6]
    total = sum(counts)
    text, video, audio = torch.arange(total).split(counts)
    kinds = torch.cat([torch.full((n,), i) for i, n in enumerate(counts)])
    return {
        **words(seed, size),
        "timestep_indices": torch.zeros(total, dtype=torch.long),
        "token_tags": kinds,
        "position_ids": torch.arange(total)[:, None].expand(total, 3),
        "text_indices": text,
        "video_indices": video,
        "audio_indices": audio,
    }


LTX2 = dict(
    cross_attention_dim=32, audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2,
    audio_attention_head_dim=8, audio_cross_attention_dim=16, caption_channels=TEXT, rope_double_precision=False,
    **LATENT, **HEADS,
)  # fmt: skip
COG = dict(
    in_channels=4, out_channels=4, time_embed_dim=8, text_embed_dim=TEXT, sample_frames=9, max_text_seq_length=WORDS,
    use_rotary_positional_embeddings=True, **SAMPLE, **HEADS,
)  # fmt: skip

VIDEO = {
    "CogVideoXTransformer3DModel": Denoiser(
        lambda: CogVideoXTransformer3DModel(num_layers=2, **COG),
        frames_first(),
        together(words, _cog_turns),
        whole,
    ),
    "ConsisIDTransformer3DModel": Denoiser(
        lambda: ConsisIDTransformer3DModel(
            num_layers=4,
            is_train_face=True,
            cross_attn_interval=2,
            cross_attn_dim_head=4,
            cross_attn_num_heads=2,
            LFE_id_dim=8,
            LFE_vit_dim=8,
            LFE_depth=1,
            LFE_dim_head=4,
            LFE_num_heads=2,
            LFE_num_id_token=1,
            LFE_num_querie=3,
            LFE_output_dim=21,
            LFE_ff_mult=1,
            LFE_num_scale=1,
            **COG,
        ),
        frames_first(),
        together(words, _cog_turns, _face),
        whole,
    ),
    "CosmosTransformer3DModel": Denoiser(
        # the padding mask needs torchvision, which is optional
        lambda: CosmosTransformer3DModel(
            text_embed_dim=TEXT,
            adaln_lora_dim=4,
            max_size=(4, 16, 16),
            concat_padding_mask=False,
            extra_pos_embed_type="learnable",
            mlp_ratio=1.0,
            **LATENT,
            **HEADS,
        ),
        film(),
        together(words, constant(fps=8)),
    ),
    "AllegroTransformer3DModel": Denoiser(
        lambda: AllegroTransformer3DModel(
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=24,
            cross_attention_dim=48,
            caption_channels=TEXT,
            sample_frames=3,
            **SAMPLE,
        ),
        film(),
        together(masked_words, _allegro_turns),
    ),
    "LatteTransformer3DModel": Denoiser(
        lambda: LatteTransformer3DModel(
            cross_attention_dim=32,
            sample_size=8,
            patch_size=2,
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            caption_channels=TEXT,
            video_length=3,
            **LATENT,
            **HEADS,
        ),
        film(),
        words,
        whole,
    ),
    "LTXVideoTransformer3DModel": Denoiser(
        lambda: LTXVideoTransformer3DModel(cross_attention_dim=32, caption_channels=TEXT, **LATENT, **HEADS),
        tokens(4),
        _ltx,
    ),
    "LTX2VideoTransformer3DModel": Denoiser(lambda: LTX2VideoTransformer3DModel(**LTX2), _ltx2_noise, _ltx2),
    "SanaWMLTX2RefinerTransformer3DModel": Denoiser(
        lambda: SanaWMLTX2RefinerTransformer3DModel(**LTX2), tokens(4), _refiner
    ),
    "MochiTransformer3DModel": Denoiser(
        lambda: MochiTransformer3DModel(
            in_channels=4,
            num_layers=2,
            pooled_projection_dim=32,
            text_embed_dim=TEXT,
            time_embed_dim=4,
            max_sequence_length=WORDS,
            **HEADS,
        ),
        film(),
        words_where,
    ),
    "EasyAnimateTransformer3DModel": Denoiser(
        lambda: EasyAnimateTransformer3DModel(
            patch_size=2, mmdit_layers=2, time_embed_dim=8, text_embed_dim=TEXT, **LATENT, **SAMPLE, **HEADS
        ),
        film(),
        words,
    ),
    "SanaVideoTransformer3DModel": Denoiser(
        lambda: SanaVideoTransformer3DModel(
            in_channels=4,
            num_attention_heads=2,
            attention_head_dim=12,
            cross_attention_head_dim=12,
            cross_attention_dim=24,
            sample_size=8,
            rope_max_seq_len=32,
            **SANA,
        ),
        film(),
        words,
    ),
    "SanaWMTransformer3DModel": Denoiser(
        lambda: SanaWMTransformer3DModel(
            in_channels=4,
            num_layers=2,
            hidden_size=24,
            num_attention_heads=2,
            softmax_every_n=2,
            linear_head_dim=12,
            chunk_plucker_channels=4,
            caption_channels=TEXT,
            mlp_ratio=1.0,
        ),
        film(height=4),
        _world,
        lambda level: {"timestep": torch.full((1, 1, 3), 1000.0 * level)},
    ),
    "MiniMaxH3Transformer3DModel": Denoiser(
        lambda: MiniMaxH3Transformer3DModel(
            hidden_size=32,
            num_layers=2,
            num_refiner_layers=1,
            ffn_dim=32,
            in_channels=4,
            audio_in_channels=4,
            text_dim=TEXT,
            freq_dim=16,
            time_embed_hidden_dim=16,
            time_embed_dim=8,
            rope_freq_dim=2,
            **HEADS,
        ),
        _h3_noise,
        _h3,
    ),
}
