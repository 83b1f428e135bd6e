"""Does a generated clip show the motion that its prompt asked for? A small classifier of real clips decides.

    python samples/probe_motion.py --data data/vizdoom-motions --run runs/probe

The probe is a 3-D convolutional network on whole clips, trained on real training clips. Printed are its
accuracy on held-out real clips and, per motion, on clips that tiny-wan generates.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from motions import clip_frames, find_clips
from safetensors.torch import load_file, save_file
from torch import nn
from training import to_pixels

from diffcache.zoo import list_models, load_pipeline
from diffcache.zoo.wan import MOTIONS


def make_probe() -> nn.Sequential:
    """Clips (B, 3, 9, 48, 64) in [-1, 1] to logits over ``MOTIONS``."""
    layers, widths = [], (3, 24, 48, 64, 64)
    for i, (a, b) in enumerate(pairwise(widths)):
        stride = (2 if i in (1, 2) else 1, 2, 2)
        layers += [nn.Conv3d(a, b, (3, 5, 5) if i == 0 else 3, stride, padding=(1, 2, 2) if i == 0 else 1)]
        layers += [nn.GroupNorm(8, b), nn.SiLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool3d((1, 3, 4)), nn.Flatten(), nn.Linear(768, len(MOTIONS)))


class RealClips:
    """Real clips of one split."""

    def __init__(self, folder: Path):
        self.rgb = np.load(folder / "rgb.npy", mmap_mode="r")
        self.starts, self.motion = find_clips(folder)

    def clips(self, index: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        frames = self.rgb[clip_frames(self.starts[index], self.motion[index])]
        return to_pixels(frames), torch.from_numpy(self.motion[index])

    def balanced(self, rng: np.random.Generator, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        wanted = rng.integers(len(MOTIONS), size=size)
        return self.clips(np.array([rng.choice(np.flatnonzero(self.motion == k)) for k in wanted]))


#: what each motion looks like in a mirror: left and right change places
MIRRORED = torch.tensor([1, 0, 2, 3])


def mirror(clips: torch.Tensor, motion: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Half of the clips flipped, with the motion that they show then."""
    flipped = torch.rand(len(clips)) < 0.5
    shown = torch.where(flipped.view(-1, 1, 1, 1, 1), clips.flip(-1), clips)
    return shown, torch.where(flipped, MIRRORED[motion], motion)


def augment(clips: torch.Tensor) -> torch.Tensor:
    """Random brightness, contrast, blur and noise, so that only the motion counts; of pictures only what they show."""
    shape = (len(clips), *[1] * (clips.ndim - 1))
    clips = clips * (0.8 + 0.4 * torch.rand(shape)) + 0.1 * torch.randn(shape)
    blurred = F.avg_pool3d(clips, (1, 3, 3), 1, (0, 1, 1), count_include_pad=False)
    return torch.where(torch.rand(shape) < 0.5, blurred, clips) + 0.05 * torch.rand(shape) * torch.randn_like(clips)


def train_probe(make: Callable[[], nn.Module], real: Any, steps: int) -> nn.Module:
    """A classifier of what ``real.balanced(rng, size)`` gives."""
    torch.manual_seed(0)
    probe, rng = make(), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        samples, classes = real.balanced(rng, 32)
        loss = F.cross_entropy(probe(augment(samples)), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 49:
            print(f"probe step {step + 1} of {steps}: loss {loss.item():.3f}", flush=True)
    return probe.eval()


def kept_probe(folder: Path, make: Callable[[], nn.Module], train: Callable[[], Any], steps: int) -> nn.Module:
    """The probe in ``folder``; where there is none, one is trained on ``train()`` and kept there."""
    weights = folder / "probe.safetensors"
    if weights.exists():
        probe = make().eval()
        probe.load_state_dict(load_file(weights))
        return probe
    folder.mkdir(parents=True, exist_ok=True)
    probe = train_probe(make, train(), steps)
    save_file(probe.state_dict(), weights)
    return probe


@torch.no_grad()
def real_accuracy(probe: nn.Module, real: RealClips) -> float:
    """Mean over motions of the accuracy on all clips of a split."""
    guess = torch.cat([probe(real.clips(i)[0]).argmax(1) for i in np.array_split(np.arange(len(real.starts)), 12)])
    right = (guess.numpy() == real.motion).astype(float)
    return float(np.mean([right[real.motion == k].mean() for k in range(len(MOTIONS))]))


def generate(pipeline, prompts: list[str], steps: int, guidance: float, seed: int) -> np.ndarray:
    """Clips (B, 9, 48, 64, 3) in [0, 1]."""
    entry = list_models()["tiny-wan"]
    size = {"height": entry.height, "width": entry.width, "num_frames": entry.num_frames, **entry.call}
    generator = torch.Generator().manual_seed(seed)
    made = pipeline(prompts, num_inference_steps=steps, guidance_scale=guidance, generator=generator, **size)
    return np.asarray(made.frames)


@torch.no_grad()
def generated_accuracy(probe: nn.Module, args: argparse.Namespace) -> None:
    """Print how often the probe sees the motion that was asked for, per motion and in all."""
    pipeline, right, rows = load_pipeline(args.model), [], []
    pipeline.set_progress_bar_config(disable=True)  # a line per motion says enough
    for number, variants in enumerate(MOTIONS.values()):
        prompts = [variants[i % len(variants)] for i in range(args.count)]
        clips = generate(pipeline, prompts, args.steps, args.guidance, args.seed + number)
        guess = probe(torch.from_numpy(clips).float().permute(0, 4, 1, 2, 3) * 2 - 1).argmax(1)
        right.append((guess == number).float().mean().item())
        rows.append(np.concatenate([np.concatenate(list(clip), 1) for clip in clips[:2]]))
        seen = ", ".join(f"{list(MOTIONS)[k]} {n}" for k, n in enumerate(torch.bincount(guess).tolist()) if n)
        print(f"{variants[0]:15} {right[-1]:6.1%}  (seen: {seen})", flush=True)
    print(f"generated clips, guidance {args.guidance}, {args.steps} steps: {np.mean(right):.1%} show their motion")
    if args.strip:
        from PIL import Image

        Image.fromarray((np.concatenate(rows) * 255).round().astype(np.uint8)).save(args.strip)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/vizdoom-motions"))
    parser.add_argument("--run", type=Path, default=Path("runs/probe"), help="where the probe is kept")
    parser.add_argument("--probe-steps", type=int, default=800)
    parser.add_argument("--model", default="tiny-wan")
    parser.add_argument("--count", type=int, default=12, help="generated clips per motion")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=list_models()["tiny-wan"].guidance_scale)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strip", type=Path, default=None, help="write a picture of two clips per motion here")
    args = parser.parse_args()
    probe = kept_probe(args.run, make_probe, lambda: RealClips(args.data / "train"), args.probe_steps)
    print(f"held-out real clips: {real_accuracy(probe, RealClips(args.data / 'heldout')):.1%} recognised", flush=True)
    generated_accuracy(probe, args)


if __name__ == "__main__":
    main()
