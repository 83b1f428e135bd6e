"""Whether a site works on a class: never skipping changes no bit, and a constant input gives the dense output."""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from diffcache import UnsupportedModelError
from diffcache.hooks.anatomy import find_block_lists

from .running import bare, equal, letters, method_on, run, run_constant


@dataclass(frozen=True)
class Outcome:
    """What was found for a class and a site.

    Attributes:
        exact: a method that never skips returned what the bare model returns, bit for bit.
        skipped: it did skip.
        deviation: largest relative distance of a predicted output to the dense one under constant input.
        running: block lists that run at predicted steps, too.
        refusal: why the site is refused, or None.
    """

    exact: bool = False
    skipped: bool = False
    deviation: float = float("nan")
    running: tuple[str, ...] = ()
    refusal: str | None = None

    @property
    def works(self) -> bool:
        return self.refusal is None and self.skipped and self.deviation <= 1e-5


@cache
def outcome(name: str, site: str) -> Outcome:
    """Measure a class and a site."""
    try:
        with method_on(name, site, max_skip=0):
            exact = equal(run(name), bare(name))
        with method_on(name, site) as model:
            outputs = run_constant(name)
            skipped = "c" in letters(model)
        return Outcome(exact, skipped, _deviation(outputs), _running(name, site))
    except UnsupportedModelError as error:
        return Outcome(refusal=str(error))


def _deviation(outputs: list[list[torch.Tensor]]) -> float:
    """Against the first step, which is computed."""
    dense = outputs[0]
    pairs = [(part, truth) for output in outputs for part, truth in zip(output, dense, strict=True)]
    return max(float((part - truth).norm() / truth.norm()) for part, truth in pairs)


def _running(name: str, site: str) -> tuple[str, ...]:
    """Block lists whose attention is called at a predicted step."""
    called: list[set[str]] = []

    def begin(step: int, arguments: dict) -> dict:
        called.append(set())
        return arguments

    with method_on(name, site) as model, ExitStack() as stack:
        for list_name, blocks in find_block_lists(model).items():
            for module in attentions(blocks):
                note = module.register_forward_pre_hook(lambda *_, list_name=list_name: called[-1].add(list_name))
                stack.callback(note.remove)
        run(name, before=begin)
        predicted = letters(model).find("c")
    return tuple(sorted(called[predicted])) if predicted >= 0 else ()


def attentions(blocks: nn.Module) -> list[nn.Module]:
    """Attention modules inside blocks."""
    return [
        m
        for b in blocks
        for n, m in b.named_modules()
        if n and re.search("attn|attention", f"{n} {type(m).__name__}", re.I)
    ]
