"""The training loop of both language models: one batch of every family per step."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from reasoning import FAMILIES, TRAIN_SEED, Batches, make_tokenizer
from training import Trainer, make_optimizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from diffcache.zoo.language_loading import load_language_model

LossFn = Callable[[PreTrainedModel, torch.nn.Module, torch.Tensor, int], torch.Tensor]
"""From the model, the (possibly compiled) decoder of it, ids (B, P + C) and P to the loss."""

HELD_OUT = 400
"""Held-out problems of each size that training would leave out if it ever drew one."""


def sizes(vocabulary: int, end: int) -> dict:
    """What both models' configurations share."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": end,
        "use_cache": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
    }


def train(
    args: argparse.Namespace, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, loss_of: LossFn
) -> None:
    """Train until ``args.minutes`` are used, from ``args.out / "resume.pt"`` if it is there."""
    families = [f for f in FAMILIES if not args.families or f.name in args.families]
    avoid = frozenset(p.question for f in families for p in f.held_out(HELD_OUT))
    tokenizer.save_pretrained(args.out / "tokenizer")
    model.config.save_pretrained(args.out)
    optimizers = make_optimizers(model, lambda n: "layers" in n, args.lr)
    trainer = Trainer(model, optimizers, args.out, args.minutes, args.ema, warmup=30)
    # Every start draws its own problems: seed plus index must not meet an earlier start's.
    sources = [Batches(f, tokenizer, TRAIN_SEED + (args.seed * 1000 + trainer.step) * 10**5, avoid) for f in families]
    decoder = torch.compile(model.model) if args.compile else model.model
    progress = Progress(args.out / "families.jsonl")

    def step() -> torch.Tensor:
        total = torch.zeros(())
        for source in sources:
            size = int(torch.randint(len(source.family.sizes), ()))
            ids, prompt = source.draw(size)
            loss = loss_of(model, decoder, ids, prompt)
            (loss / len(sources)).backward()
            total += loss.detach() / len(sources)
            progress.add(source.family.name, loss.item(), ids.numel())
        if (trainer.step + 1) % 20 == 0:
            progress.write(trainer)
        return total.requires_grad_()  # the gradients are there already

    trainer.run(step)


class Progress:
    """Losses by family and tokens per second, a line of JSON every few steps."""

    def __init__(self, path: Path):
        self.path, self.losses, self.tokens, self.since = path, {}, 0, None

    def add(self, family: str, loss: float, tokens: int) -> None:
        self.losses.setdefault(family, []).append(loss)
        self.tokens += tokens

    def write(self, trainer: Trainer) -> None:
        seconds = trainer.used - (self.since or 0.0)
        rate = round(self.tokens / seconds) if self.since else None
        means = {name: round(sum(values) / len(values), 4) for name, values in self.losses.items()}
        row = {"step": trainer.step + 1, "minutes": round(trainer.used / 60, 2), "tokens_per_second": rate, **means}
        print(json.dumps(row), flush=True)
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")
        self.losses, self.tokens, self.since = {}, 0, trainer.used


def load_run(run: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The averaged weights of a run's latest checkpoint, and its tokenizer."""
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(run))
    model.load_state_dict(torch.load(run / "resume.pt", weights_only=True)["ema"])
    return model.eval(), PreTrainedTokenizerFast.from_pretrained(run / "tokenizer")


def start_from(run: Path | str, model: PreTrainedModel) -> None:
    """Take over every weight that both models have: a run's averaged ones, or those of a model of the zoo."""
    other, _ = load_run(Path(run)) if (Path(run) / "resume.pt").is_file() else load_language_model(str(run))
    model.load_state_dict({**model.state_dict(), **other.state_dict()})


def arguments(description: str, minutes: float) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=minutes)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--ema", type=float, default=0.998, help="decay of the averaged weights per step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--families", nargs="*", help="default: all")
    parser.add_argument("--compile", action="store_true", help="1.4 times as fast, after two minutes of compiling")
    return parser


__all__ = ["arguments", "load_run", "make_tokenizer", "sizes", "start_from", "train"]
