"""Putting hooks on modules through diffusers' registry, and taking them off without a trace.

Two others put something around a module's forward, and both stay outermost, whoever came first: accelerate's offloading
(it takes its own forward off and on at every call of a pipeline, and ours with it if ours were around it) and
``torch.compile`` (see :mod:`.compiled`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial, update_wrapper
from types import MethodType
from typing import Any

from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import HookFunctionReference
from torch import nn

from .compiled import CALL, Around, Label, around, is_compiled

HOOK_NAME = "diffcache"
_LABEL = f"{HOOK_NAME}_label"
_INNER = f"{HOOK_NAME}_inner"
_NEW = "new_forward"


def attach(module: nn.Module, hook: ModelHook, name: str = HOOK_NAME, wrapper: nn.Module | None = None) -> None:
    """Register ``hook`` as the outermost hook of ``module``.

    Args:
        module: the module.
        hook: one of ours.
        name: one hook of a name can be on a module.
        wrapper: what ``torch.compile(module)`` returned, if that is what is called.
    """
    if wrapper is None and not is_compiled(module):
        _register(module, hook, name)
        return
    place = Around(module if wrapper is None else wrapper, module, hook, name)
    if hook._is_stateful:
        _register(module, Label(place), _LABEL)


def detach(module: nn.Module, name: str = HOOK_NAME) -> None:
    """Remove our hook; other hooks on the module keep working, and a bare module is bare again."""
    place = _place(module, name)
    if place is not None:
        place.remove()
        name = _LABEL if place.hook._is_stateful else name
    registry = getattr(module, "_diffusers_hook", None)
    if registry is not None and registry.get_hook(name) is not None:
        _unregister(module, registry, name)


def settle(model: nn.Module, wrapper: nn.Module | None = None) -> list[Around]:
    """Bring the hooks of a denoiser to where they belong: it, or its blocks, may have been compiled since.

    Args:
        model: the denoiser.
        wrapper: what ``torch.compile(model)`` returned, if that is called in its place.

    Returns:
        The places around what is compiled and has hooks of ours inside: each can run compiled or as it is written.
    """
    _move(model, HOOK_NAME, wrapper)
    compiled = [module for module in model.modules() if is_compiled(module)]
    for module in compiled:
        for name in _names(module) if module is not model else ():
            _move(module, name)
    inside = [module for module in compiled if module is not model and _hooked_inside(module)]
    for part in (part for module in inside for part in _below(module)):
        _make_alike(part)
    places = [_inner_place(module) for module in inside]
    if (wrapper is not None or is_compiled(model)) and _hooked_inside(model):
        places.append(_place(model, HOOK_NAME))
    return places


def unsettle(model: nn.Module) -> None:
    """What was compiled is called as it was."""
    for module in model.modules():
        if is_compiled(module):
            detach(module, _INNER)


def foreign_hooks(module: nn.Module) -> bool:
    """Whether anybody but us stands between a module's call and its class's forward."""
    registry, own = module.__dict__.get("_diffusers_hook"), module.__dict__.get("forward")
    if registry is None or not registry.hooks:
        return own is not None
    if "_old_forward" in module.__dict__ or len(_names(module)) < len(registry.hooks):
        return True
    first = registry._fn_refs[0]
    return getattr(first.original_forward or first.forward, "__func__", None) is not type(module).forward


def _inner_place(module: nn.Module) -> Around:
    return around(module, _INNER) or Around(module, module, ModelHook(), _INNER)


def _make_alike(module: nn.Module) -> None:
    """Have our only hook on a module called in a way that looks the same to a graph on every module of its kind.

    The partial functions that diffusers' registry chains are objects of their own on each module: torch guards them by
    identity, and every block would get graphs of its own.
    """
    names = _names(module)
    if not names or len(module._diffusers_hook.hooks) > 1 or not hasattr(module._diffusers_hook.get_hook(*names), _NEW):
        return
    with inside_accelerate(module):
        module.forward = MethodType(_run_ours, module)


def _run_ours(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    hooks = module._diffusers_hook.hooks
    return next(hooks[name] for name in hooks if name.startswith(HOOK_NAME)).new_forward(module, *args, **kwargs)


def _names(module: nn.Module) -> list[str]:
    """Names of our hooks in a module's registry."""
    registry = module.__dict__.get("_diffusers_hook")
    return [name for name in registry.hooks if name.startswith(HOOK_NAME)] if registry is not None else []


def _hooked_inside(module: nn.Module) -> bool:
    return any(_names(part) or isinstance(part.__dict__.get(CALL), Around) for part in _below(module))


def _below(module: nn.Module) -> Iterator[nn.Module]:
    return (part for part in module.modules() if part is not module)


def _move(module: nn.Module, name: str, wrapper: nn.Module | None = None) -> None:
    place = _place(module, name)
    holder = wrapper if wrapper is not None else module if is_compiled(module) else None
    if place is not None and place.standing and place.holder is holder:
        return
    if place is not None or holder is not None:
        hook = place.hook if place is not None else module._diffusers_hook.get_hook(name)
        detach(module, name)
        attach(module, hook, name, wrapper)


def _place(module: nn.Module, name: str) -> Around | None:
    registry = getattr(module, "_diffusers_hook", None)
    label = registry.get_hook(_LABEL) if registry is not None and name == HOOK_NAME else None
    return label.place if label is not None else around(module, name)


def _register(module: nn.Module, hook: ModelHook, name: str) -> None:
    hook.had_registry = hasattr(module, "_diffusers_hook")
    with inside_accelerate(module):
        hook.had_forward = _own_forward(module) is not None
        HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, name)
        if hasattr(hook, _NEW):
            _hold_on(hook.fn_ref)
            _call_directly(module, hook)
    _forget_children(module)


def _call_directly(module: nn.Module, hook: ModelHook) -> None:
    """Leave out the registry's own frames around a hook that takes the forward's place and does nothing besides."""
    kind = type(hook)
    if kind.pre_forward is ModelHook.pre_forward and kind.post_forward is ModelHook.post_forward:
        module.forward = update_wrapper(partial(hook.new_forward, module), hook.fn_ref.original_forward)


def _unregister(module: nn.Module, registry: HookRegistry, name: str) -> None:
    hook = registry.get_hook(name)
    following = _hook_after(registry, name)
    kept = following.fn_ref.forward if following is not None else None
    inner = hook.fn_ref.original_forward or hook.fn_ref.forward
    with inside_accelerate(module):
        registry.remove_hook(name, recurse=False)
        if following is not None and following.fn_ref.original_forward is not None:
            # diffusers writes our inner forward over the next hook's own: give it back, then hand it the inner one
            # (in this order: on a reference like ours the first line sets that one, too).
            following.fn_ref.forward = kept
            following.fn_ref.original_forward = inner
        if not registry.hooks and not hook.had_forward:
            module.__dict__.pop("forward", None)
    for other in map(registry.hooks.get, _names(module)):  # what this one found bare they leave bare
        other.had_registry = other.had_registry and hook.had_registry
        other.had_forward = other.had_forward and hook.had_forward
    if not registry.hooks and not hook.had_registry:
        del module._diffusers_hook
    _forget_children(module)


@contextmanager
def inside_accelerate(module: nn.Module) -> Iterator[None]:
    """Within, ``module.forward`` is the one that accelerate's hook wraps, if there is such a hook."""
    if "_old_forward" not in module.__dict__:
        yield
        return
    outer, module.forward = module.forward, module._old_forward
    try:
        yield
    finally:
        module._old_forward, module.forward = module.forward, outer


def _own_forward(module: nn.Module) -> Any:
    """A forward that the instance has of its own, None where it is that of its class."""
    forward = module.__dict__.get("forward")
    return None if getattr(forward, "__func__", None) is type(module).forward else forward


def _hold_on(reference: HookFunctionReference) -> None:
    """Keep our forward where diffusers, removing the hook below ours, would write that hook's inner one over it."""
    reference.__class__ = _HoldingReference


class _HoldingReference(HookFunctionReference):
    """A forward assigned from outside becomes the one that ours wraps. No property: it is read at every call."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__("original_forward" if name == "forward" else name, value)


def _hook_after(registry: HookRegistry, name: str) -> ModelHook | None:
    names = list(registry.hooks)
    index = names.index(name) + 1
    return registry.hooks[names[index]] if index < len(names) else None


def _forget_children(module: nn.Module) -> None:
    """Newer diffusers remembers which children carry hooks; what it remembered before us is out of date."""
    registry = getattr(module, "_diffusers_hook", None)
    if hasattr(registry, "invalidate_child_registries_cache"):
        registry.invalidate_child_registries_cache()
