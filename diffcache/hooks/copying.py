"""``copy.deepcopy`` of a model with hooks: the copy has none of ours, and a working set of everybody else's.

A hook lives in closures that Python does not copy: without this, the copy's ``forward`` would run the original.
"""

from __future__ import annotations

import copy
from typing import Any

from diffusers.hooks import HookRegistry
from torch import nn

from .attach import HOOK_NAME, inside_accelerate

COPIER = "__deepcopy__"


def copy_plain(model: nn.Module, memo: dict[int, Any], ours: tuple[str, ...] = ()) -> nn.Module:
    """A deep copy of a model without our hooks.

    Args:
        model: a model that carries hooks, ours and others.
        memo: as ``copy.deepcopy`` hands it on.
        ours: names of further instance attributes that belong to us.

    Returns:
        The copy. diffusers' hooks of others (layerwise casting) are copied and work on the copy;
        what torch compiled is not, as with any module.
    """
    for part in model.modules():
        _leave_out(part, memo)
    state = model.__getstate__()
    kept = {name: value for name, value in state.items() if name not in (*ours, COPIER)}
    twin = type(model).__new__(type(model))
    memo[id(model)] = twin
    twin.__setstate__(copy.deepcopy(kept, memo))
    for part, copied in zip(model.modules(), twin.modules(), strict=True):
        _rehook(part, copied, memo)
    return twin


def _leave_out(part: nn.Module, memo: dict[int, Any]) -> None:
    """The chain of hooks is not copied link by link: it is built anew by :func:`_rehook`."""
    registry = part.__dict__.get("_diffusers_hook")
    if registry is None or not registry.hooks:
        return
    memo[id(registry)] = None
    for reference in registry._fn_refs:
        memo[id(reference)] = None
    with inside_accelerate(part):
        memo[id(part.forward)] = None


def _rehook(part: nn.Module, copied: nn.Module, memo: dict[int, Any]) -> None:
    registry = part.__dict__.get("_diffusers_hook")
    if registry is None or not registry.hooks:
        return
    del copied._diffusers_hook
    with inside_accelerate(copied):
        copied.__dict__.pop("forward", None)
        first = registry._fn_refs[0]
        bottom = first.original_forward or first.forward
        if getattr(bottom, "__func__", None) is not type(part).forward:
            copied.forward = copy.deepcopy(bottom, memo)
        for name, hook in registry.hooks.items():
            if not name.startswith(HOOK_NAME):
                HookRegistry.check_if_exists_or_initialize(copied).register_hook(copy.deepcopy(hook, memo), name)
