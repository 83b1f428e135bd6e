"""Timesteps and noise levels as numbers on the host, without waiting for a device where that is possible."""

from __future__ import annotations

import math
from numbers import Number
from typing import Any

from torch import Tensor

#: samples of a batch whose timesteps are looked at one by one
_FEW = 16


def host_value(timestep: Any, sync: bool = False) -> float | None:
    """The timestep as a number, where that costs no device synchronisation (or where one is allowed).

    A tensor of timesteps (one a sample, frame or token) stands for its largest entry.
    """
    if not isinstance(timestep, Tensor):
        return float(timestep) if isinstance(timestep, Number) else None
    if not timestep.is_cpu:
        return float(timestep.max()) if sync and timestep.numel() else None
    return on_the_cpu(timestep)


def on_the_cpu(timestep: Tensor) -> float | None:
    """The largest entry of a tensor that no device has to be waited for; None if it has none."""
    if not timestep.dim():
        return float(timestep.tolist())
    count = timestep.numel()
    if not count:
        return None
    if count <= _FEW and timestep.dim() == 1:
        return float(max(timestep.tolist()))  # torch's own maximum takes longer to begin
    alike = not any(timestep.stride())
    return float((timestep[(0,) * timestep.dim()] if alike else timestep.detach().max()).tolist())


def index_of(value: float | None, timesteps: Any) -> int:
    """Position of ``value`` in the sampler's list; models that take t/1000 are found as well. 0 if not there.

    Where a timestep stands twice (Heun), a late start begins at the second one, as diffusers' samplers do.
    """
    if value is None:
        return 0
    known = [float(t) for t in timesteps.tolist()]
    found = [[i for i, t in enumerate(known) if _close(t * scale, value)] for scale in (1.0, 1e-3)]
    # 1.0 is the first of 1000 steps of a model that takes t/1000, before it is the last of one that takes t.
    close = min(filter(None, found), default=[0])
    return close[1] if len(close) > 1 and known[close[0]] == known[close[1]] else close[0]


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-3 * max(abs(b), 1e-6)


def noise_levels(scheduler: Any) -> list[float]:
    """Sigma of each step on the host: the scheduler's own, or from ``alphas_cumprod``; empty if it has neither."""
    sigmas = getattr(scheduler, "sigmas", None)
    if isinstance(sigmas, Tensor) and sigmas.numel() >= len(scheduler.timesteps):
        return [float(s) for s in sigmas.tolist()]
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(alphas, Tensor):
        return []
    alpha = alphas.cpu()[scheduler.timesteps.cpu().long()].double()
    return [float(s) for s in ((1 - alpha) / alpha).sqrt().tolist()]


def log_snr(sigma: float, flow: bool) -> float:
    if not flow:
        return -2.0 * math.log(max(sigma, 1e-3))
    clipped = min(max(sigma, 1e-3), 1.0 - 1e-3)
    return 2.0 * math.log((1.0 - clipped) / clipped)
