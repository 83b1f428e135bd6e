"""Trajectories of the tiny denoisers, and models that are built once and come back bare from every test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from diffcache import accelerate_model, denoising, restore
from diffcache.hooks.outputs import flatten

from . import DENOISERS

STEPS = 5
#: for each site a method that skips within five steps
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "output": ("interval", dict(interval=3, warmup=2, site="output")),
    "body": ("powerlaw", dict(computed=0.5, warmup=2, site="body")),
}

Outputs = list[list[Tensor]]


@cache
def model_of(name: str) -> nn.Module:
    """The tiny model of a class; whoever puts something on it takes it off again."""
    return DENOISERS[name].tiny()


@contextmanager
def method_on(name: str, site: str, **settings: Any) -> Iterator[nn.Module]:
    """The model with the site's method on it, bare again afterwards."""
    method, usual = METHODS[site]
    model = accelerate_model(model_of(name), method, **{**usual, **settings})
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
    model, arguments = model_of(name), DENOISERS[name].trajectory(seed, size)
    outputs = []
    with torch.no_grad(), denoising(model, steps):
        for step in range(steps):
            result = model(**before(step, arguments(1.0 - step / steps)))
            outputs.append([t.clone() for t in flatten(result)[0]])
    return outputs


def run_constant(name: str, steps: int = STEPS) -> Outputs:
    """The same call at every step, while a sampler's own ``step`` marks the steps."""
    model, arguments = model_of(name), DENOISERS[name].trajectory()
    sampler, nothing = FlowMatchEulerDiscreteScheduler(), torch.zeros(1)
    outputs = []
    with torch.no_grad(), denoising(model, steps, sampler):
        sampler.set_timesteps(steps)
        for t in sampler.timesteps:
            outputs.append([part.clone() for part in flatten(model(**arguments(0.5)))[0]])
            sampler.step(nothing, t, nothing)
    return outputs


@cache
def bare(name: str, seed: int = 0, size: int = 1) -> Outputs:
    """What the class returns with nothing on it."""
    return run(name, seed=seed, size=size)


@cache
def fresh(name: str, site: str, seed: int = 0, size: int = 1) -> tuple[Outputs, str]:
    """Outputs and decisions of the site's method, just put on."""
    with method_on(name, site) as model:
        return run(name, seed=seed, size=size), letters(model)


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
