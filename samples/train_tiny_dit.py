"""Train tiny-dit: a class-conditional DiT on 64 x 64 pictures, for the real DiTPipeline.

    python samples/train_tiny_dit.py --data data/emoji --out runs/tiny-dit --minutes 35 --compile

Stopped and started again, it resumes from ``resume.pt``. The learning rate follows the minutes used.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import DiTTransformer2DModel
from prepare_emoji import NAMES
from torch import nn
from training import Trainer, make_optimizers, noised, to_pixels

from diffcache.zoo.autoencoder import AutoencoderImagePCA

Z_DIM, HEADS, HEAD_DIM, LAYERS = 48, 4, 44, 6
NULL = 1000  # DiTPipeline's class of no class, whatever the number of classes
MIRRORED = set(NAMES) - {"clocks", "flags", "symbols"}  # what may as well face the other way


def make_transformer() -> DiTTransformer2DModel:
    """The untrained denoiser; the table of classes has 1001 rows in every block because of ``NULL``."""
    model = DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=Z_DIM,
        out_channels=Z_DIM,
        num_layers=LAYERS,
        sample_size=8,
        patch_size=1,
        num_embeds_ada_norm=NULL,
    )
    for layer in (model.proj_out_1, model.proj_out_2):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    for block in model.transformer_blocks:
        _start_as_plain_block(block)
    return model.eval()  # in training mode every block drops classes by dice of its own; `Pictures.batch` does it once


def _start_as_plain_block(block: nn.Module) -> None:
    """No modulation, open gates, and nothing in the rows of classes that do not exist."""
    nn.init.zeros_(block.norm1.linear.weight)
    nn.init.zeros_(block.norm1.linear.bias)
    nn.init.ones_(block.norm1.linear.bias.view(6, -1)[2::3])
    table = block.norm1.emb.class_embedder.embedding_table.weight
    used = [*range(len(NAMES)), NULL]
    nn.init.zeros_(table)
    with torch.no_grad():
        table[used] = 0.5 * torch.randn(len(used), table.shape[1])


def picture_pixels(pictures: np.ndarray) -> torch.Tensor:
    """uint8 (N, H, W, 3) to float (N, 3, H, W) in [-1, 1]."""
    return to_pixels(pictures[:, None])[:, :, 0]


def fit_autoencoder(pictures: np.ndarray, bases: np.ndarray) -> AutoencoderImagePCA:
    """Fit the block PCA on one picture of every base emoji."""
    pixels = to_pixels(pictures[np.unique(bases, return_index=True)[1]][:, None])
    blocks = AutoencoderImagePCA().blocks(pixels).permute(0, 2, 3, 4, 1).flatten(0, 3)
    return AutoencoderImagePCA.fit(blocks, Z_DIM, power=0.5)


class Pictures:
    """Random pictures as latents, with their class.

    Classes are drawn by the root of their number of emoji (not of pictures: skin tones would make it all people), and
    within a class every emoji equally often.
    """

    def __init__(self, folder: Path):
        pictures, labels, bases = (np.load(folder / f"{n}.npy") for n in ("pictures", "labels", "bases"))
        self.vae = fit_autoencoder(pictures, bases)
        self.labels = torch.from_numpy(labels)
        self.weights = torch.from_numpy(self._weigh(labels, bases)).double()
        self.mirrored = torch.tensor([name in MIRRORED for name in NAMES])
        self.latents = [self._encode(pictures), self._encode(pictures[:, :, ::-1])]

    @staticmethod
    def _weigh(labels: np.ndarray, bases: np.ndarray) -> np.ndarray:
        number = np.array([len(np.unique(bases[labels == k])) for k in range(len(NAMES))])
        return 1 / np.bincount(bases)[bases] / np.sqrt(number)[labels]

    def _encode(self, pictures: np.ndarray) -> torch.Tensor:
        parts = np.array_split(pictures, len(pictures) // 512 + 1)
        return torch.cat([self.vae.encode(picture_pixels(part)).latent_dist.mode().half() for part in parts])

    def batch(self, size: int, dropout: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents (size, Z_DIM, 8, 8) and classes; a share of ``dropout`` has the class of no class."""
        chosen = torch.multinomial(self.weights, size, replacement=True)
        labels = self.labels[chosen]
        turned = self.mirrored[labels] & (torch.rand(size) < 0.5)
        latents = torch.where(turned.view(-1, 1, 1, 1), self.latents[1][chosen], self.latents[0][chosen])
        return latents.float(), torch.where(torch.rand(size) < dropout, NULL, labels)


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    pictures, model = Pictures(args.data / "train"), make_transformer()
    pictures.vae.save_pretrained(args.out / "vae")
    optimizers = make_optimizers(model, lambda n: ".attn1." in n or ".ff." in n, args.lr)
    trainer = Trainer(model, optimizers, args.out, args.minutes)
    forward = torch.compile(model) if args.compile else model

    def loss_fn() -> torch.Tensor:
        latents, labels = pictures.batch(args.batch, dropout=0.1)
        noisy, velocity, timestep = noised(latents, mean=args.mean)
        output = forward(noisy, timestep, labels, return_dict=False)[0]
        return (output - velocity).square().mean()

    trainer.run(loss_fn)
    trainer.average.save_pretrained(args.out / "transformer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--out", type=Path, default=Path("runs/tiny-dit"))
    parser.add_argument("--minutes", type=float, default=35)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--mean", type=float, default=0.3, help="mean of the logit-normal times")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="torch.compile the denoiser")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
