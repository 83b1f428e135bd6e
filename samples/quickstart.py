"""One video, in full and accelerated: what it took, and how close it came.

    python samples/quickstart.py

Needs no network, and about a minute on one core.
"""

from __future__ import annotations

import argparse
from time import perf_counter
from typing import Any

import numpy as np
import torch

from diffcache import accelerate_pipeline, restore
from diffcache.zoo import load_pipeline


def generate(pipe: Any, steps: int) -> tuple[np.ndarray, float]:
    """Frames ``[frames, height, width, 3]`` in [0, 1], and seconds; always the same noise."""
    began = perf_counter()
    noise = torch.Generator().manual_seed(0)
    call = dict(height=48, width=64, num_frames=9, guidance_scale=4.0, max_sequence_length=16, output_type="np")
    frames = pipe("turns left", num_inference_steps=steps, generator=noise, **call).frames[0]
    return frames, perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="worldcache", help="see: diffcache methods")
    parser.add_argument("--steps", type=int, default=50)
    args = parser.parse_args()

    pipe = load_pipeline("tiny-wan")  # a diffusers.WanPipeline; yours may come from the hub
    pipe.set_progress_bar_config(disable=True)
    dense, slow = generate(pipe, args.steps)

    accelerate_pipeline(pipe, args.method)
    fast, seconds = generate(pipe, args.steps)
    print(pipe.diffcache.stats())
    error = float(np.square(fast - dense).mean())
    print(f"{slow / seconds:.2f}x as fast, PSNR {10 * np.log10(1 / max(error, 1e-12)):.1f} dB against dense")

    restore(pipe)
    print("restored, to the bit:", np.array_equal(generate(pipe, args.steps)[0], dense))


if __name__ == "__main__":
    main()
