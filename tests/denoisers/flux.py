"""The Flux family and what has its shape: packed pictures, two streams that are joined."""

from __future__ import annotations

from diffusers import (
    BriaFibo2Transformer2DModel,
    BriaFiboTransformer2DModel,
    BriaTransformer2DModel,
    ChromaTransformer2DModel,
    Flux2Transformer2DModel,
    Flux3Transformer2DModel,
    FluxTransformer2DModel,
    LongCatImageTransformer2DModel,
    OvisImageTransformer2DModel,
)

from ..models import normal
from .base import HEADS, PACKED, TEXT, WORDS, Denoiser, grid_ids, picture, pooled, together, tokens, unit, words

FOUR_AXES = dict(num_single_layers=2, joint_attention_dim=TEXT, axes_dims_rope=(4, 4, 4, 4), **PACKED, **HEADS)
THREE_AXES = {**FOUR_AXES, "axes_dims_rope": (4, 4, 8)}


def _caption_layers(seed: int, size: int):
    return {"text_encoder_layers": [normal(1, WORDS, TEXT, seed=seed + 2 + i) for i in range(4)]}


def _bundles(seed: int, size: int):
    """The text features of Fibo 2: one set for its resampler, one for each layer that takes text."""
    return {"encoder_hidden_states": normal(1, 2, WORDS, TEXT, seed=seed)}


FLUX = {
    "FluxTransformer2DModel": Denoiser(
        lambda: FluxTransformer2DModel(pooled_projection_dim=TEXT, **THREE_AXES),
        tokens(),
        together(words, pooled(), grid_ids()),
        unit,
    ),
    "Flux2Transformer2DModel": Denoiser(
        lambda: Flux2Transformer2DModel(timestep_guidance_channels=16, guidance_embeds=False, **FOUR_AXES),
        tokens(),
        together(words, grid_ids(4)),
        unit,
    ),
    "Flux3Transformer2DModel": Denoiser(
        lambda: Flux3Transformer2DModel(cond_in_channels=16, timestep_channels=16, **FOUR_AXES),
        tokens(),
        together(words, grid_ids(4)),
        unit,
    ),
    "ChromaTransformer2DModel": Denoiser(
        lambda: ChromaTransformer2DModel(
            approximator_num_channels=8, approximator_hidden_dim=16, approximator_layers=1, **THREE_AXES
        ),
        tokens(),
        together(words, grid_ids()),
        unit,
    ),
    "BriaTransformer2DModel": Denoiser(
        lambda: BriaTransformer2DModel(**THREE_AXES), tokens(), together(words, grid_ids())
    ),
    "BriaFiboTransformer2DModel": Denoiser(
        lambda: BriaFiboTransformer2DModel(text_encoder_dim=TEXT, **THREE_AXES),
        tokens(),
        together(words, _caption_layers, grid_ids()),
    ),
    "BriaFibo2Transformer2DModel": Denoiser(
        lambda: BriaFibo2Transformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=3,
            n_refiner_layers=1,
            n_heads=2,
            cap_feat_dim=TEXT,
            injection_layer_ids=(1,),
            perceiver_num_layers=1,
            min_num_gist_tokens=4,
            max_num_gist_tokens=8,
            gist_step=2,
            gist_min_text_len=4,
            gist_max_text_len=8,
            axes_dims=(4, 6, 6),
            axes_lens=(32, 32, 32),
        ),
        picture(),
        _bundles,
        unit,
    ),
    "LongCatImageTransformer2DModel": Denoiser(
        lambda: LongCatImageTransformer2DModel(pooled_projection_dim=TEXT, **THREE_AXES),
        tokens(),
        together(words, grid_ids()),
        unit,
    ),
    "OvisImageTransformer2DModel": Denoiser(
        lambda: OvisImageTransformer2DModel(out_channels=16, **THREE_AXES),
        tokens(),
        together(words, grid_ids()),
        unit,
    ),
}
