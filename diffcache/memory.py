"""What a method would hold, known before the run: the denoiser's own code in shapes only, one step of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ConfigError
from .hooks.anatomy import Anatomy, find_denoisers, inspect_denoiser
from .hooks.budget import needed
from .hooks.compiled import unwrapped
from .hooks.recipe import Recipe
from .hooks.shadow import Shadow
from .methods import MethodConfig
from .pipeline import Method, named_modalities, uncalibrated
from .sizes import size_text


@dataclass(frozen=True)
class BranchMemory:
    """One branch of one expert.

    Attributes:
        branch: ``all``, or which call of a step it is.
        cached_bytes: held once enough steps are computed; what ``stats()`` reports after a run.
        device_bytes: those of them that lie on the denoiser's device, which is what ``memory`` limits.
    """

    expert: str
    branch: str
    cached_bytes: int
    device_bytes: int


@dataclass(frozen=True)
class MemoryEstimate:
    """Answer of :func:`estimate_memory`; prints as one line.

    Attributes:
        branches: in the order in which the first step calls them.
        denoiser_bytes: the weights of the largest expert.
        cached_bytes, device_bytes: over all branches; of several experts the largest, for one frees its memory when
            the next takes over.
    """

    method: str
    branches: list[BranchMemory]
    denoiser_bytes: int

    @property
    def cached_bytes(self) -> int:
        return self._largest(lambda branch: branch.cached_bytes)

    @property
    def device_bytes(self) -> int:
        return self._largest(lambda branch: branch.device_bytes)

    def __str__(self) -> str:
        held, here, weights = map(size_text, (self.cached_bytes, self.device_bytes, self.denoiser_bytes))
        branches = "1 branch" if len(self.branches) == 1 else f"{len(self.branches)} branches"
        return f"{self.method}: {held} cached in {branches}, {here} of it on the denoiser's device (weights: {weights})"

    def _largest(self, size: Callable[[BranchMemory], int]) -> int:
        experts = {branch.expert for branch in self.branches}
        return max((sum(size(b) for b in self.branches if b.expert == expert) for expert in experts), default=0)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "cached_bytes": self.cached_bytes, "device_bytes": self.device_bytes}


def estimate_memory(model: Any, method: Method = "worldcache", /, **call: Any) -> MemoryEstimate:
    """How much a method would hold, without computing a step and without changing the model.

    Exact savings come on top (docs/exact.md); what they are worth is decided while a step runs.

    Args:
        model: a pipeline, or a bare denoiser; accelerated or not.
        method: as for :func:`diffcache.accelerate_pipeline`; a missing calibration does not matter.
        call: the arguments of the call: of the pipeline (prompt, height, width ...; what it does before its first
            step, encoding the prompt, is done), or of the denoiser (tensors, also on the meta device), which is one
            branch then.

    Raises:
        ConfigError: unknown method or field, a value out of range, or a pipeline that never called its denoiser.
        UnsupportedModelError: no denoiser, or none that has the method's site; or its shapes depend on numbers.
    """
    config, recipe = uncalibrated(method, model)
    recipe = named_modalities(recipe, model)
    bare = isinstance(model, nn.Module)
    models = {"denoiser": unwrapped(model)} if bare else {n: unwrapped(m) for n, m in find_denoisers(model).items()}
    shadows = {name: Shadow(each, recipe) for name, each in models.items()}
    calls = [((), call)] if bare else _first_step(model, call, models, shadows)
    never = _never_skips(config)  # what will never be predicted is not held
    branches = [
        BranchMemory(
            expert, f"call {index}" if len(calls) > 1 else "all", *((0, 0) if never else _held(shadow, recipe, *each))
        )
        for expert, shadow in shadows.items()
        for index, each in enumerate(calls, 1)
    ]
    sizes = [sum(p.numel() * p.element_size() for p in each.parameters()) for each in models.values()]
    return MemoryEstimate(config.method, branches, max(sizes))


def _never_skips(config: MethodConfig) -> bool:
    """Whether these settings compute every step, whatever the model does."""
    try:
        return config.recipe().schedule().max_skip == 0
    except ConfigError:
        return False  # it lacks a calibration


def _held(shadow: Shadow, recipe: Recipe, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, int]:
    _, cache = shadow.call(args, kwargs)
    return needed([cache], recipe.rest), needed([cache], recipe.rest, device=True)


Call = tuple[tuple[Any, ...], dict[str, Any]]


class _StepIsOverError(Exception):
    """The pipeline went on to its second step."""


def _first_step(
    pipe: Any, call: Mapping[str, Any], models: Mapping[str, nn.Module], shadows: Mapping[str, Shadow]
) -> list[Call]:
    """How the pipeline calls its denoiser in its first step; zeros are all that it gets back."""
    calls: list[Call] = []
    times: list[float] = []

    def heard(name: str, anatomy: Anatomy, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        times.append(_time(anatomy.bind(args, kwargs).get(anatomy.timestep)))
        if times[-1] != times[0]:
            raise _StepIsOverError
        calls.append((args, kwargs))
        return shadows[name].call(args, kwargs)[0]

    with _untouched(pipe, call), _listening(models, heard), suppress(_StepIsOverError), torch.no_grad():
        pipe(**call)
    if not calls:
        raise ConfigError(f"{type(pipe).__name__} never called its denoiser: the estimate needs a call that denoises")
    return calls


def _time(timestep: Any) -> float:
    return float(timestep.double().max()) if isinstance(timestep, Tensor) else float(timestep or 0)


@contextmanager
def _listening(models: Mapping[str, nn.Module], heard: Callable[..., Any]) -> Iterator[None]:
    """Within: every denoiser answers by ``heard``, whatever hooks it has."""
    before = {name: model.__dict__.get("forward") for name, model in models.items()}
    for name, model in models.items():
        anatomy = inspect_denoiser(model)
        model.forward = lambda *args, _name=name, _anatomy=anatomy, **kwargs: heard(_name, _anatomy, args, kwargs)
    try:
        yield
    finally:
        for name, model in models.items():
            del model.forward
            if before[name] is not None:
                model.forward = before[name]


@contextmanager
def _untouched(pipe: Any, call: Mapping[str, Any]) -> Iterator[None]:
    """Within: random numbers are drawn, and no bar is; afterwards all is as before."""
    given = call.get("generator")
    generators = [g for g in (given if isinstance(given, list) else [given]) if g is not None]
    states = [generator.get_state() for generator in generators]
    bars = getattr(pipe, "_progress_bar_config", None)
    pipe.set_progress_bar_config(disable=True)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        pipe.set_progress_bar_config(**(bars or {}))
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
