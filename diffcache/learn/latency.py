"""What levels cost in milliseconds: each unit is timed while it computes some of its tokens."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from ..hooks.tokens import TokenSite
from ..pipeline import accelerated, handle_of
from .trials import Trials
from .work import Bill, Floats, Work

#: of every level, unit and step; the median counts
_SAMPLES = 4
#: the whole denoiser, among the names of its units
DENOISER = ""
#: step, unit -> milliseconds of all calls in the step
Times = dict[tuple[int, str], float]


class Stopwatch:
    """Moments on the device that computes: events on a GPU, so that nothing waits, else the clock."""

    def __init__(self, device: torch.device) -> None:
        self._events = device.type == "cuda"

    def now(self) -> Any:
        """A moment."""
        if not self._events:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, begin: Any, end: Any) -> float:
        """Milliseconds from one moment to another."""
        if not self._events:
            return 1e3 * (end - begin)
        end.synchronize()
        return begin.elapsed_time(end)


def measure_work(trials: Trials, levels: tuple[float, ...], watch: Stopwatch | None = None) -> Bill:
    """Milliseconds of each unit at each level, of what a step costs besides, of an idle step and of a bare one; of each
    denoiser.

    Runs in which the steps take turns: one level for all units at a step.

    Args:
        trials: its pipeline and dense course.
        levels: shares of the tokens, ascending, from 0 to 1.
        watch: to measure with; by default the clock of the denoiser's device.
    """
    found = trials.kept.once("latency", lambda: _measured(trials, levels, watch))
    works = [
        Work(levels, weight, base, "ms", idle, bare)
        for weight, (base, idle, bare) in zip(found["weight"].numpy(), found["rest"].tolist(), strict=True)
    ]
    return Bill(tuple(works), tuple(part.steps for part in trials.course.parts))


def _measured(trials: Trials, levels: tuple[float, ...], watch: Stopwatch | None) -> dict[str, torch.Tensor]:
    course = trials.course
    free = max(min(part.steps for part in course.parts) - 1, 1)
    spent_by: dict[tuple[int, str, float], list[float]] = defaultdict(list)
    for number in range(max(math.ceil(_SAMPLES * len(levels) / free), len(levels) if free < len(levels) else 1)):
        turns = np.array([levels[(step + number) % len(levels)] for step in range(course.steps)])
        turns[course.starts] = 1.0
        keep = np.repeat(turns[:, None], len(course.units), 1)
        times = timed_run(trials, trials.trial(keep), f"time of levels {number + 1}", watch)
        for (step, name), spent in times.items():
            if step not in course.starts:  # there it is learned where the tokens are
                spent_by[course.number(step), name, turns[step]].append(spent)
    dense = timed_run(trials, "none", "time of dense steps", watch)
    weights, rests = [], []
    for number in range(len(course.parts)):
        mine = {(name, level): spent for (n, name, level), spent in spent_by.items() if n == number}
        bare = [spent for (step, name), spent in dense.items() if name == DENOISER and course.number(step) == number]
        weight, rest = _of_part(defaultdict(list, mine), course.units, levels)
        weights.append(weight)
        rests.append([*rest, _median(bare)])
    return {
        "weight": torch.from_numpy(np.stack(weights)),
        "rest": torch.tensor(rests, dtype=torch.float64),
    }


def _of_part(
    samples: Mapping[tuple[str, float], list[float]], units: Sequence[str], levels: Sequence[float]
) -> tuple[Floats, list[float]]:
    """``[units, levels]`` of one denoiser, and what an active and an idle step cost besides."""
    weight = np.array([[_median(samples[unit, level]) for level in levels] for unit in units])
    weight = np.maximum.accumulate(weight, 1)  # more tokens never take less time
    whole = [_median(samples[DENOISER, level]) for level in levels]
    rest = [whole[number] - weight[:, number].sum() for number, level in enumerate(levels) if level > 0.0]
    return weight, [max(_median(rest), 0.0), _median(samples[DENOISER, 0.0])]


def _median(values: list[float]) -> float:
    return float(np.median(values)) if values else 0.0


def timed_run(trials: Trials, method: Any, label: str, watch: Stopwatch | None = None) -> Times:
    """The times of the first run under a method."""
    with accelerated(trials.pipe, method), trials.counted(label), timed(trials.pipe, watch) as times:
        trials.run(0)
    return times()


@contextmanager
def timed(pipe: Any, watch: Stopwatch | None = None, units: bool = True) -> Iterator[Callable[[], Times]]:
    """Within: every call of a denoiser, and of its units' own forward, is timed; yields what reads the times then.

    A pass may run a unit's forward elsewhere than in the module's call, so that is what is timed.

    Args:
        pipe: a method is on.
        watch: see :func:`measure_work`.
        units: whether units are timed, and not the denoisers alone.
    """
    handle, hooks, marks, sites = handle_of(pipe), [], [], []

    def follow(model: nn.Module, site: Any, clock: Stopwatch) -> None:
        begun: list[Any] = []

        def end(*_: Any) -> None:
            marks.append((handle.clock.step, DENOISER, clock, begun.pop(), clock.now()))

        def around(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                begin = clock.now()
                result = forward(*args, **kwargs)
                marks.append((handle.clock.step, name.partition(" ")[0], clock, begin, clock.now()))
                return result

            return run

        hooks.append(model.register_forward_pre_hook(lambda *_: begun.append(clock.now())))
        hooks.append(model.register_forward_hook(end))
        if units and isinstance(site, TokenSite):
            site.around = around
            sites.append(site)

    for model, hook in handle.hooks.values():
        clock = watch or Stopwatch(next(model.parameters()).device)
        follow(model, getattr(hook.site, "tokens", hook.site), clock)

    def read() -> Times:
        times: Times = defaultdict(float)
        for step, name, clock, begin, end in marks:
            times[step, name] += clock.between(begin, end)
        return times

    try:
        yield read
    finally:
        for hook in hooks:
            hook.remove()
        for site in sites:
            site.around = None


def in_microseconds(weight: Floats) -> torch.Tensor:
    """``[units, levels]``, as a schedule file keeps it."""
    return torch.from_numpy(1e3 * weight).float()
