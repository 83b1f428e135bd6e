"""diffusers' own FirstBlockCache and TaylorSeer hooks, put on so that they can be compared with a site of diffcache."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.hooks import (
    FirstBlockCacheConfig,
    HookRegistry,
    TaylorSeerCacheConfig,
    apply_first_block_cache,
    apply_taylorseer_cache,
)
from diffusers.hooks.hooks import CacheContext, _set_cache_context
from diffusers.hooks.taylorseer_cache import TaylorSeerCacheHook
from diffusers.models.cache_utils import CacheMixin
from torch import nn

from diffcache.hooks.modules import find_units, unit_kinds


def put_first_block(model: nn.Module, threshold: float) -> None:
    """FirstBlockCache; at threshold 0 it skips nothing that moves."""
    _put(model, FirstBlockCacheConfig(threshold=threshold), apply_first_block_cache)


def put_taylorseer(model: nn.Module, steps: int, interval: int, order: int, dtype: torch.dtype = torch.float32) -> None:
    """TaylorSeer on the very modules that site ``module`` caches; by default it finds no ``attn1`` and no ``ff``.

    Args:
        steps: first steps that are computed.
    """
    names = [re.escape(unit.name) for unit in find_units(model, "module", unit_kinds("module"))]
    config = TaylorSeerCacheConfig(
        cache_interval=interval,
        disable_cache_before_step=steps,
        max_order=order,
        taylor_factors_dtype=dtype,
        cache_identifiers=names,
    )
    _put(model, config, apply_taylorseer_cache)


def _put(model: nn.Module, config: Any, apply: Callable[[nn.Module, Any], None]) -> None:
    if isinstance(model, CacheMixin):
        model.enable_cache(config)  # which also makes the cache context find the new hooks
    else:
        apply(model, config)


@contextmanager
def named(model: nn.Module, name: str, theirs: bool) -> Iterator[None]:
    """The cache context of a call, as a pipeline sets it; DiTPipeline sets none, and these hooks cannot do without."""
    if isinstance(model, CacheMixin):
        with model.cache_context(name):
            yield
        return
    if theirs:
        _set_cache_context(model, CacheContext(name))
    yield


def reset(model: nn.Module) -> None:
    """What a pipeline does at the end of a call."""
    HookRegistry.check_if_exists_or_initialize(model).reset_stateful_hooks(recurse=True)


def held_bytes(model: nn.Module, name: str) -> int:
    """Bytes of the Taylor factors that the hooks hold for one context."""
    hooks = [h for m in model.modules() for h in getattr(getattr(m, "_diffusers_hook", None), "hooks", {}).values()]
    states = [h.state_manager._state_cache.get(name) for h in hooks if isinstance(h, TaylorSeerCacheHook)]
    factors = [f for state in states if state for part in state.taylor_factors.values() for f in part.values()]
    return sum(factor.numel() * factor.element_size() for factor in factors)
