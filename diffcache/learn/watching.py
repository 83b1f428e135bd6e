"""Watching a run: what goes through a pipeline's sampler, and what its denoisers are called with."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..errors import ConfigError
from ..hooks.batch import folded
from ..hooks.outputs import tensors_in_order
from ..pipeline import handle_of


@dataclass
class Seen:
    """What went through a sampler: what it was given at each step, and what it returned last."""

    outputs: list[Tensor] = field(default_factory=list)
    last: Tensor | None = None
    change: Callable[[int, Tensor], Tensor] | None = None


@contextmanager
def instead(owner: Any, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Within: this one object has another method of that name."""
    had = owner.__dict__.get(name)
    owner.__dict__[name] = method
    try:
        yield
    finally:
        if had is None:
            del owner.__dict__[name]
        else:
            owner.__dict__[name] = had


@contextmanager
def sampled(pipe: Any) -> Iterator[Seen]:
    """Within: the steps of a pipeline's sampler are seen; ``change`` may replace what it is given."""
    seen, scheduler = Seen(), getattr(pipe, "scheduler", None)
    if scheduler is None:
        yield seen
        return
    inner = scheduler.step

    @functools.wraps(inner)
    def step(model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
        if seen.change is not None:
            model_output = seen.change(len(seen.outputs), model_output)
        seen.outputs.append(model_output.detach().float().cpu())
        result = inner(model_output, *args, **kwargs)
        found = result[0] if isinstance(result, tuple) else result.prev_sample
        seen.last = found.detach().float().cpu()
        return result

    with instead(scheduler, "step", step):
        yield seen


@contextmanager
def heard(pipe: Any) -> Iterator[dict[int, list[Tensor]]]:
    """Within: what the denoisers return: step of the trajectory -> one tensor for each call, fp32."""
    handle, found, hooks = handle_of(pipe), defaultdict(list), []

    def hear(module: nn.Module, args: Any, result: Any) -> None:
        found[handle.clock.step].append(tensors_in_order(result)[0].detach().float().cpu())

    for model, _ in handle.hooks.values():
        hooks.append(model.register_forward_hook(hear))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def looked_at(pipe: Any) -> Iterator[dict[str, bool]]:
    """Within: the denoisers that were called, by their first call, and whether its batch is the same noise twice."""
    noticed: dict[str, bool] = {}
    hooks = []
    for name, (model, hook) in handle_of(pipe).hooks.items():

        def look(module: nn.Module, args: Any, kwargs: Any, name: str = name, anatomy: Any = hook.anatomy) -> None:
            if name not in noticed:
                noticed[name] = folded(anatomy.bind(args, kwargs).get(anatomy.sample))

        hooks.append(model.register_forward_pre_hook(look, with_kwargs=True))
    try:
        yield noticed
    finally:
        for hook in hooks:
            hook.remove()


def final(result: Any, seen: Seen) -> Tensor:
    """The sample that a run ended with: the sampler's last one, or what a bare denoiser's run returned."""
    if seen.last is not None:
        return seen.last
    if isinstance(result, Tensor):
        return result.detach().float().cpu()
    raise ConfigError("calls: a bare denoiser's run must return its final sample, a tensor")
