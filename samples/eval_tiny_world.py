"""How well tiny-world continues held-out episodes, against repeating the last known frame; and a film strip.

    python samples/eval_tiny_world.py --data data/vizdoom --strip strip.png

Prints the PSNR (pooled over pixels, frames and clips) of RGB and depth for the first chunk of 8 frames and for the
whole rollout of 24 frames (3 chunks).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from training import window_starts

from diffcache.zoo import load_pipeline
from diffcache.zoo.loading import WEIGHTS
from diffcache.zoo.world import ACTIONS, WorldPipeline

LENGTH = 24


def heldout(folder: Path, count: int) -> dict[str, torch.Tensor]:
    """Evenly spread held-out clips in the form of the embedded ``clips.safetensors``."""
    rgb, depth, action, episode = (np.load(folder / f"{n}.npy") for n in ("rgb", "depth", "action", "episode"))
    starts = window_starts(episode, LENGTH + 2)
    frames = starts[np.linspace(0, len(starts) - 1, count + 2).astype(int)[1:-1]][:, None] + np.arange(LENGTH + 2)
    arrays = {
        "context_rgb": rgb[frames[:, :2]],
        "context_depth": depth[frames[:, :2]],
        "actions": action[frames[:, 1:-1]],
        "rgb": rgb[frames[:, 2:]],
        "depth": depth[frames[:, 2:]],
    }
    return {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in arrays.items()}


def roll_out(pipeline: WorldPipeline, clips: dict[str, torch.Tensor], steps: int, seed: int) -> tuple:
    """Generated RGB (B, T, H, W, 3) and depth (B, T, H, W) in [0, 1] under the clips' real actions."""
    actions = ["".join(ACTIONS[k] for k in row) for row in clips["actions"].tolist()]
    image, depth = clips["context_rgb"].numpy(), clips["context_depth"].numpy()
    generator = torch.Generator().manual_seed(seed)
    made = pipeline(image, depth, actions, num_inference_steps=steps, generator=generator, output_type="np")
    return made.frames, made.depth


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.square(a - b).mean()))


def report(clips: dict[str, torch.Tensor], made: tuple) -> None:
    """Print the table of PSNR for model and baseline."""
    for name, frames in zip(("rgb", "depth"), made, strict=True):
        true = clips[name].numpy() / 255.0
        last = np.broadcast_to(clips[f"context_{name}"][:, -1:].numpy() / 255.0, true.shape)
        for label, part in (("first chunk", slice(0, 8)), ("three chunks", slice(0, LENGTH))):
            model, repeat = (psnr(x[:, part], true[:, part]) for x in (frames, last))
            margin = f"margin {model - repeat:+.2f} dB"
            print(f"{name:5} {label:12}  model {model:5.2f} dB  repeat {repeat:5.2f} dB  {margin}")


def film_strip(clips: dict[str, torch.Tensor], made: tuple, count: int, zoom: int = 2) -> Image.Image:
    """Rows of real RGB, generated RGB, real depth and generated depth per clip, every other frame."""
    rows = []
    for clip in range(count):
        real, depth = clips["rgb"][clip].numpy() / 255.0, clips["depth"][clip].numpy()[..., None].repeat(3, -1) / 255.0
        context, gray = clips["context_rgb"][clip, 1].numpy() / 255.0, made[1][clip][..., None].repeat(3, -1)
        for frames in (real, made[0][clip], depth, gray):
            rows.append(np.concatenate([context, *frames[1::2]], 1))
        rows.append(np.ones_like(rows[-1][:4]))
    picture = Image.fromarray((np.concatenate(rows) * 255).round().astype(np.uint8))
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=None, help="the recording; default: the 16 embedded clips")
    parser.add_argument("--model", default="tiny-world")
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strip", type=Path, default=None, help="write a film strip of the first clips here")
    args = parser.parse_args()
    embedded = WEIGHTS / "tiny-world" / "clips.safetensors"
    clips = heldout(args.data / "heldout", args.clips) if args.data else load_file(embedded)
    clips = {name: x[: args.clips] for name, x in clips.items()}
    made = roll_out(load_pipeline(args.model), clips, args.steps, args.seed)
    report(clips, made)
    if args.strip:
        film_strip(clips, made, min(4, len(made[0]))).save(args.strip)


if __name__ == "__main__":
    main()
