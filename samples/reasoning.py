"""What both language models' recipes share: reasoning-gym problems, their tokenizer, batches and masking.

Training uses the generators' seeds from ``TRAIN_SEED`` on and held-out problems those below it. reasoning-gym draws
problem ``i`` of a data set from ``Random(seed + i)``, so the sums are what must not meet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from diffcache.zoo.problems import Problem, draw_problems

HELD_OUT_SEED, TRAIN_SEED = 0, 1_000_000
MASK, EOS, ANSWER, UNKNOWN = "<|mask|>", "<|eos|>", "<|answer|>", "<|unknown|>"
# Numbers are one token. Digits of a matrix take the space before them along, as words do: text survives a round trip.
PIECES = r"\['|', '|'\]|, |: |\n| \d(?![\d.])|-?\d+(?:\.\d+)?| ?[A-Za-z]+| ?[^\sA-Za-z\d]| "


@dataclass(frozen=True)
class Family:
    """One reasoning-gym family: its settings per size, and the canvas (tokens) that a size is trained on."""

    name: str
    sizes: tuple[dict[str, Any], ...]
    canvas: tuple[int, ...]
    batch: int = 8
    distinct: bool = False

    def problems(self, size: int, seed: int) -> Iterator[Problem]:
        """Problems of one size without end; where ``distinct``, only those without a repeated number."""
        for problem in draw_problems(self.name, seed, **self.sizes[size]):
            numbers = problem.answer.strip("[]").split(", ") if self.distinct else []
            if len(set(numbers)) == len(numbers):
                yield problem

    def held_out(self, count: int) -> list[Problem]:
        """The first ``count`` held-out problems of every size."""
        sizes = range(len(self.sizes))
        return [p for size in sizes for p in islice(self.problems(size, HELD_OUT_SEED), count)]


WHOLE_NUMBERS = {"min_decimals": 0, "max_decimals": 0, "min_value": 1, "max_value": 300}
FAMILIES = (
    Family("binary_matrix", tuple({"min_n": 12, "max_n": 12, "p_zero": p} for p in (0.25, 0.4)), (256, 256)),
    Family(
        "number_sorting",
        tuple({"min_numbers": n, "max_numbers": n, **WHOLE_NUMBERS} for n in (16, 24, 32)),
        (40, 56, 72),
        distinct=True,
    ),
    Family("mini_sudoku", ({},), (40,)),
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer for the families; ``tokenizer(question)`` ends with the token that asks for the answer."""
    splitter = pre_tokenizers.Split(Regex(PIECES), "isolated")
    words = {f" {d}" for d in range(10)} | {str(d) for d in range(10)} | {f"{n}.0" for n in range(1, 301)}
    for family in FAMILIES:
        for size in range(len(family.sizes)):
            for problem in islice(family.problems(size, TRAIN_SEED), 40):
                text = problem.question + problem.answer
                words |= {piece for piece, _ in splitter.pre_tokenize_str(text)}
    vocabulary = {word: n for n, word in enumerate([MASK, EOS, ANSWER, UNKNOWN, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, UNKNOWN))
    tokenizer.pre_tokenizer, tokenizer.decoder = splitter, decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {ANSWER}", special_tokens=[(ANSWER, vocabulary[ANSWER])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        mask_token=MASK,
        eos_token=EOS,
        pad_token=EOS,
        unk_token=UNKNOWN,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
        extra_special_tokens=[ANSWER],
    )


class Batches:
    """Batches of one family and size: prompts of equal length and canvases filled up with end-of-sequence tokens."""

    def __init__(
        self, family: Family, tokenizer: PreTrainedTokenizerFast, seed: int, avoid: frozenset[str] = frozenset()
    ):
        self.family, self.tokenizer, self.avoid = family, tokenizer, avoid
        self.streams = [family.problems(size, seed) for size in range(len(family.sizes))]
        self.waiting: dict[tuple[int, int], list[list[int]]] = {}

    def draw(self, size: int) -> tuple[torch.Tensor, int]:
        """Token ids (batch, prompt + canvas) and the length of the prompt."""
        for problem in self.streams[size]:
            if problem.question in self.avoid:
                continue
            prompt = self.tokenizer(problem.question).input_ids
            answer = self.tokenizer(problem.answer, add_special_tokens=False).input_ids
            key = (size, len(prompt))
            waiting = self.waiting.setdefault(key, [])
            waiting.append((prompt, answer))
            if len(waiting) == self.family.batch:
                del self.waiting[key]
                end = self.tokenizer.eos_token_id
                canvas = self.family.canvas[size]
                rows = [p + (a + [end] * canvas)[:canvas] for p, a in waiting]
                return torch.tensor(rows), len(prompt)
        raise AssertionError("the stream has no end")


def mask_canvas(canvas: torch.Tensor, mask_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noised canvases (B, C) and which tokens are masked (B, C).

    Half of the rows mask every token with probability t as in LLaDA (arXiv:2502.09992, eq. 3), t uniform, and t = 1 in
    a fifth of them. The others look like block-wise decoding: clean left of a window, all masked right of it.
    """
    batch, length = canvas.shape
    t = torch.rand(batch, 1)
    t[torch.rand(batch) < 0.2] = 1.0
    masked = torch.rand(batch, length) < t
    window = torch.randint(0, length, (batch, 1))
    place = torch.arange(length)[None]
    blockwise = (place >= window + 32) | ((place >= window) & masked)
    masked = torch.where(torch.rand(batch, 1) < 0.5, blockwise, masked)
    masked[:, 0] |= ~masked.any(1)
    return canvas.masked_fill(masked, mask_id), masked


def mask_blocks(canvas: torch.Tensor, mask_id: int, prompt: int, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noised canvases (B, C) and which tokens are masked (B, C), with a t of its own in every block.

    Blocks count from the prompt's first token. Half of the blocks are masked as a whole, where decoding begins.
    """
    batch, length = canvas.shape
    place = (prompt + torch.arange(length)) // block - prompt // block
    t = torch.rand(batch, int(place[-1]) + 1)
    t[torch.rand(t.shape) < 0.5] = 1.0
    masked = torch.rand(batch, length) < t[:, place]
    return canvas.masked_fill(masked, mask_id), masked


def masked_loss(
    logits: torch.Tensor, canvas: torch.Tensor, masked: torch.Tensor, end: int, end_weight: float = 0.1
) -> torch.Tensor:
    """Weighted mean cross entropy of the masked tokens of a batch of canvases (B, C).

    Tokens that are rare on the canvases weigh more, by the root of their count; padding behind the first end token
    less.
    """
    loss = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), canvas, reduction="none")
    padding = (canvas == end) & (canvas.roll(1, 1) == end)
    counts = torch.bincount(canvas[~padding], minlength=logits.shape[-1]).float()
    rarity = (counts.max() / counts[canvas].clamp_min(1)).sqrt().clamp_max(10.0)
    weight = masked * torch.where(padding, end_weight, rarity)
    return (loss * weight).sum() / weight.sum().clamp_min(1e-6)
