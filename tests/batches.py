"""Batches of the tiny denoisers: some samples stand still, some move at known steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from diffcache import denoising
from diffcache.hooks.outputs import flatten

from .denoisers import DENOISERS
from .denoisers.base import Arguments

STEPS = 9
#: steps at which a sample gets another noise; before and between it stands still
STILL, MOVING = (), (3, 5)


class Sample:
    """One sample's trajectory: its arguments at each step.

    Args:
        name: class of the denoiser.
        seed: of its noise and conditioning.
        moves: steps at which it gets another noise.
        noise: seed of the noise alone.
    """

    def __init__(self, name: str, seed: int = 0, moves: Sequence[int] = STILL, noise: int | None = None) -> None:
        self._denoiser, self._moves = DENOISERS[name], moves
        self._noise = seed if noise is None else noise
        self.fixed = self._denoiser.fixed(seed + 100, 1)
        self.joined: dict[int, Arguments] = {}  # the arguments of batches that it is the first of

    def __call__(self, step: int) -> Arguments:
        # something has to move before a rate of change is known; the time stands still, a sampler marks the steps
        level = 1.0 if step == 0 else 0.5
        moved = sum(step >= move for move in self._moves)
        noisy = _scaled(self._denoiser.noisy(self._noise + 50 * moved, 1), 0.5 + 0.5 * level)
        return {**noisy, **self.fixed, **self._denoiser.time(0.5)}


def _scaled(value: Any, factor: float) -> Any:
    if isinstance(value, dict):
        return {name: _scaled(part, factor) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_scaled(part, factor) for part in value)
    return value * factor if isinstance(value, Tensor) and value.is_floating_point() else value


def collate(calls: Sequence[Arguments]) -> Arguments:
    """The arguments of a batch: what is there once a sample is joined, what all share is passed on."""
    return {name: _joined([call[name] for call in calls]) for name in calls[0]}


def _joined(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        axis = next((i for i in range(min(2, first.dim())) if first.shape[i] == 1), None)
        return first if axis is None else torch.cat(list(values), axis)
    if type(first) is list and len(first) == 1:
        return [part for value in values for part in value]
    if type(first) in (list, tuple):
        return type(first)(_joined(parts) for parts in zip(*values, strict=True))
    return first


#: the samples of a branch, at every step or step by step
Batch = Sequence[Sample] | Callable[[int], Sequence[Sample]]


def walk(model: nn.Module, branches: Sequence[Batch], steps: int = STEPS) -> list[list[list[Tensor]]]:
    """``[branch][step][sample]``: what each sample's output is, all its tensors in one."""
    sampler, nothing = FlowMatchEulerDiscreteScheduler(), torch.zeros(1)
    sampler.set_timesteps(steps)
    sampler.set_begin_index(0)
    found: list[list[list[Tensor]]] = [[] for _ in branches]
    with torch.no_grad(), denoising(model, steps, sampler):
        for step, t in enumerate(sampler.timesteps):
            for outputs, batch in zip(found, branches, strict=True):
                samples = batch(step) if callable(batch) else batch
                result = model(**_same_objects(model, samples, collate([sample(step) for sample in samples])))
                outputs.append(parted(result, len(samples)))
            sampler.step(nothing, t, nothing)
    return found


def _same_objects(model: nn.Module, samples: Sequence[Sample], call: Arguments) -> Arguments:
    """The conditioning is the same object at every step, as a pipeline has it."""
    kept = samples[0].joined.setdefault(len(samples), call)
    return {name: kept[name] if name in samples[0].fixed else value for name, value in call.items()}


def parted(result: Any, size: int) -> list[Tensor]:
    """A return value sample by sample, flat."""
    parts: list[list[Tensor]] = [[] for _ in range(size)]
    for value in result.values() if isinstance(result, dict) else result:
        if value is None:
            continue
        if isinstance(value, list) and len(value) == size:
            rows = value
        else:
            (value,) = flatten(value)[0]
            rows = value.chunk(size)
        for part, row in zip(parts, rows, strict=True):
            part.append(row.detach().clone().flatten())
    return [torch.cat(part) for part in parts]
