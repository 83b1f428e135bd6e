"""Denoisers of sound."""

from __future__ import annotations

import torch
from diffusers import (
    AceStepTransformer1DModel,
    LongCatAudioDiTTransformer,
    MiniMaxMusic3Transformer1DModel,
    StableAudio3DiTModel,
    StableAudioDiTModel,
    T5FilmDecoder,
)

from ..models import normal
from .base import TEXT, WORDS, Denoiser, masked_words, pooled, together, tokens, turns, unit, words

#: two layers of two heads of eight features
HEADS = dict(num_layers=2, num_attention_heads=2, attention_head_dim=8, in_channels=4)


def _wave(channels: int = 4):
    return lambda seed, size: {"hidden_states": normal(1, channels, 8 * size, seed=seed)}


def _context(seed: int, size: int):
    return {"context_latents": normal(1, 8 * size, 8, seed=seed + 1)}


def _global(seed: int, size: int):
    return {"global_hidden_states": normal(1, 1, 8, seed=seed + 1), "rotary_embedding": turns(8 * size + 1, 8)}


def _frames_of_text(seed: int, size: int):
    return {"encoder_hidden_states": normal(1, 8 * size, TEXT, seed=seed)}


def _notes(seed: int, size: int):
    return {"encodings_and_masks": [(normal(1, WORDS, 16, seed=seed), torch.ones(1, WORDS))]}


SOUND = {
    "AceStepTransformer1DModel": Denoiser(
        lambda: AceStepTransformer1DModel(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            in_channels=12,
            audio_acoustic_hidden_dim=4,
            sliding_window=4,
            encoder_hidden_size=TEXT,
        ),
        tokens(4),
        together(words, _context),
        lambda level: {"timestep": torch.tensor([level]), "timestep_r": torch.tensor([level])},
    ),
    "LongCatAudioDiTTransformer": Denoiser(
        lambda: LongCatAudioDiTTransformer(
            dit_dim=16, dit_depth=2, dit_heads=2, dit_text_dim=TEXT, latent_dim=4, ff_mult=1.0
        ),
        tokens(4),
        masked_words,
        unit,
    ),
    "MiniMaxMusic3Transformer1DModel": Denoiser(
        lambda: MiniMaxMusic3Transformer1DModel(
            condition_dim=TEXT, ff_inner_dim=16, rotary_dim=4, fourier_embedding_dim=8, **HEADS
        ),
        _wave(),
        _frames_of_text,
        unit,
    ),
    "StableAudioDiTModel": Denoiser(
        lambda: StableAudioDiTModel(
            sample_size=8,
            out_channels=4,
            num_key_value_attention_heads=1,
            cross_attention_dim=8,
            time_proj_dim=8,
            global_states_input_dim=8,
            cross_attention_input_dim=TEXT,
            **HEADS,
        ),
        _wave(),
        together(words, _global),
        unit,
    ),
    "StableAudio3DiTModel": Denoiser(
        lambda: StableAudio3DiTModel(
            io_channels=4,
            embed_dim=16,
            depth=2,
            num_heads=2,
            cond_token_dim=TEXT,
            global_cond_dim=8,
            local_add_cond_dim=2,
            timestep_features_dim=8,
            ff_mult=1.0,
            num_memory_tokens=3,
        ),
        _wave(),
        together(words, pooled("global_hidden_states", 8)),
        unit,
    ),
    "T5FilmDecoder": Denoiser(
        lambda: T5FilmDecoder(
            input_dims=4,
            targets_length=32,
            max_decoder_noise_time=1000.0,
            d_model=16,
            num_layers=2,
            num_heads=2,
            d_kv=8,
            d_ff=16,
            dropout_rate=0.0,
        ),
        lambda seed, size: {"decoder_input_tokens": normal(1, 8 * size, 4, seed=seed)},
        _notes,
        lambda level: {"decoder_noise_time": torch.tensor([level])},
    ),
}
