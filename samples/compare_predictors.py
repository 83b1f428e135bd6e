"""Which predictor, on which axis, with which placement: PSNR against dense at equal computed steps.

    python samples/compare_predictors.py --models tiny-world tiny-wan --out docs/predictors.md

Quality only (nothing is timed here). Seeds run as one batch; schedules are fixed, so samples do not influence each
other's steps. The guard of ``worldcache`` is off, so that every row has exactly the computed steps that it names.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from diffcache import accelerated
from diffcache.media.request import Request
from diffcache.media.subject import Subject
from diffcache.report import fidelity
from diffcache.zoo import list_models, load_pipeline
from diffcache.zoo.loading import WEIGHTS
from diffcache.zoo.world import ACTIONS, parse_actions

STEPS = 50
WORLD_ACTIONS = 8  # one chunk: later chunks start from frames that already differ
PREDICTORS: dict[str, dict[str, Any]] = {
    "reuse": {"predictor": "reuse"},
    "linear": {"predictor": "linear"},
    "order 2": {"predictor": "taylor", "order": 2},
    "Hermite blend": {"predictor": "hermite"},
    "heterogeneous (paper)": {"predictor": "heterogeneous"},
    "trend, per sample": {"share": float("inf"), "feedback": False},
    "trend, per token": {"share": 0.0, "feedback": False},
    "trend, shrunk": {"share": 1.0, "feedback": False},
    "trend, shrunk, with feedback": {"share": 1.0, "feedback": True},
    "trend, per sample, with feedback (default)": {"feedback": True},
    "default on the sigma axis": {"feedback": True, "axis": "sigma"},
    "default on the log-SNR axis": {"feedback": True, "axis": "logsnr"},
}


def batched(pipe: Any, model: str, seeds: int) -> dict[str, Any]:
    """The calls 0 … seeds - 1 of an embedded model (clips or motions) as one call."""
    subject = Subject(pipe, list_models()[model], WEIGHTS / model, Request())
    calls = [subject.call(seed, STEPS).arguments for seed in range(seeds)]
    if model == "tiny-world":
        one_chunk = [chunk_of(call["actions"]) for call in calls]
        return {"image": [c["image"] for c in calls], "depth": [c["depth"] for c in calls], "actions": one_chunk}
    shared = {k: v for k, v in calls[0].items() if k not in ("num_inference_steps", "output_type")}
    return {**shared, "prompt": [call["prompt"] for call in calls]}


def chunk_of(actions: str) -> str:
    """The first chunk of an action string, letter by letter."""
    return "".join(ACTIONS[k] for k in parse_actions(actions)[:WORLD_ACTIONS])


def generator_of(pipe: Any, arguments: dict[str, Any]) -> Callable[[int], Tensor]:
    """``steps -> frames`` with the same noise each time."""

    def run(steps: int = STEPS) -> Tensor:
        noise = torch.Generator().manual_seed(0)
        return pipe(**arguments, num_inference_steps=steps, generator=noise, output_type="pt").frames

    return run


def method_of(settings: dict[str, Any], computed: int, alpha: float) -> tuple[str, dict[str, Any]]:
    """Method name and fields of a row."""
    shared = {"computed": computed, "alpha": alpha, "max_skip": STEPS, **settings}
    return ("worldcache", {**shared, "threshold": float("inf")}) if "feedback" in settings else ("powerlaw", shared)


def mean_psnr(frames: Tensor, dense: Tensor) -> float:
    """Mean over samples of each sample's PSNR in dB."""
    return sum(fidelity(a, b).psnr for a, b in zip(frames, dense, strict=True)) / len(dense)


def compare(model: str, computed: list[int], alphas: list[float], seeds: int) -> str:
    """The tables of one model, as Markdown."""
    pipe = load_pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    run = generator_of(pipe, batched(pipe, model, seeds))
    dense = run()
    parts = []
    for count in computed:
        lines = [
            f"### {model}, {count} of {STEPS} steps computed",
            "",
            f"The same sampler with {count} steps: {mean_psnr(run(count), dense):.1f} dB.",
            "",
            "| predictor | " + " | ".join(f"alpha {alpha:g}" for alpha in alphas) + " |",
            "|---|" + "---|" * len(alphas),
        ]
        for name, settings in track(PREDICTORS.items(), f"{model} {count}", console=Console(stderr=True)):
            cells = []
            for alpha in alphas:
                method, fields = method_of(settings, count, alpha)
                with accelerated(pipe, method, **fields):
                    cells.append(f"{mean_psnr(run(), dense):.1f}")
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


HEAD = """# Predictors and placements, measured

PSNR in dB against the dense 50-step result, mean of {seeds} seeds (held-out contexts, or prompts). `alpha` is the
exponent of the power-law placement (1 is even). The guard is off. Printed by `{command}`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["tiny-world", "tiny-wan"])
    parser.add_argument("--computed", nargs="+", type=int, default=[24, 16, 10])
    parser.add_argument("--alphas", nargs="+", type=float, default=[1.0, 1.3, 1.5, 1.7, 2.0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("docs/predictors.md"))
    args = parser.parse_args()
    tables = [compare(model, args.computed, args.alphas, args.seeds) for model in args.models]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python samples/compare_predictors.py", *sys.argv[1:]])
    args.out.write_text("\n\n".join([HEAD.format(seeds=args.seeds, command=command), *tables]) + "\n")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
