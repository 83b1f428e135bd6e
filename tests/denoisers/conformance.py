"""Whether a site works on a class: never skipping changes no bit, and a constant input gives the dense output."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from diffcache import UnsupportedModelError
from diffcache.hooks.anatomy import find_block_lists

from . import DENOISERS
from .base import WORDS
from .running import METHODS, SAME_HOOKS, bare, equal, letters, method_on, run, run_constant


@dataclass(frozen=True)
class Outcome:
    """What was found for a class and a site.

    Attributes:
        exact: a method that never skips returned what the bare model returns, bit for bit.
        skipped: it did skip.
        deviation: largest relative distance of a predicted output to the dense one under constant input.
        running: what runs at predicted steps, too: of site body block lists, of site module matrices of the blocks.
        refusal: why the site is refused, or None.
        within: most that the deviation may be.
    """

    exact: bool = False
    skipped: bool = False
    deviation: float = float("nan")
    running: tuple[str, ...] = ()
    refusal: str | None = None
    within: float = 1e-5

    @property
    def works(self) -> bool:
        return self.refusal is None and self.skipped and self.deviation <= self.within


@cache
def outcome(name: str, site: str) -> Outcome:
    """Measure a class and a site."""
    try:
        with method_on(name, site, max_skip=0):
            exact = equal(run(name), bare(name))
        # One way of each kind of hooks with exact savings, which tiny models have only if asked for.
        with method_on(name, site, exact=True if site not in SAME_HOOKS else None) as model:
            still = METHODS[site].still
            outputs = run_constant(name, still)[still:]
            skipped = METHODS[site].letter in letters(model)
        return Outcome(exact, skipped, _deviation(outputs), _running(name, site), within=DENOISERS[name].within)
    except UnsupportedModelError as error:
        return Outcome(refusal=str(error))


def _deviation(outputs: list[list[torch.Tensor]]) -> float:
    """Against the first step, which is computed."""
    dense = outputs[0]
    pairs = [(part, truth) for output in outputs for part, truth in zip(output, dense, strict=True)]
    return max(float((part - truth).norm() / truth.norm()) for part, truth in pairs)


def _running(name: str, site: str) -> tuple[str, ...]:
    """What runs at a predicted step: of site body the block lists, of site module what it leaves of the blocks."""
    if site not in ("body", "module"):
        return ()
    called: list[set[str]] = []

    def begin(step: int, arguments: dict) -> dict:
        called.append(set())
        return arguments

    with method_on(name, site) as model, ExitStack() as stack:
        for label, module in _watched(model, site):
            note = module.register_forward_pre_hook(partial(_note, called, label, wide=site == "module"))
            stack.callback(note.remove)
        run(name, before=begin)
        predicted = letters(model).find("c")
    return tuple(sorted(called[predicted])) if predicted >= 0 else ()


def _watched(model: nn.Module, site: str) -> Iterator[tuple[str, nn.Module]]:
    """Attentions by their list, or the matrices of all blocks by their names; no module that has a hook of ours."""
    for list_name, blocks in find_block_lists(model).items():
        if site == "body":
            yield from ((list_name, module) for module in attentions(blocks))
            continue
        for block in blocks:
            matrices = {n: m for n, m in block.named_modules() if isinstance(m, (nn.Linear, _ConvNd))}
            yield from ((n, m) for n, m in matrices.items() if not hasattr(m, "_diffusers_hook"))


def _note(called: list[set[str]], label: str, module: nn.Module, args: tuple, wide: bool) -> None:
    """Matrices that run on as many rows as there are words or more: modulation and gates see the time alone."""
    if not wide or args[0].numel() >= WORDS * args[0].shape[-1] > 0:
        called[-1].add(label)


def attentions(blocks: nn.Module) -> list[nn.Module]:
    """Attention modules inside blocks."""
    return [
        m
        for b in blocks
        for n, m in b.named_modules()
        if n and re.search("attn|attention", f"{n} {type(m).__name__}", re.I)
    ]
