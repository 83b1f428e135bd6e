"""Putting hooks on modules through diffusers' registry, and taking them off without a trace."""

from __future__ import annotations

from typing import Any

from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import HookFunctionReference
from torch import nn

HOOK_NAME = "diffcache"


def attach(module: nn.Module, hook: ModelHook, name: str = HOOK_NAME) -> None:
    """Register ``hook`` as the outermost hook of ``module``."""
    hook.had_forward = "forward" in module.__dict__
    hook.had_registry = hasattr(module, "_diffusers_hook")
    registry = HookRegistry.check_if_exists_or_initialize(module)
    registry.register_hook(hook, name)
    if hasattr(hook, "new_forward"):
        _hold_on(hook.fn_ref)
    _forget_children(module)


def detach(module: nn.Module, name: str = HOOK_NAME) -> None:
    """Remove our hook; other hooks on the module keep working, and a bare module is bare again."""
    registry = getattr(module, "_diffusers_hook", None)
    hook = registry.get_hook(name) if registry is not None else None
    if hook is None:
        return
    following = _hook_after(registry, name)
    kept = following.fn_ref.forward if following is not None else None
    inner = hook.fn_ref.original_forward or hook.fn_ref.forward
    registry.remove_hook(name, recurse=False)
    if following is not None and following.fn_ref.original_forward is not None:
        # diffusers writes our inner forward over the next hook's own; give it back and hand it the inner one.
        following.fn_ref.forward = kept
        following.fn_ref.original_forward = inner  # after the line above: on a reference like ours that sets it, too
    if not registry.hooks:
        if not hook.had_forward:
            module.__dict__.pop("forward", None)
        if not hook.had_registry:
            del module._diffusers_hook
    _forget_children(module)


def _hold_on(reference: HookFunctionReference) -> None:
    """Keep our forward where diffusers, removing the hook below ours, would write that hook's inner one over it."""
    ours = reference.forward
    del reference.forward
    reference.__class__ = _HoldingReference
    reference.ours = ours


class _HoldingReference(HookFunctionReference):
    """A forward that is assigned from outside becomes the one that ours wraps."""

    ours: Any

    @property
    def forward(self) -> Any:
        return self.ours

    @forward.setter
    def forward(self, inner: Any) -> None:
        self.original_forward = inner


def _hook_after(registry: HookRegistry, name: str) -> ModelHook | None:
    names = list(registry.hooks)
    index = names.index(name) + 1
    return registry.hooks[names[index]] if index < len(names) else None


def _forget_children(module: nn.Module) -> None:
    """Newer diffusers remembers which children carry hooks; what it remembered before us is out of date."""
    registry = getattr(module, "_diffusers_hook", None)
    if hasattr(registry, "invalidate_child_registries_cache"):
        registry.invalidate_child_registries_cache()
