"""Overhead of every site's hooks, memory of taylorseer, host reads of the drift schedules, beside diffusers' hooks.

    python samples/measure_sites.py --repeats 9 --steps 20 --out docs/measured-sites.md

One generation of each embedded model is recorded, and its denoiser calls are made again: by the bare model and, right
beside it, by a twin with hooks, which has the same weights; which of the two comes first alternates. A ratio is that of
one such pair; the tables show the median of all pairs, and in brackets the medians of the best and the worst repeat.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from peer_hooks import put_first_block, put_taylorseer
from recording import Recording, record
from rich.console import Console
from rich.progress import Progress
from site_costs import DISTANCE, DRIFTS, count_reads, memory
from torch import nn

from diffcache import NothingSkippedWarning, accelerate_model

MODELS = ("tiny-dit", "tiny-wan")
ORDERS = (1, 2)

# -- overhead ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """Hooks whose computed steps are timed.

    Attributes:
        label: row of the table.
        column: number of its column.
        put: puts them on a model; takes the number of steps.
        stores: whether they keep what they compute, for a prediction that may come.
        theirs: diffusers' hooks.
    """

    label: str
    column: int
    put: Callable[[nn.Module, int], Any]
    stores: bool = True
    theirs: bool = False


#: at every timestep
PAB = dict(low=0, high=1001)
#: site -> method, settings that never skip, and settings that store (every other step is skipped then) or listen
SITES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "output": ("interval", dict(interval=1), dict(interval=2)),
    "body": ("interval", dict(interval=1, site="body"), dict(interval=2, site="body")),
    "block": ("taylorseer", dict(interval=1, site="block"), dict(interval=2, site="block", warmup=1)),
    "module": ("taylorseer", dict(interval=1), dict(interval=2, warmup=1)),
    "attention": ("pab", dict(spatial=1, temporal=1, cross=1, **PAB), dict(spatial=2, temporal=2, cross=2, **PAB)),
    "first": ("fbcache", dict(max_skip=0), dict(threshold=0.0)),
    "modulated": (
        "teacache",
        dict(threshold=0.0, polynomial=DISTANCE),
        dict(threshold=1e-30, polynomial=DISTANCE),
    ),
    "rate": ("easycache", dict(threshold=0.0), dict(threshold=1e-30)),
}


def _ours(method: str, settings: dict[str, Any], model: nn.Module, steps: int) -> None:
    accelerate_model(model, method, **settings)


def variants(only: Collection[str] | None = None) -> list[Variant]:
    """Every site (of ``only``, if given) never skipping and storing, each with exact savings and alone; diffusers'."""
    rows = []
    for site, (method, never, stores) in SITES.items():
        if only is not None and site not in only:
            continue
        label = f"{site} (`{method}`)"
        for column, settings in enumerate((never, dict(never, exact=False), stores, dict(stores, exact=False))):
            rows.append(Variant(label, column, partial(_ours, method, settings), stores=column >= 2))
    theirs = {
        "diffusers' FirstBlockCache": lambda model, steps: put_first_block(model, 0.0),
        "diffusers' TaylorSeer, same modules": lambda model, steps: put_taylorseer(model, steps + 1, 1, 1),
    }
    return [*rows, *(Variant(label, 3, put, theirs=True) for label, put in theirs.items())]


@dataclass
class Ratios:
    """Time with hooks over time without, of every pair of calls, repeat by repeat."""

    repeats: list[list[float]] = field(default_factory=list)

    def __str__(self) -> str:
        medians = [statistics.median(pairs) for pairs in self.repeats]
        middle = statistics.median(ratio for pairs in self.repeats for ratio in pairs)
        return f"{middle:.3f} ({min(medians):.3f} to {max(medians):.3f})"


def timed(call: Callable[[nn.Module], Any], model: nn.Module) -> float:
    """Seconds of a call."""
    begin = time.perf_counter()
    call(model)
    return time.perf_counter() - begin


def compare(recording: Recording, twin: nn.Module, variant: Variant, first: int) -> tuple[list[float], list[float]]:
    """Ratios of a trajectory's computed pairs of calls, and the bare model's seconds; ``first``: which one begins."""
    ratios, bare, steps = [], [], []
    for number, (step, _, call) in enumerate(recording.walk(twin, variant.theirs)):
        # Every other step may be skipped: in each pair of steps the order is one and the same.
        order = (twin, recording.model) if (step // 2 + number + first) % 2 else (recording.model, twin)
        seconds = {id(model): timed(call, model) for model in order}
        bare.append(seconds[id(recording.model)])
        ratios.append(seconds[id(twin)] / bare[-1])
        steps.append(step)
    if variant.theirs:
        return ratios, bare
    decided = twin.diffcache.stats().segments[0].decisions  # branches decide together
    return [ratio for step, ratio in zip(steps, ratios, strict=True) if decided[step] == "F"], bare


def overhead(
    recording: Recording, rows: list[tuple[Variant, Ratios]], repeats: int, tick: Callable[[], None]
) -> tuple[list[tuple[Variant, Ratios]], float]:
    """Ratios of every variant, and the median seconds of a bare call; all variants take turns."""
    twins, bare = [], []
    for variant, _ in rows:
        twins.append(recording.twin())
        variant.put(twins[-1], len(recording.steps))
        compare(recording, twins[-1], variant, 0)  # warms up; a body is proved
        tick()
    for repeat in range(repeats):
        for (variant, ratios), twin in zip(rows, twins, strict=True):
            found, seconds = compare(recording, twin, variant, repeat)
            ratios.repeats.append(found)
            bare += seconds
            tick()
    for (variant, _), twin in zip(rows, twins, strict=True):
        _check(variant, twin)
    return rows, statistics.median(bare)


def _check(variant: Variant, twin: nn.Module) -> None:
    """Ours stored where it was meant to, and computed every step where it was not; listening skipped nothing."""
    if variant.theirs:
        return
    for segment in twin.diffcache.stats().segments:
        computes = set(segment.decisions) == {"F"}
        assert computes or variant.stores, (variant.label, segment.decisions)
        assert bool(segment.cached_bytes) == variant.stores, (variant.label, segment.cached_bytes)


# -- printing ----------------------------------------------------------------------------------------------------------


def overhead_table(name: str, rows: list[tuple[Variant, Ratios]], bare: float) -> list[str]:
    """One row a site: hooks that keep nothing, hooks that store or listen, each with exact savings and without."""
    lines = [
        f"### {name}: {bare * 1e3:.1f} ms a call",
        "",
        "| hooks | never skip | with `exact=False` | store or listen | with `exact=False` |",
        "|---|---|---|---|---|",
    ]
    table: dict[str, list[str]] = {}
    for variant, ratios in rows:
        table.setdefault(variant.label, [""] * 4)[variant.column] = str(ratios)
    return lines + [f"| {label} | {' | '.join(cells)} |" for label, cells in table.items()] + [""]


def memory_rows(name: str, recording: Recording, tick: Callable[[], None]) -> list[str]:
    """One row an order."""
    rows = []
    for order in ORDERS:
        held = memory(recording, order)
        cells = [name, order, *(f"{value / 1e3:.0f}" for value in held), f"1/{held[0] / held[-1]:.0f}"]
        rows.append(f"| {' | '.join(map(str, cells))} |")
        tick()
    return rows


def reads_rows(name: str, recording: Recording, tick: Callable[[], None]) -> list[str]:
    """One row a method."""
    rows = []
    for method in DRIFTS:
        found = count_reads(recording, method)
        first, *later = found.reads
        cells = [name, f"`{method}`", len(recording.steps[0]), f"`{found.decisions}`", first, max(later)]
        rows.append(f"| {' | '.join(map(str, [*cells, f'{statistics.mean(later):.2f}']))} |")
        tick()
    return rows


INTRODUCTION = """# Measured: hooks, memory and host reads of each site

Written by `python samples/measure_sites.py` (`make bench-sites`); do not edit. {repeats} repeats of {steps} steps,
{threads} threads, fp32 on the CPU; torch {torch}, diffusers {diffusers}.

## Overhead when nothing is skipped

Time of a denoiser call with hooks over that of the bare model with the same weights and inputs, in pairs of calls that
take turns: the median of all pairs, and the medians of the best and the worst repeat. First, settings that compute
every step (`interval=1`, a threshold of 0, `max_skip=0` for `fbcache`, which at 0 skips what stands still): they store
and hear nothing. Then computed steps that store for a prediction that may come (`interval=2`), or that listen and find
that the signal moved, as diffusers' hooks do whatever their settings are. Both with [exact savings](exact.md), as every
method has them unless told otherwise: where they save more than the hooks cost, a ratio is below 1. The columns beside
them are the hooks' own cost, without them.
"""
MEMORY = """## Memory of taylorseer

Kilobytes of a branch, interval 5. diffusers' hooks are on the same modules (by default they find none here), with
factors in fp32 and in bf16, as they come. Here values rest in the dtype that they have, fp32 on these models, or in
`cache_dtype`.

| model | order | diffusers, fp32 | `taylorseer` | diffusers, bf16 | `cache_dtype=bfloat16` | `lite` | lite to fp32 |
|---|---|---|---|---|---|---|---|"""
READS = """## Host reads of the drift schedules

Reads of the device by our engine in a step, over all its denoiser calls: the first step, the most and the mean of the
others; a model's first trajectory is left out.

| model | method | calls a step | decisions | first step | most | mean |
|---|---|---|---|---|---|---|"""


def measure(models: list[str], repeats: int, steps: int, only: Collection[str] | None = None) -> str:
    """The whole page; of ``only`` some sites, their overhead alone."""
    versions = dict(torch=torch.__version__, diffusers=diffusers.__version__, threads=torch.get_num_threads())
    page = [INTRODUCTION.format(repeats=repeats, steps=steps, **versions)]
    recordings = {name: record(name, steps) for name in models}
    held, read = [MEMORY], [READS]
    with Progress(console=Console(stderr=True)) as progress:
        for name, recording in recordings.items():
            rows = [(variant, Ratios()) for variant in variants(only)]
            total = (repeats + 1) * len(rows) + (len(ORDERS) + len(DRIFTS) if only is None else 0)
            tick = partial(progress.advance, progress.add_task(name, total=total))
            page += overhead_table(name, *overhead(recording, rows, repeats, tick))
            if only is not None:
                continue
            held += memory_rows(name, recording, tick)
            read += reads_rows(name, recording, tick)
    return "\n".join([*page, *held, "", *read] if only is None else page) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--repeats", type=int, default=9, help="trajectories of each kind of hooks")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", nargs="+", choices=list(SITES), help="the overhead of these sites, printed only")
    parser.add_argument("--out", type=Path, default=Path("docs/measured-sites.md"))
    args = parser.parse_args()
    if args.repeats < 1 or args.steps < 8:
        parser.error("--repeats must be at least 1, --steps at least 8")
    warnings.simplefilter("ignore", NothingSkippedWarning)  # that is the point
    page = measure(args.models, args.repeats, args.steps, args.only)
    if args.only is None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
