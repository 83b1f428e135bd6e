"""One stopwatch for every row: the time of each denoiser call from outside, and the work that ran inside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import starmap
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ..hooks.anatomy import find_denoisers
from ..hooks.instants import Instant, instants, seconds_between
from ..media.runs import generate, synchronise
from .data import Timing

_COUNTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Calls:
    """Seconds of each denoiser call; CUDA events are read when they are asked for."""

    def __init__(self) -> None:
        self._times: list[tuple[Instant, Instant]] = []
        self._began: Instant | None = None

    def begin(self, device: torch.device) -> None:
        self._began = instants(device)()

    def end(self, device: torch.device) -> None:
        if self._began is not None:
            self._times.append((self._began, instants(device)()))
        self._began = None

    @property
    def count(self) -> int:
        return len(self._times)

    @property
    def seconds(self) -> list[float]:
        return list(starmap(seconds_between, self._times))


@contextmanager
def listening(pipe: Any, on_call: Callable[[int], None]) -> Iterator[Calls]:
    """Time every denoiser call, whatever is installed inside: forward hooks of the module that the pipeline calls.

    Args:
        on_call: told after each call how many there were.
    """
    calls, handles = Calls(), []
    device = torch.device(getattr(pipe, "device", "cpu"))

    def before(module: nn.Module, args: Any) -> None:
        calls.begin(device)

    def after(module: nn.Module, args: Any, result: Any) -> None:
        calls.end(device)
        on_call(calls.count)

    for name in find_denoisers(pipe):
        module = getattr(pipe, name)  # a compiled one as it is called
        # The last of the hooks before, the first of those behind: nothing else is in between.
        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after, prepend=True)]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def timed(pipe: Any, arguments: dict[str, Any], seed: int, on_call: Callable[[int], None]) -> tuple[Any, Timing]:
    """One generation: what the pipeline returned, and its times. Raises ConfigError as :func:`generate` does."""
    with listening(pipe, on_call) as calls:
        synchronise(pipe)
        began = time.perf_counter()
        output = generate(pipe, arguments, seed)
        synchronise(pipe)
        seconds = time.perf_counter() - began
        return output, Timing(seconds, calls.seconds)


@contextmanager
def counting(pipe: Any) -> Iterator[Callable[[], list[int]]]:
    """Count the multiplications of linear and convolution layers that really ran, whoever skipped the others.

    The function tells them: one number a denoiser call.
    """
    work, handles, running = [], [], [0]

    def count(module: nn.Module, args: Any, result: Any) -> None:
        if isinstance(result, Tensor):
            running[0] += result.numel() * _per_value(module)

    def before(module: nn.Module, args: Any) -> None:
        running[0] = 0

    def after(module: nn.Module, args: Any, result: Any) -> None:
        work.append(running[0])

    for name in find_denoisers(pipe):
        outer = getattr(pipe, name)
        handles += [outer.register_forward_pre_hook(before), outer.register_forward_hook(after)]
        handles += [m.register_forward_hook(count) for m in outer.modules() if isinstance(m, _COUNTED)]
    try:
        yield lambda: work
    finally:
        for handle in handles:
            handle.remove()


def _per_value(module: nn.Module) -> int:
    if isinstance(module, nn.Linear):
        return module.in_features
    return module.in_channels // module.groups * prod(module.kernel_size)
