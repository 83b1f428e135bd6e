"""Denoisers with arguments of their own: packed omni-modal sequences, proteins."""

from __future__ import annotations

import torch
from diffusers import Cosmos3OmniTransformer, RFD4ProteinaTransformer

from ..models import normal
from .base import WORDS, Denoiser

FRAMES = 2


def _vision(seed: int, size: int):
    return {"vision_tokens": [normal(1, 4, FRAMES, 4, 4 * size, seed=seed)]}


def _packed(seed: int, size: int):
    """Text first, then one video; the time of each of its tokens comes with the timestep."""
    count = FRAMES * 2 * 2 * size
    vision = torch.arange(WORDS, WORDS + count)
    return {
        "input_ids": (torch.arange(WORDS) * (seed + 1)) % 32,
        "text_indexes": torch.arange(WORDS),
        "position_ids": torch.arange(WORDS + count)[None].expand(3, -1),
        "und_len": WORDS,
        "sequence_length": WORDS + count,
        "vision_token_shapes": [(FRAMES, 2, 2 * size)],
        "vision_sequence_indexes": vision,
        "vision_mse_loss_indexes": vision,
        "vision_noisy_frame_indexes": [torch.arange(FRAMES)],
        "vision_timesteps": torch.zeros(count),
    }


class PackedDenoiser(Denoiser):
    """Cosmos3: one timestep for each noisy token."""

    def trajectory(self, seed: int = 0, size: int = 1):
        inner = super().trajectory(seed, size)

        def arguments(level: float):
            call = inner(level)
            return {**call, "vision_timesteps": torch.full_like(call["vision_timesteps"], 1000.0 * level)}

        return arguments


def _residues(seed: int, size: int):
    count = 6 * size
    return {"bb_ca": normal(1, count, 3, seed=seed), "local_latents": normal(1, count, 4, seed=seed + 1)}


def _molecule(seed: int, size: int):
    count = 6 * size
    return {
        "padding_mask": torch.ones(1, count, dtype=torch.bool),
        "conditioning": {
            "is_in_context_conditioning": torch.zeros(1, count, dtype=torch.bool),
            "supports_local_latent": torch.ones(1, count, dtype=torch.bool),
        },
    }


def _grows(level: float):
    """Proteina's time runs from noise at 0 to the molecule at 1."""
    time = torch.tensor([1.0 - level])
    return {"bb_ca_time": time, "local_latents_time": time}


SPECIAL = {
    "Cosmos3OmniTransformer": PackedDenoiser(
        lambda: Cosmos3OmniTransformer(
            head_dim=16,
            hidden_size=32,
            intermediate_size=32,
            latent_channel=4,
            num_attention_heads=2,
            num_hidden_layers=2,
            num_key_value_heads=1,
            patch_latent_dim=16,
            vocab_size=32,
            rope_axes_dim=(4, 2, 2),
        ),
        _vision,
        _packed,
        lambda level: {},
    ),
    "RFD4ProteinaTransformer": Denoiser(
        lambda: RFD4ProteinaTransformer(
            nlayers=3,
            token_dim=16,
            nheads=2,
            dim_cond=8,
            pair_repr_dim=8,
            latent_dim=4,
            token_type_emb_dim=4,
            cath_emb_dim=4,
            t_emb_dim=8,
            seq_sep_dim=4,
            xt_pair_dist_dim=6,
            feats_seq=("xt_bb_ca", "xt_local_latents"),
            feats_cond_seq=("time_emb_bb_ca", "time_emb_local_latents"),
            feats_pair_repr=("xt_bb_ca_pair_dists",),
            tri_mult_c=4,
            num_sequence_classes=5,
        ),
        _residues,
        _molecule,
        _grows,
    ),
}
