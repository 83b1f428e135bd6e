"""``torch.compile``: decisions stay outside of the graph.

In the chain of a compiled module's ``forward`` a hook would be traced with it: what it decides by becomes guards, and
every step another graph. So the hook of a compiled module stands around the compiled call, and what is compiled is the
module as it is: the graph, its options and ``fullgraph=True`` are those of the bare model. Hooks further inside are
traced, where their site is made for it (:mod:`.ports`): one graph computes and hands out what is to be kept, one takes
it back in. What such a site has to learn of a model it learns in a pass that runs as it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from diffusers.hooks import ModelHook
from diffusers.hooks.hooks import HookFunctionReference, StateManager
from torch import nn

#: where ``module.compile()`` puts the compiled call, and where the wrapper of ``torch.compile(module)`` has it
CALL, _FORWARD = "_compiled_call_impl", "forward"


def unwrapped(model: Any) -> Any:
    """The module inside the wrapper that ``torch.compile(module)`` returns; anything else as it is."""
    return getattr(model, "_orig_mod", model)


def is_compiled(module: nn.Module) -> bool:
    """Whether ``module.compile()`` was called."""
    return module.__dict__.get(CALL) is not None


class Around:
    """Stands in the place of a compiled call and runs a hook around it.

    Args:
        holder: the compiled module, or the wrapper of ``torch.compile(module)``.
        module: the module that the hook is for.
        hook: one of ours.
        name: its name.
    """

    def __init__(self, holder: nn.Module, module: nn.Module, hook: ModelHook, name: str) -> None:
        self.holder, self.module, self.hook, self.name = holder, module, hook, name
        self._slot = CALL if holder is module else _FORWARD
        self._wrap(holder.__dict__[self._slot])
        holder.__dict__[self._slot] = self

    def _wrap(self, inner: Callable[..., Any]) -> None:
        self.inner = inner
        self.hook.fn_ref = HookFunctionReference()
        self.hook.fn_ref.original_forward = inner

    def compile(self, on: bool) -> None:
        """Run what is compiled, or the module as it is written; hooks that stand further in run in either case."""
        *_, last = _chain(self)
        last.hook.fn_ref.original_forward = last.inner if on else self.module._call_impl

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        hook = self.hook
        args, kwargs = hook.pre_forward(self.module, *args, **kwargs)
        if hasattr(hook, "new_forward"):
            result = hook.new_forward(self.module, *args, **kwargs)
        else:
            result = hook.fn_ref.original_forward(*args, **kwargs)
        return hook.post_forward(self.module, result)

    @property
    def standing(self) -> bool:
        """Whether it is still there: compiling once more puts another call in its place."""
        return any(found is self for found in _chain(self.holder.__dict__.get(self._slot)))

    def remove(self) -> None:
        """The compiled call is as it was."""
        outer = None
        for found in _chain(self.holder.__dict__.get(self._slot)):
            if found is self and outer is None:
                self.holder.__dict__[self._slot] = self.inner
            elif found is self:
                outer._wrap(self.inner)
            outer = found


def around(module: nn.Module, name: str) -> Around | None:
    """The hook of this name around a compiled module's call."""
    return next((found for found in _chain(module.__dict__.get(CALL)) if found.name == name), None)


def _chain(call: Any) -> Iterator[Around]:
    while isinstance(call, Around):
        following = call.inner
        yield call
        call = following


class Label(ModelHook):
    """Stays in the registry for a hook that stands around a compiled call: a pipeline's ``cache_context`` finds it.

    Attributes:
        place: where the hook stands.
    """

    _is_stateful = True

    def __init__(self, place: Around) -> None:
        super().__init__()
        self.place = place
        for attribute, value in vars(place.hook).items():
            if isinstance(value, StateManager):
                setattr(self, attribute, value)

    def reset_state(self, module: nn.Module) -> nn.Module:
        return self.place.hook.reset_state(module)
