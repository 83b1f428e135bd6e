"""The tables of the README: overhead, achieved speed-up, and quality against dense at equal time.

    python samples/measure.py --models tiny-world tiny-wan --seeds 8 --out out/bench

Every method runs on every seed before the next seed begins, so that a change of the machine's speed meets all alike.
Speed-ups are ratios to the dense run of the same seed; the control is the same sampler with fewer steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from diffcache import restore
from diffcache.report import Fidelity, Sample, fidelity, generate
from diffcache.zoo import load_pipeline
from diffcache.zoo.examples import example_call

STEPS = 50
Call = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Variant:
    """One row: a method with settings, or (``method="none"``) the sampler with ``steps`` steps."""

    label: str
    method: str = "none"
    steps: int = STEPS
    settings: dict[str, Any] = field(default_factory=dict)


def variants(computed: int) -> list[Variant]:
    """Our method with ``computed`` of 50 steps, and what it must beat with at least as much time."""
    interval = STEPS // computed
    return [
        Variant(f"worldcache, {computed} placed", "worldcache", settings={"computed": computed}),
        Variant(f"same placement, linear ({computed})", "powerlaw", settings={"computed": computed, "predictor": "linear"}),
        Variant(f"same placement, reuse ({computed})", "powerlaw", settings={"computed": computed, "predictor": "reuse"}),
        Variant(
            f"same placement, the paper's rule ({computed})",
            "powerlaw",
            settings={"computed": computed, "predictor": "heterogeneous"},
        ),
        Variant(f"interval {interval}, reuse", "interval", settings={"interval": interval, "predictor": "reuse", "warmup": 1}),
        Variant(f"interval {interval}, linear", "interval", settings={"interval": interval, "predictor": "linear", "warmup": 2}),
        Variant(f"fewer steps ({computed + 1})", steps=computed + 1),
    ]


PAPER = [
    Variant("worldcache:aether (faithful)", "worldcache:aether"),
    Variant("worldcache:voyager (faithful)", "worldcache:voyager"),
]


# -- what is generated -------------------------------------------------------------------------------------------------


def make_call(model: str, seed: int, steps: int) -> Call:
    """A generation of an embedded model: held-out clip or prompt number ``seed``, noise of that seed."""
    arguments = example_call(model, seed)

    def call(pipe: Any) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return pipe(**arguments, num_inference_steps=steps, generator=generator, output_type="pt").frames

    return call


# -- measuring ---------------------------------------------------------------------------------------------------------


def overhead(pipe: Any, model: str, pairs: int) -> float:
    """Time of the pipeline with hooks that never skip over the bare pipeline, median of alternating pairs."""
    call = make_call(model, 0, 12)
    ratios = []
    for i in range(pairs + 1):
        bare = _timed(pipe, call)
        hooked = generate(pipe, "none", call).seconds
        if i:  # the first pair warms up
            ratios.append(hooked / bare)
    return statistics.median(ratios)


def _timed(pipe: Any, call: Call) -> float:
    restore(pipe)
    begin = time.perf_counter()
    call(pipe)
    return time.perf_counter() - begin


@dataclass
class Row:
    """A variant's results over seeds."""

    variant: Variant
    samples: list[Sample] = field(default_factory=list)
    fidelity: list[Fidelity] = field(default_factory=list)
    speedup: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)

    def add(self, sample: Sample, dense: Sample) -> None:
        self.samples.append(sample)
        self.fidelity.append(fidelity(sample.frames, dense.frames))
        self.speedup.append(dense.denoiser_seconds / sample.denoiser_seconds)
        self.whole.append(dense.seconds / sample.seconds)

    def summary(self) -> dict[str, Any]:
        computed = statistics.mean(s.computed_share for s in self.samples) * self.variant.steps
        speedup = statistics.median(self.speedup)
        psnr = [f.psnr for f in self.fidelity]
        return {
            "label": self.variant.label,
            "variant": asdict(self.variant),
            "computed": computed,
            "speedup": speedup,
            "whole": statistics.median(self.whole),
            "achieved": speedup * computed / STEPS,
            "psnr": statistics.mean(psnr),
            "psnr_sd": statistics.stdev(psnr) if len(psnr) > 1 else 0.0,
            "psnr_each": psnr,
            "ssim": statistics.mean(f.ssim for f in self.fidelity),
            "cached_bytes": max(s.cached_bytes for s in self.samples),
            "decisions": self.samples[0].decisions[0],
        }


def measure(model: str, computed: list[int], seeds: int, pairs: int) -> dict[str, Any]:
    """All rows of one model."""
    pipe = load_pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    rows = [Row(v) for k in computed for v in variants(k)] + [Row(v) for v in PAPER]
    drift = []
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(model, total=seeds * len(rows))
        ratio = overhead(pipe, model, pairs)
        for seed in range(seeds):
            dense = generate(pipe, "none", make_call(model, seed, STEPS))
            for row in rows:
                v = row.variant
                row.add(generate(pipe, v.method, make_call(model, seed, v.steps), **v.settings), dense)
                progress.advance(task)
            again = generate(pipe, "none", make_call(model, seed, STEPS))
            drift.append(again.denoiser_seconds / dense.denoiser_seconds)
    return {
        "model": model,
        "steps": STEPS,
        "seeds": seeds,
        "overhead": ratio,
        "dense_spread": max(drift) / min(drift) - 1,
        "rows": [row.summary() for row in rows],
    }


# -- printing ----------------------------------------------------------------------------------------------------------


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        f"### {result['model']}: {result['steps']} steps, {result['seeds']} seeds",
        "",
        f"never-skipping hooks against the bare pipeline: {result['overhead']:.3f}; "
        f"dense run again after each seed: within {result['dense_spread']:.0%}",
        "",
        "| method | computed | denoiser speed-up | achieved | whole pipeline | PSNR dB | SSIM | cached kB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['label']} | {row['computed']:.1f} | {row['speedup']:.2f}x | {row['achieved']:.1%} | "
            f"{row['whole']:.2f}x | {row['psnr']:.1f} ± {row['psnr_sd']:.1f} | {row['ssim']:.4f} | "
            f"{row['cached_bytes'] / 1e3:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["tiny-world", "tiny-wan"])
    parser.add_argument("--computed", nargs="+", type=int, default=[24, 16, 10])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=9, help="pairs of the overhead measurement")
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for model in args.models:
        result = measure(model, args.computed, args.seeds, args.pairs)
        (args.out / f"{model}.json").write_text(json.dumps(result, indent=1))
        (args.out / f"{model}.md").write_text(table(result) + "\n")
        print(table(result), flush=True)


if __name__ == "__main__":
    main()
