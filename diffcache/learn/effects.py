"""How much each step's output moves the final sample, measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..pipeline import accelerated
from .trials import Trials
from .watching import final, sampled

Floats = NDArray[np.float64]
#: of the output's spread: small enough for a first-order effect, far above rounding
_SIZE = 0.05
_POINTS = 8


@dataclass(frozen=True)
class Effects:
    """What a disturbance of each step's output does to the final sample.

    Attributes:
        size: of the change over that of the disturbance, ``[steps]``.
        signed: the part of the change along the disturbance, ``[steps]``; by the sampler most of it is there.
    """

    size: Floats
    signed: Floats


def measure_effects(trials: Trials, points: int = _POINTS) -> Effects:
    """Dense runs in which noise is added to what the sampler is given at one step; of the steps in between the effect
    is interpolated (its logarithm, along the steps). All 1 where no sampler is seen.
    """
    course = trials.course
    if not course.outputs[0]:
        return Effects(np.ones(course.steps), np.ones(course.steps))
    steps = sorted({round(x) for x in np.linspace(0, course.steps - 1, points)})
    found = [trials.kept.numbers(f"effects/{step}", lambda s=step: _effect(trials, s)) for step in steps]
    sizes, along = np.maximum(np.array(found).T, [[1e-12], [-np.inf]])
    every = np.arange(course.steps)
    size = np.exp(np.interp(every, steps, np.log(sizes)))
    return Effects(size, size * np.interp(every, steps, along / sizes))


def _effect(trials: Trials, step: int, seed: int = 0) -> list[float]:
    noises: list[Tensor] = []

    def disturb(now: int, output: Tensor) -> Tensor:
        if now != step:
            return output
        noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(step)).to(output)
        if trials.course.folded and len(output) % 2 == 0:
            noise = torch.cat([noise.chunk(2)[0]] * 2)  # both halves of guidance step alike
        noise = _SIZE * output.std() * noise
        noises.append(noise.float().cpu())
        return output + noise

    with accelerated(trials.pipe, "none"), sampled(trials.pipe) as seen, trials.counted(f"effect of step {step}"):
        seen.change = disturb
        found = final(trials.run(seed), seen)
    change, noise = found - trials.course.finals[seed], noises[0]
    along = float((change * noise).sum() / noise.square().sum()) if change.shape == noise.shape else 0.0
    return [float(change.norm() / noise.norm()), along]


def inner_products(outputs: Sequence[Sequence[Tensor]], finals: Sequence[Tensor]) -> Floats | None:
    """``[steps, steps]``: inner products of the outputs of a run, the mean over the runs, each relative to its sample.

    None where no sampler was seen.
    """
    if not outputs[0]:
        return None
    total = 0.0
    for run_, sample in zip(outputs, finals, strict=True):
        rows = torch.stack([output.flatten() for output in run_]).double()
        total = total + (rows @ rows.T / sample.double().square().sum()).numpy()
    return total / len(outputs)
