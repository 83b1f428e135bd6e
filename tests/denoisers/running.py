"""Trajectories of the tiny denoisers, and models that are built once and come back bare from every test."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from diffcache import accelerate_model, denoising, restore
from diffcache.hooks.outputs import flatten
from diffcache.pipeline import handle_of

from . import DENOISERS

STEPS = 5


@dataclass(frozen=True)
class Way:
    """How a site, or a signal at a site, is tried: a method that skips steps 2 and 3 of five.

    Attributes:
        method, settings: the method.
        listens: whether it measures the model before it decides a step.
        still: step from which on the input stands still where the tests hold it constant.
        letter: of a step that is not computed in full.
    """

    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    listens: bool = False
    still: int = 0
    letter: str = "c"


_RANGES = dict(spatial=3, temporal=3, cross=3, low=0, high=1001)
METHODS: dict[str, Way] = {
    "output": Way("interval", dict(interval=3, warmup=2, site="output")),
    "body": Way("powerlaw", dict(computed=0.5, warmup=2, site="body")),
    "block": Way("taylorseer", dict(interval=3, warmup=2, site="block")),
    "module": Way("fora", dict(interval=3, warmup=2)),
    "attention": Way("pab", dict(warmup=2, **_RANGES)),
    "token": Way("toca", dict(interval=3, warmup=2, keep=0.5, attention=1.0, cross=1.0), letter="p"),
    "first": Way("fbcache", dict(threshold=10.0, warmup=2, max_skip=2, cooldown=1), listens=True),
    "modulated": Way("teacache", dict(threshold=1e9, polynomial=(1.0, 0.0), warmup=2, max_skip=2), listens=True),
    # its rate is a change over a change: something has to move first
    "rate": Way("easycache", dict(threshold=1e9, warmup=2, max_skip=2), listens=True, still=1),
}
#: ways with the hooks of another one, and ways with the cache of another one
SAME_HOOKS = {"attention": "module", "block": "module", "body": "first", "modulated": "first", "output": "rate"}
SAME_CACHES = {"attention": "module", "modulated": "first"}
LISTENING = [site for site, way in METHODS.items() if way.listens]

Outputs = list[list[Tensor]]


@cache
def model_of(name: str) -> nn.Module:
    """The tiny model of a class; whoever puts something on it takes it off again."""
    return DENOISERS[name].tiny()


@contextmanager
def method_on(name: str, site: str, **settings: Any) -> Iterator[nn.Module]:
    """The model with the site's method on it, bare again afterwards."""
    way = METHODS[site]
    model = accelerate_model(model_of(name), way.method, **{**way.settings, **settings})
    try:
        yield model
    finally:
        restore(model)


def run(
    name: str,
    *,
    seed: int = 0,
    size: int = 1,
    steps: int = STEPS,
    before: Callable[[int, dict[str, Any]], dict[str, Any]] = lambda step, arguments: arguments,
) -> Outputs:
    """One trajectory on inputs that shrink step by step; the tensors of every output.

    Args:
        before: may change the arguments of a step, or look at what is going on.
    """
    arguments = DENOISERS[name].trajectory(seed, size)
    calls = (before(step, arguments(1.0 - step / steps)) for step in range(steps))
    return _sample(name, calls, steps, _wants_sampler(model_of(name)))


def run_constant(name: str, still: int = 0, steps: int = STEPS, **more: Any) -> Outputs:
    """The same call at every step from ``still`` on, while a sampler's own ``step`` marks the steps.

    Args:
        more: further arguments of each call.
    """
    arguments = DENOISERS[name].trajectory()
    calls = ({**arguments(1.0 if step < still else 0.5), **more} for step in range(steps))
    return _sample(name, calls, steps, True)


def _sample(name: str, calls: Iterable[dict[str, Any]], steps: int, sampled: bool) -> Outputs:
    """The tensors of every output; steps are marked by a sampler, or told by the timesteps alone."""
    model, sampler, nothing = model_of(name), FlowMatchEulerDiscreteScheduler(), torch.zeros(1)
    sampler.set_timesteps(steps)
    sampler.set_begin_index(0)
    outputs = []
    with torch.no_grad(), denoising(model, steps, sampler if sampled else None):
        for call, t in zip(calls, sampler.timesteps, strict=True):
            outputs.append([part.clone() for part in flatten(model(**call))[0]])
            sampler.step(nothing, t, nothing)
    return outputs


def _wants_sampler(model: nn.Module) -> bool:
    """Whether the method on the model places its steps by a sampler's timesteps."""
    handle = handle_of(model)
    return handle is not None and handle.config.recipe().schedule().wants_timesteps


@cache
def bare(name: str, seed: int = 0, size: int = 1) -> Outputs:
    """What the class returns with nothing on it."""
    return run(name, seed=seed, size=size)


@cache
def fresh(name: str, site: str) -> tuple[Outputs, str]:
    """Outputs and decisions of the site's method, just put on."""
    with method_on(name, site) as model:
        return run(name), letters(model)


def equal(a: Outputs, b: Outputs) -> bool:
    """Bit for bit."""
    return len(a) == len(b) and all(
        len(x) == len(y) and all(torch.equal(s, t) for s, t in zip(x, y, strict=True))
        for x, y in zip(a, b, strict=True)
    )


def letters(model: nn.Module) -> str:
    """The decisions of the only branch."""
    (segment,) = model.diffcache.stats().segments
    return segment.decisions
