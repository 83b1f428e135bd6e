"""Train tiny-world: a CogVideoX-style image-to-video transformer that rolls ViZDoom on under an action string.

    python samples/train_tiny_world.py --data data/vizdoom --out runs/tiny-world --minutes 44 --compile

Stopped and started again, it resumes from ``resume.pt``. The learning rate follows the minutes used.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import CogVideoXTransformer3DModel
from torch import nn
from training import Trainer, encode_pairs, fit_autoencoder, following, make_optimizers, noised, window_starts

from diffcache.zoo.world import ACTIONS, pack_condition, rotary

FRAMES, RGB_DIM, DEPTH_DIM, HEADS, HEAD_DIM, LAYERS = 5, 48, 16, 4, 48, 6
CHANNELS = RGB_DIM + DEPTH_DIM


def make_transformer() -> CogVideoXTransformer3DModel:
    """The denoiser. Rotary and fixed absolute positions together, as in CogVideoX-5b-I2V, which Aether starts from."""
    model = CogVideoXTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=2 * CHANNELS + 1 + 2 * len(ACTIONS),
        out_channels=CHANNELS,
        time_embed_dim=128,
        text_embed_dim=16,
        max_text_seq_length=1,
        num_layers=LAYERS,
        sample_width=8,
        sample_height=6,
        sample_frames=2 * FRAMES - 1,
        temporal_compression_ratio=2,
        patch_size=1,
        ofs_embed_dim=None,
        spatial_interpolation_scale=1.0,
        use_rotary_positional_embeddings=True,
        use_learned_positional_embeddings=True,
    )
    for block in model.transformer_blocks:
        for norm in (block.norm1, block.norm2):
            # Blocks start as plain pre-norm blocks: shift and scale 0, gates 1.
            nn.init.zeros_(norm.linear.weight)
            with torch.no_grad():
                norm.linear.bias.copy_(torch.tensor([0.0, 0.0, 1.0] * 2).repeat_interleave(HEADS * HEAD_DIM))
    nn.init.zeros_(model.proj_out.weight)
    return model


class Clips:
    """Random training windows as normalised latents and actions."""

    def __init__(self, folder: Path, rgb_vae, depth_vae):
        names = ("rgb", "depth", "action", "episode")
        rgb, depth, action, episode = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in names)
        parts = [encode_pairs(vae, x, following(x)) for vae, x in ((rgb_vae, rgb), (depth_vae, depth))]
        self.latents, self.actions = torch.cat(parts, 1), torch.from_numpy(action.astype(np.int64))
        self.starts = torch.from_numpy(window_starts(episode, 2 * FRAMES))

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents (size, FRAMES, C, H, W) and the actions that lead to the 8 new frames."""
        start = self.starts[torch.randint(len(self.starts), (size,))][:, None]
        latents = self.latents[start + 2 * torch.arange(FRAMES)].float()
        return latents, self.actions[start + 1 + torch.arange(2 * FRAMES - 2)]


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    rgb, depth = (np.load(args.data / "train" / f"{name}.npy", mmap_mode="r") for name in ("rgb", "depth"))
    rgb_vae, depth_vae = fit_autoencoder(rgb, RGB_DIM, causal=False), fit_autoencoder(depth, DEPTH_DIM, causal=False)
    rgb_vae.save_pretrained(args.out / "vae")
    depth_vae.save_pretrained(args.out / "depth_vae")
    clips, model = Clips(args.data / "train", rgb_vae, depth_vae), make_transformer()
    optimizers = make_optimizers(model, lambda n: "transformer_blocks" in n and ".norm" not in n, args.lr)
    trainer = Trainer(model, optimizers, args.out, args.minutes)
    angles, forward = rotary(HEAD_DIM, FRAMES, 6, 8), torch.compile(model) if args.compile else model
    text = torch.zeros(args.batch, 1, 16)

    def loss_fn() -> torch.Tensor:
        latents, actions = clips.batch(args.batch)
        # A rollout feeds the model its own frames: noise on the context keeps it from trusting them to the last digit.
        context = latents[:, 0] + torch.randn_like(latents[:, 0]) * 0.12 * torch.rand(args.batch, 1, 1, 1)
        noisy, velocity, timestep = noised(latents, mean=0.2)
        inputs = torch.cat([noisy, pack_condition(context, actions, FRAMES)], 2)
        output = forward(inputs, text, timestep, image_rotary_emb=angles, return_dict=False)[0]
        return (output - velocity).square().mean()

    trainer.run(loss_fn)
    trainer.average.save_pretrained(args.out / "transformer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/vizdoom"))
    parser.add_argument("--out", type=Path, default=Path("runs/tiny-world"))
    parser.add_argument("--minutes", type=float, default=42)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="torch.compile the denoiser")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
