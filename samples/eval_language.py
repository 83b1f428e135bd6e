"""Exact match of a language model on held-out problems, under any method, against trivial baselines.

    python samples/eval_language.py tiny-llada --count 160
    python samples/eval_language.py tiny-llada --methods vanilla freecache fast-dllm:dual elastic
    python samples/eval_language.py runs/tiny-llada --count 20     # a run's averaged weights, while it trains

Speeds are ratios of this process' CPU time; methods take turns group by group. ``rows`` is the share of row-layers that
is computed of what a forward over everything in each step would compute.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from language_training import load_run
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from diffcache.llm import generate
from diffcache.llm.decoders.confidence import Threshold
from diffcache.llm.families import read_facts
from diffcache.llm.stats import GenerationStats
from diffcache.zoo.language_loading import load_language_model
from diffcache.zoo.problems import Problem, load_problems


@dataclass
class Outcome:
    """What a method made of one group of problems."""

    texts: list[str]
    forwards: int = 0
    row_layers: int = 0
    dense: float = 0.0
    kv_bytes: int = 0
    residual_bytes: int = 0
    seconds: float = 0.0

    def add(self, stats: GenerationStats, seconds: float) -> None:
        """One batch more."""
        self.forwards += stats.forwards
        self.row_layers += stats.row_layers
        self.dense += stats.row_layers / max(stats.row_share, 1e-12)
        self.kv_bytes = max(self.kv_bytes, stats.kv_bytes)
        self.residual_bytes = max(self.residual_bytes, stats.residual_bytes)
        self.seconds += seconds


def answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, problems: list[Problem], size: int, **decoding: Any
) -> Outcome:
    """The model's answers. Problems of a batch have prompts of one length."""
    prompts = [tokenizer(problem.question).input_ids for problem in problems]
    outcome = Outcome([""] * len(problems))
    for part in batches([len(prompt) for prompt in prompts], size):
        ids = torch.tensor([prompts[n] for n in part])
        began = time.process_time()
        found = generate(model, ids, **decoding)
        outcome.add(found.stats, time.process_time() - began)
        for n, row in zip(part, found.sequences[:, ids.shape[1] :].tolist(), strict=True):
            end = row.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else len(row)
            outcome.texts[n] = tokenizer.decode(row[:end])
    return outcome


def batches(lengths: list[int], size: int) -> Iterator[list[int]]:
    """Numbers of at most ``size`` problems of one length at a time."""
    for length in sorted(set(lengths)):
        group = [n for n, other in enumerate(lengths) if other == length]
        yield from (group[first : first + size] for first in range(0, len(group), size))


def most_common(problems: list[Problem]) -> list[str]:
    """For every problem the most frequent answer of the other ones."""
    counts = Counter(p.answer for p in problems)
    return [(counts - Counter([p.answer])).most_common(1)[0][0] for p in problems]


def copy_of(problem: Problem) -> str:
    """The prompt's data as they are: its list of numbers, or as many of its last rows as the answer has."""
    if problem.family == "number_sorting":
        numbers = problem.question.split("order: ")[1].split("\n")[0].split(", ")
        return str(numbers)
    lines = problem.question.split("\n")
    rows = [line for line in lines if line and set(line) <= set("0123456789_ ")]
    return "\n".join(rows[-problem.answer.count("\n") - 1 :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a name of the zoo, or the folder of a run")
    parser.add_argument("--count", type=int, default=100, help="problems of each family and setting")
    parser.add_argument("--families", nargs="*")
    parser.add_argument("--gen-length", type=int, default=256)
    parser.add_argument("--block", type=int, help="block-causal models have their own", default=32)
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument("--methods", nargs="+", default=["vanilla"], help="the first one is what speeds are ratios to")
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--show", action="store_true", help="print the first wrong answer of every family")
    args = parser.parse_args()
    run = Path(args.model)
    model, tokenizer = load_run(run) if (run / "resume.pt").is_file() else load_language_model(args.model)
    found = groups(args.count, args.families)
    for label, problems in found:
        print(f"{label}: {baselines(problems)}")
    decoding = {"gen_length": args.gen_length, "decoder": Threshold(threshold=args.threshold)}
    decoding["block_length"] = read_facts(model).block_length or args.block
    outcomes: dict[tuple[str, str], Outcome] = {}
    print("| method | problems | right | score 1 | rows | forwards | KV, residual kB | speed |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for label, problems in found:
        for method in args.methods:
            outcome = answer(model, tokenizer, problems, args.batch, method=method, **decoding)
            outcomes[label, method] = outcome
            print(line(label, method, problems, outcome, outcomes[label, args.methods[0]]), flush=True)
            wrong = [(p, t) for p, t in zip(problems, outcome.texts, strict=True) if not p.matches(t)]
            if args.show and wrong:
                print(f"asked\n{wrong[0][0].question}\nright\n{wrong[0][0].answer}\nanswered\n{wrong[0][1]}")
    for method in args.methods:
        texts = [text for label, _ in found for text in outcomes[label, method].texts]
        problems = [problem for _, part in found for problem in part]
        print(f"{method}: {right(problems, texts)} of {len(problems)} = {right(problems, texts) / len(problems):.1%}")


def groups(count: int, families: list[str] | None) -> list[tuple[str, list[Problem]]]:
    """The held-out problems by family and settings."""
    found: dict[str, list[Problem]] = {}
    for problem in load_problems():
        if not families or problem.family in families:
            varied = {k: v for k, v in problem.settings.items() if k in ("p_zero", "max_numbers")}
            label = " ".join([problem.family, *(f"{k}={v}" for k, v in varied.items())])
            found.setdefault(label, []).append(problem)
    return [(label, problems[:count]) for label, problems in found.items()]


def right(problems: list[Problem], texts: list[str]) -> int:
    """How many answers are the expected ones to the letter."""
    return sum(p.matches(t) for p, t in zip(problems, texts, strict=True))


def baselines(problems: list[Problem]) -> str:
    """What answers that need no thought get right."""
    common, copied = right(problems, most_common(problems)), right(problems, [copy_of(p) for p in problems])
    return f"{common} of {len(problems)} by the most frequent other answer, {copied} by a copy of the prompt"


def line(label: str, method: str, problems: list[Problem], outcome: Outcome, first: Outcome) -> str:
    scored = sum(p.score(t) == 1 for p, t in zip(problems, outcome.texts, strict=True))
    return (
        f"| `{method}` | {label} | {right(problems, outcome.texts)}/{len(problems)} | {scored} | "
        f"{outcome.row_layers / outcome.dense:.1%} | {outcome.forwards} | "
        f"{outcome.kv_bytes / 1e3:.0f}, {outcome.residual_bytes / 1e3:.0f} | {first.seconds / outcome.seconds:.2f} |"
    )


if __name__ == "__main__":
    main()
