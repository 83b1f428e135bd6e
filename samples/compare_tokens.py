"""How many tokens to recompute at predicted steps, and which: ``worldcache-partial`` beside ``worldcache``.

    python samples/compare_tokens.py --models tiny-wan tiny-world --work 0.5

Every row is given the same work, the share of block calls and tokens: the more tokens a predicted step recomputes, the
fewer steps are computed in full. ``worldcache`` with as many full steps and nothing between them shows what the tokens
add. Quality only (nothing is timed here). Guards are off, so that no step is added. Prints
a Markdown table for each model.
"""

from __future__ import annotations

import argparse
import statistics

from rich.console import Console
from rich.progress import track
from trials import Trials

from diffcache.methods import MethodConfig, make_config

FIRST_SEED = 1000
SCORES = ("input", "turning", "value", "random")


def full_steps(work: float, keep: float, steps: int) -> int:
    """Steps to compute in full, so that with ``keep`` of the tokens at all others the work is ``work``."""
    return round(steps * (work - keep) / (1 - keep))


def rows(work: float, keeps: list[float], steps: int) -> dict[str, MethodConfig | str]:
    """What is compared, by its first cells."""
    fixed = {"threshold": float("inf"), "max_skip": steps}
    computed = round(work * steps)
    found: dict[str, MethodConfig | str] = {
        f"`worldcache` | | {computed}": make_config("worldcache", computed=computed, **fixed)
    }
    for keep in keeps:
        computed = full_steps(work, keep, steps)
        found[f"`worldcache`, as many full steps | | {computed}"] = make_config(
            "worldcache", computed=computed, **fixed
        )
        for score in SCORES:
            config = make_config("worldcache-partial", computed=computed, keep=keep, score=score, **fixed)
            found[f"{keep:g} | `{score}` | {computed}"] = config
    return found


def compare(model: str, work: float, keeps: list[float], seeds: int) -> str:
    """The table of one model."""
    trials = Trials(model)
    lines = [
        f"### {model}: {trials.steps} steps, work {work:g}, {seeds} seeds",
        "",
        "| tokens | score | full steps | work | PSNR dB | worst seed |",
        "|---|---|---|---|---|---|",
    ]
    for label, config in track(rows(work, keeps, trials.steps).items(), model, console=Console(stderr=True)):
        found = [trials.psnr(config, seed) for seed in range(FIRST_SEED, FIRST_SEED + seeds)]
        psnr = [value for value, _ in found]
        spent = statistics.mean(share for _, share in found)
        lines.append(f"| {label} | {spent:.2f} | {statistics.mean(psnr):.1f} | {min(psnr):.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["tiny-wan", "tiny-world"])
    parser.add_argument("--work", type=float, default=0.5, help="share of block calls and tokens, in (0, 1)")
    parser.add_argument("--keep", nargs="+", type=float, default=[0.05, 0.1, 0.25, 0.4])
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    for model in options.models:
        print(compare(model, options.work, options.keep, options.seeds), flush=True)


if __name__ == "__main__":
    main()
