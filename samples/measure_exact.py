"""What exact savings save on the models that ship, and what asking for them costs.

    python samples/measure_exact.py --pairs 8

Generations with and without them in turn; a call counts at the median of its kind, and the first step, in which a form
is watched, counts apart. Asking is timed in processor time on a forward that does nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
import timeit
from collections.abc import Callable
from typing import Any

import torch
from trials import Trials

from diffcache import accelerated
from diffcache.hooks.answers import ExactMemory
from diffcache.hooks.exact import ExactSavings
from diffcache.report.stopwatch import timed

STEPS = 25


def asking(pipe: Any, arguments: dict[str, Any]) -> tuple[ExactSavings, float, float]:
    """The savings; microseconds of asking in a call, and of each answer."""
    with accelerated(pipe, "exact"):
        ((_, hook),) = pipe.diffcache.hooks.values()
        savings, turn, given, spent = hook.exact, hook.exact.turn, [], [0.0, 0.0]

        def note(*arguments: Any) -> Callable[..., Any]:
            given[:] = arguments
            return turn(*arguments)

        def ask(_pipe: Any, step: int, *_: Any) -> dict[str, Any]:
            if step == STEPS - 2:
                memory, inputs, weights, _forward, full = given
                spent[0] = _microseconds(lambda: turn(memory, inputs, weights, lambda: None, full)())
                spent[1] = _answering(savings, memory)
            return {}

        savings.turn = note
        pipe(**arguments, callback_on_step_end=ask, generator=torch.Generator().manual_seed(0))
    return savings, *spent


def _answering(savings: ExactSavings, memory: ExactMemory) -> float:
    modules = list(memory.answers)
    if not modules:
        return 0.0

    def answer() -> None:
        memory.now += 1  # a pass gives each answer once
        for module in modules:
            module(None)

    savings.now = memory
    try:
        return _microseconds(answer) / len(modules)
    finally:
        savings.now = None


def _microseconds(run: Callable[[], Any], number: int = 200) -> float:
    return min(timeit.repeat(run, number=number, repeat=15, timer=time.process_time)) / number * 1e6


def measure(model: str, pairs: int) -> str:
    """A row of the table."""
    trials = Trials(model, STEPS)
    pipe, arguments = trials.pipe, trials.arguments(0)
    savings, call, answer = asking(pipe, arguments)
    found: dict[str, list[list[float]]] = {"none": [], "exact": []}
    for seed in range(pairs):
        for method, runs in found.items():
            with accelerated(pipe, method):
                runs.append(timed(pipe, arguments, seed, lambda done: None)[1].calls)
    first, plain = min(run[0] for run in found["exact"]), min(run[0] for run in found["none"])
    off, on = (statistics.median(s for run in found[name] for s in run[len(run) // 5 :]) for name in ("none", "exact"))
    return (
        f"| {model} | {len(savings.answered)} | {savings.share:.2%} | {call:.0f} | {answer:.1f} | {1e3 * off:.1f} | "
        f"{1e3 * on:.1f} | {on / off:.3f} | {1e3 * (first - plain):.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["tiny-world", "tiny-wan", "tiny-dit"])
    parser.add_argument("--pairs", type=int, default=8, help="generations with and without them, in turn")
    args = parser.parse_args()
    print("| model | answers | FLOPs | asking, µs | an answer, µs | call without, ms | with | ratio | watching, ms |")
    print("|---|---|---|---|---|---|---|---|---|")
    for model in args.models:
        print(measure(model, args.pairs), flush=True)


if __name__ == "__main__":
    main()
