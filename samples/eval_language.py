"""Right answers of a language model on held-out problems, under any method, against trivial baselines.

    python samples/eval_language.py tiny-llada --count 32
    python samples/eval_language.py tiny-llada --methods freecache,fast-dllm:dual,elastic --out runs/eval
    python samples/eval_language.py runs/tiny-llada --count 20     # a run's averaged weights, while it trains

``diffcache report --model tiny-llada`` measures the same; this one also takes the checkpoint of a training, and says
what answers that need no thought get right.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

from language_training import load_run

from diffcache.llm import read_facts
from diffcache.media.terminal import StepProgress, console
from diffcache.report.language.running import run_session
from diffcache.report.language.table import markdown
from diffcache.text import Prompt, TextSession
from diffcache.text.prompts import prompt_of
from diffcache.text.running import VANILLA
from diffcache.text.session import read_decoder
from diffcache.zoo import load_language_model, load_problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a name of the zoo, or the folder of a run")
    parser.add_argument("--count", type=int, default=32, help="problems of each setting")
    parser.add_argument("--gen-length", type=int, default=256)
    parser.add_argument("--block", type=int, help="block-causal models have their own", default=32)
    parser.add_argument("--decoder", default="threshold:threshold=0.9")
    parser.add_argument("--methods", default="vanilla", help="as diffcache report takes them")
    parser.add_argument("--out", type=Path, help="folder for the report; by default none is kept")
    args = parser.parse_args()
    run = Path(args.model)
    model, tokenizer = load_run(run) if (run / "resume.pt").is_file() else load_language_model(args.model)
    block = read_facts(model).block_length or args.block
    decoder = read_decoder(args.decoder)
    session = TextSession(run.name, model, tokenizer, VANILLA, decoder, args.gen_length, block)
    found = groups(args.count)
    for label, prompts in found.items():
        print(f"{label}: {baselines(prompts)}")
    with tempfile.TemporaryDirectory() as kept, StepProgress(console(), "") as progress:
        for label, prompts in found.items():
            folder = (args.out or Path(kept)) / label.replace(" ", "-")
            folder.mkdir(parents=True, exist_ok=True)
            report = run_session(session, args.methods, prompts, folder, label, on_prompt=progress)
            print(f"\n{label}, {len(prompts)} problems\n\n{markdown(report)}")


def groups(count: int) -> dict[str, list[Prompt]]:
    """The held-out problems by family and settings, so many of each."""
    found: dict[str, list[Prompt]] = {}
    for prompt in map(prompt_of, load_problems()):
        found.setdefault(prompt.label, []).append(prompt)
    return {label: prompts[:count] for label, prompts in found.items()}


def baselines(prompts: list[Prompt]) -> str:
    """What answers that need no thought get right."""
    common, copied = right(prompts, most_common(prompts)), right(prompts, [copy_of(p) for p in prompts])
    return f"{common} of {len(prompts)} by the most frequent other answer, {copied} by a copy of the prompt"


def right(prompts: list[Prompt], texts: list[str]) -> int:
    """How many answers are the known ones to the letter."""
    return sum(bool(p.right(t)) for p, t in zip(prompts, texts, strict=True))


def most_common(prompts: list[Prompt]) -> list[str]:
    """For every problem the most frequent answer of the other ones; of a single one none."""
    counts = Counter(p.answer for p in prompts)
    return [next(iter((counts - Counter([p.answer])).most_common(1)), ("", 0))[0] for p in prompts]


def copy_of(prompt: Prompt) -> str:
    """The prompt's data as they are: its list of numbers, or as many of its last rows as the answer has."""
    if prompt.label.startswith("number_sorting"):
        return str(prompt.text.split("order: ")[1].split("\n")[0].split(", "))
    rows = [line for line in prompt.text.split("\n") if line and set(line) <= set("0123456789_ ")]
    return "\n".join(rows[-prompt.answer.count("\n") - 1 :])


if __name__ == "__main__":
    main()
