"""Running a pipeline under a method, once or against dense sampling, and timing it."""

from __future__ import annotations

import inspect
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from ..hooks.stats import Stats
from ..methods import MethodConfig, make_config
from ..pipeline import accelerated
from ..report.metrics import Fidelity, fidelity
from .frames import Clip, read_output
from .request import Call, refusals_of
from .strip import StripRow, strip_rows

WARMUP_STEPS = 8  # enough for most methods to predict at least once, so that everything lazy has happened

# Told about every run: its label, and how many steps are done of how many (0 when it begins).
OnStep = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Run:
    """One generation.

    Attributes:
        clip: the first sample of the output.
        seconds: the whole pipeline call.
        trajectories: the statistics of each trajectory, in order (a world model has one a chunk).
    """

    clip: Clip
    seconds: float
    trajectories: list[Stats]

    @property
    def denoiser_seconds(self) -> float:
        """Inside denoiser calls, over all trajectories."""
        return sum(t.denoiser_seconds for t in self.trajectories)

    @property
    def cached_bytes(self) -> int:
        """Most memory held for reuse in one trajectory."""
        return max((sum(s.cached_bytes for s in t.segments) for t in self.trajectories), default=0)

    @property
    def rows(self) -> list[StripRow]:
        return strip_rows(self.trajectories)

    @property
    def fallbacks(self) -> list[str]:
        """Steps computed although the schedule would have predicted them, with reasons."""
        counts: Counter[str] = Counter()
        for fallback in (f for t in self.trajectories for s in t.segments for f in s.fallbacks):
            counts[fallback.reason] += fallback.count
        return [f"{count}x: {reason}" for reason, count in counts.items()]

    @property
    def reason(self) -> str | None:
        """Why nothing was skipped, where nothing was."""
        return next((t.reason for t in self.trajectories if t.reason), None)

    def facts(self) -> list[tuple[str, str]]:
        """Memory, decisions and what went otherwise than planned, as (name, value)."""
        facts = [("cached", f"{self.cached_bytes / 1e6:.2f} MB")]
        facts += [(r.label, f"{r.decisions}  {r.computed} of {len(r.decisions)} computed") for r in self.rows]
        facts += [("nothing skipped", self.reason)] if self.reason else []
        return facts + [("computed anyway", text) for text in self.fallbacks]


@dataclass(frozen=True)
class Pair:
    """Dense and accelerated generations of one seed; seconds are (dense, accelerated) medians over the repeats."""

    dense: Run
    fast: Run
    fidelity: Fidelity
    denoiser: tuple[float, float]
    pipeline: tuple[float, float]

    @property
    def denoiser_speedup(self) -> float:
        return self.denoiser[0] / max(self.denoiser[1], 1e-9)

    @property
    def pipeline_speedup(self) -> float:
        return self.pipeline[0] / max(self.pipeline[1], 1e-9)


def run_once(pipe: Any, call: Call, seed: int, config: MethodConfig, on_step: OnStep, label: str = "sampling") -> Run:
    """One generation under a method. The method is off again afterwards.

    Raises:
        ConfigError: the pipeline refuses an argument.
    """
    with accelerated(pipe, config), _following(pipe, call, on_step, label) as extra:
        synchronise(pipe)
        begin = time.perf_counter()
        output = generate(pipe, {**call.arguments, **extra}, seed)
        synchronise(pipe)
        seconds = time.perf_counter() - begin
        return Run(read_output(output), seconds, trajectories_of(pipe.diffcache))


def generate(pipe: Any, arguments: dict[str, Any], seed: int) -> Any:
    """What the pipeline returns.

    Raises:
        ConfigError: the pipeline refuses an argument.
    """
    with refusals_of(pipe):
        return pipe(**arguments, generator=torch.Generator("cpu").manual_seed(seed))


def run_pair(pipe: Any, call: Call, seed: int, config: MethodConfig, on_step: OnStep, repeats: int = 2) -> Pair:
    """Dense and accelerated in turn, ``repeats`` times after a short warm-up of each; dense is the method ``none``,
    so that both are timed by the same stopwatch."""
    none = make_config("none")
    fixed = getattr(config, "schedule", None) is not None  # a calibration holds for its own number of steps only
    short = call if fixed else Call({**call.arguments, "num_inference_steps": min(call.steps, WARMUP_STEPS)})
    for turn, warm in enumerate((none, config), 1):
        run_once(pipe, short, seed, warm, on_step, f"warm-up {turn}/2")
    dense, fast = [], []
    for turn in range(1, repeats + 1):
        dense.append(run_once(pipe, call, seed, none, on_step, f"dense {turn}/{repeats}"))
        fast.append(run_once(pipe, call, seed, config, on_step, f"{config.method} {turn}/{repeats}"))
    return Pair(
        dense[-1],
        fast[-1],
        fidelity(fast[-1].clip.pixels, dense[-1].clip.pixels),
        (median(r.denoiser_seconds for r in dense), median(r.denoiser_seconds for r in fast)),
        (median(r.seconds for r in dense), median(r.seconds for r in fast)),
    )


def trajectories_of(handle: Any) -> list[Stats]:
    """The finished trajectories, and the current one where its end was never told."""
    seen = list(handle.trajectories)
    last = handle.stats()
    return [*seen, last] if last.segments and not any(last is s for s in seen) else seen


@contextmanager
def _following(pipe: Any, call: Call, on_step: OnStep, label: str) -> Iterator[dict[str, Any]]:
    """Extra call arguments that report each step; without a callback the pipeline's own bar stays."""
    if "callback_on_step_end" not in inspect.signature(pipe.__call__).parameters:
        on_step(label, 0, 0)
        yield {}
        return
    done = 0

    def count(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        nonlocal done
        done += 1
        on_step(label, done, max(getattr(pipeline, "_num_timesteps", 0) or call.steps, done))
        return {}

    on_step(label, 0, call.steps)
    yield {"callback_on_step_end": count}


def synchronise(pipe: Any) -> None:
    """Wait until the device has done what it was told."""
    if torch.cuda.is_available() and getattr(pipe, "device", torch.device("cpu")).type == "cuda":
        torch.cuda.synchronize(pipe.device)
