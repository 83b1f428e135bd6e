"""diffsparse against the controls that it must beat: ``python samples/measure_diffsparse.py --schedule FILE``.

    python samples/measure_diffsparse.py --models tiny-dit --schedule tiny-dit.safetensors --seeds 20

Every row runs on every seed before the next seed begins; seeds are others than those of a calibration. PSNR is that of
the decoded result against dense. Work is the share of block calls and tokens; time is processor time of the whole
pipeline over that of the dense runs, whose seeds it shares, so that other load on the machine does not count. Rows that
are above diffsparse are named below the table. Writes a Markdown table after each seed, and prints the last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from diffcache import accelerated
from diffcache.learn import read_calibration
from diffcache.learn.budget import Problem, solve
from diffcache.learn.trials import Trial
from diffcache.media.frames import read_output
from diffcache.media.request import Request
from diffcache.media.runs import generate
from diffcache.media.subject import Subject
from diffcache.methods import MethodConfig, make_config
from diffcache.methods.sparse import table_of
from diffcache.report import fidelity
from diffcache.schedules.calibration import Expert
from diffcache.schedules.selectors import Selector
from diffcache.schedules.sparsity import KeepTable
from diffcache.zoo import list_models, load_pipeline
from diffcache.zoo.loading import WEIGHTS

#: held-out seeds begin here
FIRST_SEED = 1000


@dataclass
class Row:
    """One way to sample, and what it gave on each seed."""

    label: str
    config: MethodConfig
    steps: int
    psnr: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    work: float = 1.0


def rows(expert: Expert, schedule: Path, steps: int, random: int) -> list[Row]:
    """diffsparse, and the controls at the same work."""
    table = table_of(expert, str(schedule))
    keep = np.array(table.keep)
    budget = float(keep.mean())
    interval = round(1 / budget)
    uniform = np.full_like(keep, (budget * steps - 1) / (steps - 1))
    uniform[0] = 1.0
    alike = trial_of(table, expert)
    same = Row("dense", make_config("none"), steps)
    return [
        same,
        Row("diffsparse", make_config("diffsparse", schedule=str(schedule)), steps),
        Row("1 fewer steps", make_config("none"), round(budget * steps)),
        Row("2 the same share everywhere", alike(uniform), steps),
        Row(f"3 fora, interval {interval}", make_config("fora", interval=interval), steps),
        Row(
            f"4 taylorseer, order 1, interval {interval}", make_config("taylorseer", interval=interval, order=1), steps
        ),
        Row(
            f"4 taylorseer:lite, interval {interval}", make_config("taylorseer:lite", interval=interval, order=1), steps
        ),
        *(Row(f"5 random table {n}", alike(random_table(keep.shape, budget, n)), steps) for n in range(random)),
        *(
            [Row("6 one-shot table", alike(expert.numbers["one_shot"].numpy()), steps)]
            if "one_shot" in expert.numbers
            else []
        ),
        Row("worldcache", make_config("worldcache", computed=round(budget * steps)), steps),
    ]


def trial_of(table: KeepTable, expert: Expert) -> Callable[[np.ndarray], Trial]:
    """Tables in the executor of the learned one."""

    def alike(keep: np.ndarray) -> Trial:
        made = KeepTable(table.units, tuple(map(tuple, keep.tolist())), table.timesteps, table.branches, table.folded)
        name = "transformer"
        return Trial(site=expert.facts["site"], selector=Selector(**expert.facts["score"]), tables={name: made})

    return alike


def random_table(shape: tuple[int, int], budget: float, seed: int) -> np.ndarray:
    """The cheapest table under random costs, with the first step full."""
    levels = np.linspace(0, 1, 5)
    steps, units = shape
    cost = np.random.default_rng(seed).normal(size=((steps - 1) * units, 5)) - levels
    room = budget * steps * units - units
    found = solve(Problem.of(cost, levels, room))
    return np.concatenate([np.ones((1, units)), levels[found].reshape(steps - 1, units)])


def measure(model: str, schedule: Path, seeds: int, random: int) -> Iterator[list[Row]]:
    """Every row on one seed after the other; what there is after each."""
    calibration = read_calibration(schedule)
    (expert,) = calibration.experts.values()
    pipe, entry = load_pipeline(model), list_models()[model]
    pipe.set_progress_bar_config(disable=True)
    subject = Subject(pipe, entry, WEIGHTS / model, Request())
    found = rows(expert, schedule, calibration.steps, random)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(model, total=seeds * len(found))
        for seed in range(FIRST_SEED, FIRST_SEED + seeds):
            dense = None
            for row in found:
                arguments: Mapping[str, Any] = subject.call(seed, row.steps).arguments
                with accelerated(pipe, row.config):
                    begin = time.process_time()
                    clip = read_output(generate(pipe, dict(arguments), seed))
                    row.seconds.append(time.process_time() - begin)
                    segments = pipe.diffcache.stats().segments
                    row.work = statistics.mean(s.token_share for s in segments) * row.steps / calibration.steps
                dense = clip if dense is None else dense
                row.psnr.append(fidelity(clip.pixels, dense.pixels).psnr)
                progress.advance(task)
            yield found


def table(model: str, found: list[Row]) -> str:
    """Markdown, and what is above diffsparse."""
    dense, ours, *others = found
    seeds = len(ours.psnr)
    random = [row for row in others if row.label.startswith("5")]
    best = max(random, key=lambda row: statistics.mean(row.psnr))
    best = replace(best, label=f"5 random tables, best of {len(random)}")
    shown = [ours, *(row for row in others if row not in random), best]
    shown[1:] = sorted(shown[1:], key=lambda row: row.label)
    lines = [f"### {model}: {dense.steps} steps, {seeds} held-out seeds", ""]
    lines += ["| | work | processor time | PSNR dB | diffsparse is above on |", "|---|---|---|---|---|"]
    for row in shown:
        spent = statistics.median(a / b for a, b in zip(row.seconds, dense.seconds, strict=True))
        wins = "" if row is ours else f"{sum(a > b for a, b in zip(ours.psnr, row.psnr, strict=True))} of {seeds}"
        psnr = f"{statistics.mean(row.psnr):.1f} ± {statistics.stdev(row.psnr) if seeds > 1 else 0.0:.1f}"
        lines.append(f"| {row.label} | {row.work:.1%} | {spent:.2f} | {psnr} | {wins} |")
    above = [row.label for row in shown[1:] if statistics.mean(row.psnr) >= statistics.mean(ours.psnr)]
    lines += ["", f"above diffsparse: {', '.join(above)}" if above else "none is above diffsparse"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shipped = [name for name, entry in list_models().items() if "diffsparse" in entry.methods]
    parser.add_argument("--models", nargs="+", default=shipped)
    parser.add_argument("--schedule", nargs="+", type=Path, help="one file for each model; the shipped ones")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--random", type=int, default=20, help="random tables, of which the best counts")
    parser.add_argument("--out", type=Path, default=Path("out/diffsparse"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    files = options.schedule or [Path(list_models()[m].methods["diffsparse"]["schedule"]) for m in options.models]
    for model, schedule in zip(options.models, files, strict=True):
        for found in measure(model, schedule, options.seeds, options.random):
            (options.out / f"{model}.md").write_text(table(model, found) + "\n")
            (options.out / f"{model}.json").write_text(json.dumps({r.label: r.psnr for r in found}, indent=1))
        print((options.out / f"{model}.md").read_text(), flush=True)


if __name__ == "__main__":
    main()
