"""A generation of an embedded model, recorded so that its denoiser calls can be made again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from peer_hooks import named, reset
from torch import nn

from diffcache import denoising
from diffcache.media.request import Request, build_call
from diffcache.zoo import list_models, load_pipeline
from diffcache.zoo.loading import WEIGHTS

BRANCHES = ("cond", "uncond")  # in the order in which the pipelines call them

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Recording:
    """A denoiser and the calls of one generation, step by step."""

    model: nn.Module
    steps: list[list[Call]]

    def twin(self) -> nn.Module:
        """Another model with the very same weights in memory."""
        kept = {id(tensor): tensor for tensor in (*self.model.parameters(), *self.model.buffers())}
        return copy.deepcopy(self.model, kept)

    def walk(self, model: nn.Module, theirs: bool = False) -> Iterator[tuple[int, str, Callable[[nn.Module], Any]]]:
        """Step, branch and call, one after the other; a sampler's ``step`` marks the steps.

        Args:
            theirs: whether diffusers' hooks are on the model.
        """
        sampler, nothing = FlowMatchEulerDiscreteScheduler(), torch.zeros(1)
        sampler.set_timesteps(len(self.steps))
        sampler.set_begin_index(0)
        with torch.no_grad(), denoising(model, len(self.steps), sampler):
            for step, (calls, t) in enumerate(zip(self.steps, sampler.timesteps, strict=True)):
                for branch, (args, kwargs) in zip(BRANCHES, calls, strict=False):
                    with named(model, branch, theirs):
                        yield step, branch, lambda which, args=args, kwargs=kwargs: which(*args, **kwargs)
                sampler.step(nothing, t, nothing)
        if theirs:
            reset(model)


def record(name: str, steps: int) -> Recording:
    """The calls of an embedded model's denoiser in a generation of its own pipeline."""
    pipe, calls = load_pipeline(name), []
    pipe.set_progress_bar_config(disable=True)
    note = lambda module, args, kwargs: calls.append((args, kwargs))  # noqa: E731
    handle = pipe.transformer.register_forward_pre_hook(note, with_kwargs=True)
    request = build_call(pipe, Request(steps=steps), list_models()[name], WEIGHTS / name)
    pipe(**request.arguments, generator=torch.Generator().manual_seed(0))
    handle.remove()
    count = len(calls) // steps
    return Recording(pipe.transformer, [calls[i : i + count] for i in range(0, len(calls), count)])
