"""Kandinsky: features last, text blocks of their own, sound, and a super-resolution denoiser."""

from __future__ import annotations

import torch
from diffusers import Kandinsky5Transformer3DModel, Kandinsky6SRTransformer3DModel, Kandinsky6Transformer3DModel

from ..models import normal
from .base import TEXT, WORDS, Denoiser, pooled, together, words

SMALL = dict(
    in_text_dim=TEXT, in_text_dim2=TEXT, time_dim=8, model_dim=16, ff_dim=16, num_text_blocks=1, num_visual_blocks=2
)


def _film(seed: int, size: int):
    return {"hidden_states": normal(1, 3, 8, 4 * size, 4, seed=seed)}


def _positions(seed: int, size: int):
    grid = tuple(torch.arange(n) for n in (3, 4, 2 * size))
    return {"visual_rope_pos": grid, "text_rope_pos": torch.arange(WORDS)}


def _with_sound(seed: int, size: int):
    return {**_film(seed, size), "audio_hidden_states": normal(1, 6, 4, seed=seed + 1)}


def _fine(seed: int, size: int):
    """Low resolution, noise and mask; the token grid is a multiple of 8."""
    return {"hidden_states": normal(1, 1, 8, 8 * size, 9, seed=seed)}


KANDINSKY = {
    "Kandinsky5Transformer3DModel": Denoiser(
        lambda: Kandinsky5Transformer3DModel(in_visual_dim=4, out_visual_dim=4, axes_dims=(4, 6, 6), **SMALL),
        _film,
        together(words, pooled(), _positions),
        within=1e-3,  # it rounds queries and keys to bf16: what another product order moves by 1e-8 may move by 1e-4
    ),
    "Kandinsky6Transformer3DModel": Denoiser(
        lambda: Kandinsky6Transformer3DModel(
            in_visual_dim=4,
            out_visual_dim=4,
            in_audio_dim=4,
            out_audio_dim=4,
            axes_dims=(4, 6, 6),
            visual_cond=False,
            **SMALL,
        ),
        _with_sound,
        together(words, pooled()),
    ),
    "Kandinsky6SRTransformer3DModel": Denoiser(
        lambda: Kandinsky6SRTransformer3DModel(
            in_visual_dim=4,
            out_visual_dim=4,
            time_dim=8,
            model_dim=16,
            ff_dim=16,
            num_visual_blocks=2,
            axes_dims=(4, 6, 6),
            nabla_window=(1, 1, 1),
        ),
        _fine,
    ),
}
