"""Does a generated picture show the class that was asked for? A small classifier of real pictures decides.

    python samples/probe_classes.py --data data/emoji --run runs/probe-classes

The probe is a convolutional network, trained on real training pictures. Printed are its accuracy on held-out real
pictures, also after a round trip through the autoencoder (the most that any denoiser could give it), and per class on
pictures that tiny-dit generates. A last line tells copies from new pictures: the PSNR to the closest training picture.
"""

from __future__ import annotations

import argparse
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from prepare_emoji import NAMES
from probe_motion import kept_probe
from torch import nn
from train_tiny_dit import MIRRORED, picture_pixels

from diffcache.zoo import list_models, load_pipeline

CHANCE = 1 / len(NAMES)


def make_probe() -> nn.Sequential:
    """Pictures (B, 3, 64, 64) in [-1, 1] to logits over ``NAMES``."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise((3, 32, 64, 96, 128))):
        layers += [nn.Conv2d(a, b, 3 if i else 5, 2, padding=1 if i else 2), nn.GroupNorm(8, b), nn.SiLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(512, len(NAMES)))


class RealPictures:
    """Real pictures of one split."""

    def __init__(self, folder: Path):
        self.pictures, self.labels, bases = (np.load(folder / f"{n}.npy") for n in ("pictures", "labels", "bases"))
        share = 1 / np.bincount(bases)[bases]  # skin tones share the weight of their emoji
        self.weights = share / np.bincount(self.labels, share)[self.labels] / len(NAMES)
        self.mirrored = np.array([name in MIRRORED for name in NAMES])[self.labels]

    def balanced(self, rng: np.random.Generator, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Every class equally often; shifted by up to 4 pixels, and mirrored where that changes nothing."""
        chosen = rng.choice(len(self.labels), size, p=self.weights)
        pixels = picture_pixels(self.pictures[chosen])
        turned = torch.from_numpy(self.mirrored[chosen] & (rng.random(size) < 0.5))
        pixels = torch.where(turned.view(-1, 1, 1, 1), pixels.flip(3), pixels)
        moved = nn.functional.pad(pixels, (4, 4, 4, 4), value=1.0)
        y, x = rng.integers(9, size=2)
        return moved[:, :, y : y + pixels.shape[2], x : x + pixels.shape[3]], torch.from_numpy(self.labels[chosen])


@torch.no_grad()
def real_accuracy(probe: nn.Module, pixels: torch.Tensor, real: RealPictures) -> float:
    """Mean over classes; within a class every emoji counts once, however many pictures there are of it."""
    guess = torch.cat([probe(part).argmax(1) for part in pixels.split(256)])
    return float(((guess.numpy() == real.labels) * real.weights).sum())


def generate(pipeline, label: int, count: int, steps: int, guidance: float, seed: int) -> torch.Tensor:
    """Pictures (count, 3, 64, 64) in [-1, 1] of one class."""
    noise = torch.Generator().manual_seed(seed)
    call = {"guidance_scale": guidance, "num_inference_steps": steps, "generator": noise, "output_type": "pt"}
    return pipeline([label] * count, **call).images * 2 - 1


@torch.no_grad()
def generated_accuracy(probe: nn.Module, args: argparse.Namespace) -> torch.Tensor:
    """Print how often the probe sees what was asked for; returns the pictures (class, count, 3, 64, 64)."""
    pipeline, right, made = load_pipeline(args.model), [], []
    pipeline.set_progress_bar_config(disable=True)
    for number, name in enumerate(NAMES):
        made.append(generate(pipeline, number, args.count, args.steps, args.guidance, args.seed + number))
        guess = probe(made[-1]).argmax(1)
        right.append((guess == number).float().mean().item())
        seen = ", ".join(f"{NAMES[k]} {n}" for k, n in enumerate(torch.bincount(guess).tolist()) if n)
        print(f"{name:10} {right[-1]:6.1%}  (seen: {seen})", flush=True)
    settings = f"guidance {args.guidance}, {args.steps} steps"
    print(f"generated pictures, {settings}: {np.mean(right):.1%} show their class (chance {CHANCE:.1%})")
    return torch.stack(made)


def closest(pixels: torch.Tensor, known: torch.Tensor) -> float:
    """Median PSNR to the closest known picture, in dB."""
    distance = torch.cat([torch.cdist(part, known.flatten(1)).amin(1) for part in pixels.flatten(1).split(64)])
    mean_square = distance.median().item() ** 2 / known[0].numel() / 4
    return -10 * math.log10(max(mean_square, 1e-10))


def write_sheet(made: torch.Tensor, path: Path, columns: int = 8) -> None:
    """A row of pictures for every class."""
    rows = (made[:, :columns].permute(0, 3, 1, 4, 2) / 2 + 0.5).clamp(0, 1).flatten(2, 3).flatten(0, 1)
    size = made.shape[-1]
    sheet = Image.new("RGB", (rows.shape[1] + 80, len(rows)), "white")
    sheet.paste(Image.fromarray((rows.numpy() * 255).round().astype(np.uint8)), (80, 0))
    draw = ImageDraw.Draw(sheet)
    for i, name in enumerate(NAMES):
        draw.text((4, i * size + size // 2), name, fill="black", anchor="lm")
    sheet.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--run", type=Path, default=Path("runs/probe-classes"), help="where the probe is kept")
    parser.add_argument("--probe-steps", type=int, default=2000)
    parser.add_argument("--model", default="tiny-dit", help="name, or folder that export.py wrote")
    parser.add_argument("--count", type=int, default=24, help="generated pictures per class")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=list_models()["tiny-dit"].guidance_scale)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, default=None, help="write a picture of eight pictures per class here")
    args = parser.parse_args()
    probe = kept_probe(args.run, make_probe, lambda: RealPictures(args.data / "train"), args.probe_steps)
    heldout, vae = RealPictures(args.data / "heldout"), load_pipeline(args.model).vae
    real = picture_pixels(heldout.pictures)
    with torch.no_grad():
        passed = vae.decode(vae.encode(real).latent_dist.mode()).sample
    print(f"held-out real pictures: {real_accuracy(probe, real, heldout):.1%} recognised (chance {CHANCE:.1%})")
    print(f"the same, through the autoencoder: {real_accuracy(probe, passed, heldout):.1%}", flush=True)
    made = generated_accuracy(probe, args)
    train = RealPictures(args.data / "train")
    known = vae.decode(vae.encode(picture_pixels(train.pictures)).latent_dist.mode()).sample
    print(f"closest training picture: {closest(made.flatten(0, 1), known):.1f} dB, ", end="")
    print(f"of held-out real pictures {closest(passed, known):.1f} dB (medians)")
    if args.sheet:
        write_sheet(made, args.sheet)


if __name__ == "__main__":
    main()
