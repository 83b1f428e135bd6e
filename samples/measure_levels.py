"""What a predicted step of ``auto`` would gain by computing some of its tokens: ``python samples/measure_levels.py``.

    python samples/measure_levels.py --models tiny-dit tiny-wan tiny-world --seeds 3
    python samples/measure_levels.py --models wide

For each share of the tokens: what such a step costs, in computed ones, and what it leaves of the error (RMS) that spans
of predicted steps have at the end; both as ``diffcache calibrate --method auto`` measures them, but also where a level
is too dear to be looked at. Then plans: with the measured prices, and as if a level cost no more than its share of the
tokens, which no model can do; where these have levels they are run, with weights of the dense runs, beside the plan
without levels that is as fast. ``wide`` is a DiT of two blocks, 1,152 wide, of 1,024 tokens, with random weights: it
tells costs alone. Prints Markdown rows, and writes them with their head where --out says.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel
from rich.console import Console
from rich.progress import Progress

from diffcache import denoising
from diffcache.hooks.anatomy import find_denoisers
from diffcache.learn.bench import Bench
from diffcache.learn.kept import Kept
from diffcache.learn.levels import Levels
from diffcache.learn.measuring import Reporter
from diffcache.media.request import Request
from diffcache.media.runs import generate
from diffcache.media.subject import Subject
from diffcache.schedules.levels import Level, Market, Offer
from diffcache.schedules.planning import Landscape, Placements
from diffcache.zoo import list_models, load_pipeline
from diffcache.zoo.loading import WEIGHTS

FIRST_SEED = 1000
WIDE, WIDE_STEPS = "wide", 26


def wide_model() -> DiTTransformer2DModel:
    """Two blocks of DiT-XL's width on 32 x 32 tokens; gates are zero in a new DiT, so they are filled."""
    torch.manual_seed(0)
    model = DiTTransformer2DModel(num_attention_heads=16, attention_head_dim=72, num_layers=2, sample_size=64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return model.requires_grad_(False)


def sample_wide(model: DiTTransformer2DModel, seed: int) -> torch.Tensor:
    """A bare loop."""
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(WIDE_STEPS)
    x = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad(), denoising(model, WIDE_STEPS, scheduler):
        for t in scheduler.timesteps:
            out = model(x, timestep=t[None], class_labels=torch.tensor([1]), return_dict=False)[0][:, :4]
            x = scheduler.step(out, t, x, return_dict=False)[0]
    return x


def open_bench(name: str, seeds: Sequence[int], progress: Progress) -> Bench:
    """With its dense runs flown."""
    if name == WIDE:
        pipe: Any = wide_model()
        names, runs = ["denoiser"], [partial(sample_wide, seed=seed) for seed in seeds]
    else:
        pipe, entry = load_pipeline(name), list_models()[name]
        pipe.set_progress_bar_config(disable=True)
        subject, names = Subject(pipe, entry, WEIGHTS / name, Request()), list(find_denoisers(pipe))
        arguments = {seed: dict(subject.call(seed, entry.num_inference_steps).arguments) for seed in seeds}
        runs = [partial(generate, arguments=arguments[seed], seed=seed) for seed in seeds]
    task = progress.add_task(name, total=None)
    told = Reporter(lambda label, done, total: progress.update(task, description=f"{name}: {label}"))
    bench = Bench(pipe, names, runs, told, Kept(None, None))
    bench.fly_dense()
    return bench


def gain(bench: Bench, landscape: Landscape, offer: Offer, speedup: float) -> str:
    """What levels add to a plan that is so much faster, by the mean PSNR of some runs."""
    room = bench.prices.room(speedup)
    found = Market(landscape, offer).plan(room)
    if found is None or not found.partial:
        return "none"
    splits = bench.prices.splits(speedup)
    plain = Placements(landscape, max(map(max, splits))).best(splits)
    more = bench.score(found.computed, offer.shares(found, bench.steps)) - bench.score(plain)
    return f"{len(found.partial)} steps, {len(found.computed)} computed for {len(plain)}: {more:+.1f} dB"


def table_rows(name: str, shares: Sequence[float], seeds: Sequence[int], speedups: Sequence[float]) -> Iterator[str]:
    """Markdown rows."""
    with Progress(console=Console(stderr=True)) as progress:
        bench = open_bench(name, seeds, progress)
        trained = name != WIDE
        gains = bench.gains(8) if trained else np.ones(bench.steps)
        levels = Levels(bench, shares, 8, dear=inf if trained else 0.0)
        landscape, offer = Landscape(bench.evidence, gains), levels.offer
        for number, finding in enumerate(levels.findings):
            cells = [name, f"{finding.share:g}", f"{finding.time:.2f}", f"{bench.levelling.hold:.2f}"]
            cells.append("not measured" if finding.left is None else f"{finding.left:.2f}")
            if offer is not None:
                known = offer.levels[number]
                cheap = Offer((Level(known.share, known.share, known.left),))
                cells += [gain(bench, landscape, Offer((known,), offer.hold), s) for s in speedups]
                cells += [gain(bench, landscape, cheap, s) for s in speedups]
            yield "| " + " | ".join([*cells, *["not measured"] * (5 + 2 * len(speedups) - len(cells))]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["tiny-dit", "tiny-wan", "tiny-world", WIDE])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.25, 0.5])
    parser.add_argument("--speedups", nargs="+", type=float, default=[2.0, 3.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="Markdown file")
    options = parser.parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    heads = ["model", "tokens", "time of a step", "holding them", "leaves of the error"]
    heads += [f"taken at {s:g}x" for s in options.speedups] + [
        f"at {s:g}x if it cost its share" for s in options.speedups
    ]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name in options.models:
        for row in table_rows(name, options.shares, seeds, options.speedups):
            lines.append(row)
            print(row, flush=True)
    if options.out is not None:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
