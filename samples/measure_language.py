"""What a step of each language method costs beside a full one, on a model with random weights.

Speed alone: random weights say nothing of quality. Each method decodes the same number of tokens in the same number of
steps; figures are ratios of this process' CPU time, runs of all methods taking turns, the median of each.

    python samples/measure_language.py --layers 8 --width 256 --prompt 194 --new 256
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from diffcache.llm import declare, generate

METHODS = ("freecache", "fast-dllm:prefix", "fast-dllm:dual", "elastic", "window", "dkv", "dllm-cache", "sparse-dllm",
           "d2cache", "flashblock:dual")  # fmt: skip
EXACT = ("freecache", "flashblock")


def build(args: argparse.Namespace, causal: bool) -> torch.nn.Module:
    """A model of the given size; block-causal or bidirectional."""
    torch.manual_seed(0)
    size = dict(
        vocab_size=2048, hidden_size=args.width, intermediate_size=3 * args.width, num_hidden_layers=args.layers,
        num_attention_heads=args.width // 32, num_key_value_heads=args.width // 64, head_dim=32,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    if causal:
        model = Qwen3ForCausalLM(Qwen3Config(**size))
        return declare(model.eval(), regime="block-causal", block_length=args.block, mask_id=2047)
    return declare(LlamaForCausalLM(LlamaConfig(**size)).eval(), mask_id=2047)


def measure(args: argparse.Namespace, causal: bool) -> None:
    """Print one table."""
    model, methods = build(args, causal), ("vanilla", *(EXACT if causal else args.methods.split()))
    ids = torch.randint(0, 2000, (1, args.prompt))
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    stats = {}
    for _ in range(args.rounds):
        for method in methods:
            began = time.process_time()
            run = generate(model, ids, method, gen_length=args.new, block_length=args.block, steps=args.steps)
            seconds[method].append(time.process_time() - began)
            stats[method] = run.stats
    full = statistics.median(seconds["vanilla"])
    print(f"\n{type(model).__name__}, {args.prompt} + {args.new} tokens, {stats['vanilla'].steps} steps")
    print("| method | row-layers | CPU seconds | times vanilla's speed |\n|---|---|---|---|")
    for method in methods:
        median = statistics.median(seconds[method])
        print(f"| `{method}` | {100 * stats[method].row_share:.1f} % | {median:.2f} | {full / median:.2f} |")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in dict(layers=8, width=256, prompt=194, new=256, block=32, steps=128, rounds=3).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--methods", default=" ".join(METHODS), help="of the bidirectional table")
    args = parser.parse_args()
    measure(args, causal=False)
    measure(args, causal=True)


if __name__ == "__main__":
    main()
