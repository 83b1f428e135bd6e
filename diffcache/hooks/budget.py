"""The memory setting: what a method needs here, and refusing it where less was asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ..errors import ConfigError
from ..predictors import Rest
from ..sizes import size_text
from .cache import Cache
from .recipe import Recipe

if TYPE_CHECKING:
    from .branch import Branch


def needed(caches: Sequence[Cache], rest: Rest, device: bool = False) -> int:
    """Bytes that the branches hold once they are full; with ``device`` only those on the denoiser's device."""
    return sum(holding.nbytes(rest, device) for cache in caches for holding in cache.holdings())


def check_budget(recipe: Recipe, branches: Iterable[Branch]) -> None:
    """Called after each computed step, so that a branch that opens late counts as soon as it is known.

    Raises:
        ConfigError: the branches seen by now need more than ``memory``.
    """
    if recipe.budget is None:
        return
    branches = list(branches)
    caches = [branch.cache for branch in branches]
    exact = sum(branch.exact.nbytes for branch in branches)  # bit for bit, so they neither narrow nor move
    need = needed(caches, recipe.rest, device=True) + exact
    if need <= recipe.budget:
        return
    count = f"{len(caches)} branch{'es' if len(caches) > 1 else ''}"
    of_which = f", {size_text(exact)} of it exact savings" if exact else ""
    raise ConfigError(
        f"memory: {recipe.config.memory!r} is less than {recipe.name} needs here, {size_text(need)} for {count}"
        f"{of_which}: ask for that much{_alternatives(recipe.rest, caches, exact, need)}"
    )


def _alternatives(rest: Rest, caches: Sequence[Cache], exact: int, need: int) -> str:
    """What would need less, and how much."""
    other = {"cache_dtype=float16": replace(rest, dtype=torch.float16), "offload=true": replace(rest, offload=True)}
    sizes = {name: needed(caches, change, device=True) + exact for name, change in other.items()}
    return "".join(f", or {name} ({size_text(size)})" for name, size in sizes.items() if size < need)
