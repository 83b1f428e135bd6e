"""tiny-world: an action-conditioned RGB + depth world model in the manner of Aether's CogVideoX image-to-video."""

from __future__ import annotations

import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed

ACTIONS = "NFBLRAD"


def pack_condition(context: torch.Tensor, actions: torch.Tensor, frames: int) -> torch.Tensor:
    """The channels that CogVideoX's image-to-video concatenates to the noisy latents.

    ``context`` (B, C, H, W) are the normalised latents of the last two frames; ``actions`` (B, 2·(frames − 1)) are
    indices into ``ACTIONS``, one per new video frame. Returns (B, frames, C + 1 + 2·len(ACTIONS), H, W): the context,
    zero over the new frames, a mask that marks it, and per latent frame the one-hot actions of its two video frames.
    """
    batch, channels, height, width = context.shape
    out = context.new_zeros(batch, frames, channels + 1 + 2 * len(ACTIONS), height, width)
    out[:, 0, :channels] = context
    out[:, 0, channels] = 1.0
    planes = torch.nn.functional.one_hot(actions, len(ACTIONS)).to(context.dtype).reshape(batch, frames - 1, -1)
    out[:, 1:, channels + 1 :] = planes[..., None, None]
    return out


def rotary(head_dim: int, frames: int, height: int, width: int, device=None) -> tuple[torch.Tensor, torch.Tensor]:
    """CogVideoX's rotary embedding over the latent grid: (cos, sin), each (frames·height·width, head_dim)."""
    corners = ((0, 0), (height, width))
    return get_3d_rotary_pos_embed(head_dim, corners, grid_size=(height, width), temporal_size=frames, device=device)
