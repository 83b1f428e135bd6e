"""Exact match of a language model on held-out problems, with plain decoding, against trivial baselines.

    python samples/eval_language.py tiny-llada --count 100
    python samples/eval_language.py runs/tiny-llada --count 20     # a run's averaged weights, while it trains

Every step forwards the whole sequence (a block-causal model: everything up to the block), nothing is cached.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import torch
from language_training import load_run
from reasoning import block_causal_mask
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from diffcache.zoo.language_loading import load_language_model
from diffcache.zoo.problems import Problem, load_problems


@torch.inference_mode()
def decode(
    model: PreTrainedModel, prompt: torch.Tensor, gen_length: int, block: int, threshold: float, per_step: int = 1
) -> tuple[torch.Tensor, int]:
    """Canvases (B, gen_length) behind prompts (B, P), and the number of forwards.

    Blocks from left to right; a step keeps the ``per_step`` most confident masked tokens of the block and all whose
    probability is over ``threshold`` (LLaDA's low-confidence remasking, Fast-dLLM's threshold).
    """
    said = model.config.diffusion
    causal, mask_id = said["block_length"], said["mask_id"]
    ids = torch.cat([prompt, prompt.new_full((len(prompt), gen_length), mask_id)], 1)
    # A block-causal model's blocks count from position 0, so the first may hold the end of the prompt.
    start = prompt.shape[1] // causal * causal if causal else prompt.shape[1]
    forwards = 0
    for begin in range(start, ids.shape[1], block):
        end = min(begin + block, ids.shape[1])
        seen = end if causal else ids.shape[1]
        mask = block_causal_mask(seen, causal)[None, None] if causal else None
        while (open_ := ids[:, begin:end] == mask_id).any():
            logits = model(input_ids=ids[:, :seen], attention_mask=mask).logits[:, begin:end].float()
            logits[..., mask_id] = -torch.inf
            confidence, token = logits.softmax(-1).max(-1)
            confidence = confidence.masked_fill(~open_, -1.0)
            chosen = confidence >= confidence.topk(min(per_step, end - begin), 1).values[:, -1:]
            ids[:, begin:end] = torch.where((chosen | (confidence > threshold)) & open_, token, ids[:, begin:end])
            forwards += 1
    return ids[:, prompt.shape[1] :], forwards


def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, problems: list[Problem], batch: int, **decoding
) -> tuple[list[str], int]:
    """The models' answers, and the forwards of all batches. Problems of a batch have prompts of one length."""
    prompts = [tokenizer(problem.question).input_ids for problem in problems]
    order = sorted(range(len(problems)), key=lambda n: len(prompts[n]))
    texts, forwards = [""] * len(problems), 0
    for length in sorted({len(p) for p in prompts}):
        group = [n for n in order if len(prompts[n]) == length]
        for first in range(0, len(group), batch):
            part = group[first : first + batch]
            canvas, steps = decode(model, torch.tensor([prompts[n] for n in part]), **decoding)
            forwards += steps
            for n, row in zip(part, canvas.tolist(), strict=True):
                end = row.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else len(row)
                texts[n] = tokenizer.decode(row[:end])
    return texts, forwards


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
    parser.add_argument("--block", type=int, default=32, help="block-causal models have their own")
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--show", action="store_true", help="print the first wrong answer of every family")
    args = parser.parse_args()
    run = Path(args.model)
    model, tokenizer = load_run(run) if (run / "resume.pt").is_file() else load_language_model(args.model)
    decoding = {"gen_length": args.gen_length, "threshold": args.threshold}
    decoding["block"] = model.config.diffusion["block_length"] or args.block
    print(f"{'problems':30}{'count':>6}{'exact':>9}{'score':>9}{'common':>9}{'copy':>9}{'forwards':>10}", flush=True)
    total = Counter()
    for label, problems in groups(args.count, args.families):
        texts, forwards = answers(model, tokenizer, problems, args.batch, **decoding)
        row = Counter(rows(problems, texts), count=len(problems))
        total += row
        print(line(label, row) + f"{forwards / -(-len(problems) // args.batch):>10.0f}", flush=True)
        wrong = [(p, t) for p, t in zip(problems, texts, strict=True) if not p.matches(t)]
        if args.show and wrong:
            print(f"asked\n{wrong[0][0].question}\nright\n{wrong[0][0].answer}\nanswered\n{wrong[0][1]}")
    print(line("all", total))


def groups(count: int, families: list[str] | None) -> list[tuple[str, list[Problem]]]:
    """The held-out problems by family and settings."""
    found: dict[str, list[Problem]] = {}
    for problem in load_problems():
        if not families or problem.family in families:
            varied = {k: v for k, v in problem.settings.items() if k in ("p_zero", "max_numbers")}
            label = " ".join([problem.family, *(f"{k}={v}" for k, v in varied.items())])
            found.setdefault(label, []).append(problem)
    return [(label, problems[:count]) for label, problems in found.items()]


def rows(problems: list[Problem], texts: list[str]) -> dict[str, int]:
    """How many are right: the model's answers, by exact match and by reasoning-gym's score, and the baselines'."""
    common, copies = most_common(problems), [copy_of(problem) for problem in problems]
    right = {
        name: sum(p.matches(t) for p, t in zip(problems, given, strict=True))
        for name, given in (("exact", texts), ("common", common), ("copy", copies))
    }
    return right | {"score": sum(p.score(t) == 1 for p, t in zip(problems, texts, strict=True))}


def line(label: str, row: Counter) -> str:
    shares = "".join(f"{row[name] / row['count']:>9.1%}" for name in ("exact", "score", "common", "copy"))
    return f"{label:30}{row['count']:>6}{shares}"


if __name__ == "__main__":
    main()
