"""What the two other first-block caches return: diffusers' FirstBlockCache, and cache-dit's DBCache.

cache-dit patches classes, so it runs in a process of its own, which writes all its outputs to one file:

    python -m tests.peers outputs.safetensors
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.cache_utils import CacheMixin
from safetensors.torch import save_file
from torch import Tensor, nn

from diffcache import denoising

from .denoisers import DENOISERS
from .models import (
    FAMILIES,
    cogvideox_pipeline,
    run_cogvideox,
    run_wan,
    wan,
    wan_pipeline,
)

STEPS = 12


@dataclass(frozen=True)
class Case:
    """A tiny denoiser, or a whole pipeline of one, with the settings of a first-block cache.

    Attributes:
        build: the model or pipeline, always the same.
        run: what it returns in ``STEPS`` steps: one tensor.
        threshold, first, last: of the cache.
        calls: denoiser calls in a step.
    """

    build: Callable[[], Any]
    run: Callable[[Any], Tensor]
    threshold: float
    first: int = 1
    last: int = 0
    calls: int = 1


def sampled(family: str) -> Callable[[nn.Module], Tensor]:
    """Runs a bare denoiser on inputs that move a little each step; its outputs, stacked."""

    def run(model: nn.Module) -> Tensor:
        kind, outputs = FAMILIES[family], []
        call = dict(**kind.conditioning(1, 1), **kind.fixed(2), return_dict=False)
        a, b = kind.latents(0, 1, 2), kind.latents(1, 1, 2)
        with torch.no_grad(), denoising(model, STEPS):
            for step in range(STEPS):
                x = a + step / STEPS * (b - a)
                outputs.append(_named(model, hidden_states=x, timestep=kind.time(1 - step / (2 * STEPS))[None], **call))
        return torch.stack(outputs)

    return run


def _named(model: nn.Module, **call: Any) -> Tensor:
    """One call in the cache context that diffusers' cache asks for."""
    if not isinstance(model, CacheMixin):
        return model(**call)[0]
    with model.cache_context("cond"):
        return model(**call)[0]


def pixart(threshold: float) -> Case:
    """As :func:`denoiser`, of a class that is built elsewhere."""
    kind = DENOISERS["PixArtTransformer2DModel"]

    def run(model: nn.Module) -> Tensor:
        arguments = kind.trajectory()
        with torch.no_grad(), denoising(model, STEPS):
            return torch.stack([model(**arguments(1 - step / STEPS)).sample for step in range(STEPS)])

    return Case(kind.tiny, run, threshold)


def denoiser(family: str, threshold: float, first: int = 1, last: int = 0, layers: int = 0) -> Case:
    build = (lambda: wan(0, layers)) if layers else (lambda: FAMILIES[family].build(0))
    return Case(build, sampled(family), threshold, first, last)


def pipeline(build: Callable[[], Any], run: Callable[..., Tensor], threshold: float, calls: int = 1) -> Case:
    return Case(build, lambda pipe: run(pipe, STEPS), threshold, calls=calls)


#: with thresholds at which some steps skip and some do not
CASES = {
    "wan-0.1": denoiser("wan", 0.1, layers=4),
    "wan-0.15": denoiser("wan", 0.15, layers=4),
    "wan-0.2": denoiser("wan", 0.2, layers=4),
    "cogvideox": denoiser("cogvideox", 0.3),
    "cogvideox-rotary": denoiser("cogvideox-rotary", 0.3),
    "dit": denoiser("dit", 0.3),
    "pixart": pixart(0.05),
    "flux": denoiser("flux", 0.5),
    "wan-pipeline": pipeline(wan_pipeline, run_wan, 0.1, calls=2),
    "cogvideox-pipeline": pipeline(cogvideox_pipeline, run_cogvideox, 0.3),
}
#: DBCache alone has more than one block before the gate, and blocks behind the body
MORE = {
    "wan-F2": denoiser("wan", 0.1, 2, layers=4),
    "wan-B1": denoiser("wan", 0.1, 1, 1, layers=4),
    "wan-F2-B1": denoiser("wan", 0.15, 2, 1, layers=4),
    "wan-F1-B2": denoiser("wan", 0.2, 1, 2, layers=4),
    "flux-B1": denoiser("flux", 0.5, 1, 1),
}


def _dbcache(case: Case) -> tuple[Tensor, list[list[int]]]:
    """Outputs of cache-dit, and the steps that it skipped in each call of a step."""
    import cache_dit

    target = case.build()
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=case.first,
        Bn_compute_blocks=case.last,
        residual_diff_threshold=case.threshold,
        max_warmup_steps=1,
        num_inference_steps=STEPS,
        enable_separate_cfg=case.calls == 2,  # it would guess otherwise
    )
    cache_dit.enable_cache(target, cache_config=config)
    output = case.run(target)
    found = cache_dit.summary(target, logging=False)[0]
    return output, [found.cached_steps, found.cfg_cached_steps][: case.calls]


def main(path: str) -> None:
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    outputs, skipped = {}, {}
    for name, case in {**CASES, **MORE}.items():
        outputs[name], skipped[name] = _dbcache(case)
    save_file(outputs, path, {"skipped": json.dumps(skipped)})


if __name__ == "__main__":
    main(sys.argv[1])
