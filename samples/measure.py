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

from diffcache import accelerated
from diffcache.media.request import Call, Request
from diffcache.media.runs import Run, run_once
from diffcache.media.subject import Subject
from diffcache.methods import make_config
from diffcache.report import Fidelity, fidelity
from diffcache.zoo import list_models, load_pipeline
from diffcache.zoo.loading import WEIGHTS

STEPS = 50


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
    ours = Variant(f"worldcache, {computed} placed", "worldcache", settings={"computed": computed})
    rules = {"linear": "linear", "reuse": "reuse", "the paper's rule": "heterogeneous"}
    placed = [
        Variant(f"same placement, {label} ({computed})", "powerlaw", settings={"computed": computed, "predictor": rule})
        for label, rule in rules.items()
    ]
    even = [
        Variant(
            f"interval {interval}, {rule}", "interval", settings={"interval": interval, "predictor": rule, "warmup": w}
        )
        for rule, w in (("reuse", 1), ("linear", 2))
    ]
    return [ours, *placed, *even, Variant(f"fewer steps ({computed + 1})", steps=computed + 1)]


PAPER = [
    Variant("worldcache:aether (faithful)", "worldcache:aether"),
    Variant("worldcache:voyager (faithful)", "worldcache:voyager"),
]


# -- what is generated -------------------------------------------------------------------------------------------------


def make_call(pipe: Any, model: str, seed: int, steps: int) -> Call:
    """A call of an embedded model: held-out clip or motion number ``seed``."""
    return Subject(pipe, list_models()[model], WEIGHTS / model, Request()).call(seed, steps)


def sample(pipe: Any, model: str, variant: Variant, seed: int) -> Run:
    """One generation of a variant."""
    config = make_config(variant.method, **variant.settings)
    return run_once(pipe, make_call(pipe, model, seed, variant.steps), seed, config, _silent)


def _silent(label: str, done: int, total: int) -> None:
    """Steps are not reported one by one."""


# -- measuring ---------------------------------------------------------------------------------------------------------


DENSE = Variant("dense")


def overhead(pipe: Any, model: str, pairs: int) -> float:
    """Time of the pipeline with hooks that never skip over the bare pipeline, median of alternating pairs."""
    short = Variant("dense", steps=25)
    arguments = make_call(pipe, model, 0, short.steps).arguments

    def bare() -> float:
        begin = time.perf_counter()
        pipe(**arguments, generator=torch.Generator().manual_seed(0), callback_on_step_end=lambda *_: {})
        return time.perf_counter() - begin

    return alternating(lambda: sample(pipe, model, short, 0).seconds, bare, pairs)


@dataclass(frozen=True)
class Timed:
    """One generation: seconds of each denoiser call with our hooks, of the denoiser's own part of it, and of all.

    Attributes:
        calls: ``(with hooks, the denoiser alone)``; the second is 0.0 where the call was predicted.
        whole: the pipeline.
    """

    calls: list[tuple[float, float]]
    whole: float


def timed(pipe: Any, arguments: dict[str, Any], variant: Variant, seed: int = 0) -> Timed:
    """Generate once and time every call of the denoiser."""
    with accelerated(pipe, variant.method, **variant.settings):
        ((denoiser, hook),) = pipe.diffcache.hooks.values()
        inner, outer = hook.fn_ref.original_forward, denoiser.forward
        calls, own = [], [0.0]

        def alone(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                own[0] += time.perf_counter() - begin

        def hooked(*args: Any, **kwargs: Any) -> Any:
            own[0], begin = 0.0, time.perf_counter()
            try:
                return outer(*args, **kwargs)
            finally:
                calls.append((time.perf_counter() - begin, own[0]))

        hook.fn_ref.original_forward, denoiser.forward = alone, hooked
        begin = time.perf_counter()
        try:
            pipe(**arguments, generator=torch.Generator().manual_seed(seed))
        finally:
            whole = time.perf_counter() - begin
            hook.fn_ref.original_forward, denoiser.forward = inner, outer
    return Timed(calls, whole)


def own_time(pipe: Any, model: str, runs: int = 5) -> float:
    """Time of a denoiser call with hooks that never skip over the time that the denoiser itself takes in it.

    Both are of the very same call, so the machine's noise cancels; median of all calls of several generations.
    """
    arguments = make_call(pipe, model, 0, 25).arguments
    calls = [call for _ in range(runs) for call in timed(pipe, arguments, DENSE).calls]
    return statistics.median(outer / inner for outer, inner in calls)


def speedups(pipe: Any, model: str, variant: Variant, pairs: int) -> dict[str, float]:
    """How much faster than dense the denoiser and the whole pipeline are, in alternating generations.

    The denoiser's time is that of its calls, each counted at the median of its kind (dense; computed; predicted), so
    that a burst of the machine's noise in some of them does not count.
    """
    dense, ours = [], []
    for seed in range(pairs):
        arguments = make_call(pipe, model, seed, STEPS).arguments
        dense.append(timed(pipe, arguments, DENSE, seed))
        ours.append(timed(pipe, arguments, variant, seed))
    calls = [call for run in ours for call in run.calls]
    computed = [outer for outer, inner in calls if inner]
    predicted = [outer for outer, inner in calls if not inner]
    full = statistics.median(outer for run in dense for outer, _ in run.calls) * len(calls)
    spent = sum(len(kind) * statistics.median(kind) for kind in (computed, predicted) if kind)
    share = len(computed) / len(calls)
    whole = statistics.median(d.whole for d in dense) / statistics.median(o.whole for o in ours)
    return {"computed": share * STEPS, "speedup": full / spent, "achieved": full / spent * share, "whole": whole}


def alternating(a: Callable[[], float], b: Callable[[], float], pairs: int) -> float:
    """Median of a / b, each a between two b: a machine that slows down meets both alike."""
    a(), b()  # warm up
    ratios, before = [], b()
    for _ in range(pairs):
        middle, after = a(), b()
        ratios.append(2 * middle / (before + after))
        before = after
    return statistics.median(ratios)


@dataclass
class Row:
    """A variant's results over seeds."""

    variant: Variant
    runs: list[Run] = field(default_factory=list)
    fidelity: list[Fidelity] = field(default_factory=list)
    speedup: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)

    def add(self, run: Run, dense: Run) -> None:
        self.runs.append(run)
        self.fidelity.append(fidelity(run.clip.pixels, dense.clip.pixels))
        self.speedup.append(dense.denoiser_seconds / run.denoiser_seconds)
        self.whole.append(dense.seconds / run.seconds)

    def summary(self) -> dict[str, Any]:
        computed = statistics.mean(computed_steps(run) for run in self.runs)
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
            "cached_bytes": max(run.cached_bytes for run in self.runs),
            "decisions": self.runs[0].trajectories[0].segments[0].decisions,
        }


def computed_steps(run: Run) -> float:
    """Computed steps of a trajectory, mean over the trajectories of a rollout."""
    return statistics.mean(t.segments[0].computed for t in run.trajectories)


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
            dense = sample(pipe, model, DENSE, seed)
            for row in rows:
                row.add(sample(pipe, model, row.variant, seed), dense)
                progress.advance(task)
            again = sample(pipe, model, DENSE, seed)
            drift.append(again.denoiser_seconds / dense.denoiser_seconds)
    return {
        "model": model,
        "steps": STEPS,
        "seeds": seeds,
        "overhead": ratio,
        "own_time": own_time(pipe, model),
        "dense_spread": max(drift) / min(drift) - 1,
        "rows": [row.summary() for row in rows],
        "paired": {v.label: speedups(pipe, model, v, pairs) for v in (variants(k)[0] for k in computed)},
    }


# -- printing ----------------------------------------------------------------------------------------------------------


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        f"### {result['model']}: {result['steps']} steps, {result['seeds']} seeds",
        "",
        f"never-skipping hooks: {result['own_time']:.3f} of the denoiser's own time in the same calls, "
        f"{result['overhead']:.3f} of the bare pipeline in alternating runs; "
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
    lines += ["", "Timed alone, in turn with dense runs (each call at the median of its kind):", ""]
    lines += ["| method | computed | denoiser speed-up | achieved | whole pipeline |", "|---|---|---|---|---|"]
    lines += [
        f"| {label} | {p['computed']:.1f} | {p['speedup']:.2f}x | {p['achieved']:.1%} | {p['whole']:.2f}x |"
        for label, p in result["paired"].items()
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["tiny-world", "tiny-wan"])
    parser.add_argument("--computed", nargs="+", type=int, default=[23, 15, 10])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=14, help="alternating pairs of generations that are timed alone")
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
