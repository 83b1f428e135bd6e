"""A pipeline that carries another feature beside a method, put on before it or after it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from diffcache import accelerate_pipeline, restore

from .models import decisions, run_wan, wan_pipeline

SITES = ("output", "body", "module")
ORDERS = ("before", "after")
#: what an interval of 3 decides in 9 steps
LETTERS = "FFFccFccF"

Setup = Callable[[Any], Any]


def composed(
    setup: Setup, order: str, build: Callable[[], Any] = wan_pipeline, method: str = "interval", **settings: Any
) -> Any:
    """A pipeline with ``setup`` done to it before or after acceleration."""
    pipe = build()
    if order == "before":
        setup(pipe)
    accelerate_pipeline(pipe, method, **({"interval": 3} if method == "interval" else {}), **settings)
    if order == "after":
        setup(pipe)
    return pipe


def check_law_1(
    setup: Setup, order: str, site: str, build: Callable[[], Any] = wan_pipeline, run: Callable[..., Tensor] = run_wan
) -> None:
    """A method that never skips gives, bit for bit, what the bare pipeline gives in the same set-up."""
    bare = build()
    setup(bare)
    pipe = composed(setup, order, build, site=site, max_skip=0)
    for seed in (0, 1):  # what the feature does at the end of a call must not change the next one
        assert torch.equal(run(pipe, 4, seed=seed), run(bare, 4, seed=seed))


def check_skipping(
    setup: Setup, order: str, site: str, build: Callable[[], Any] = wan_pipeline, run: Callable[..., Tensor] = run_wan
) -> Tensor:
    """Steps are predicted in every call, one seed gives one result, and ``restore`` leaves the bare set-up."""
    bare = build()
    setup(bare)
    pipe = composed(setup, order, build, site=site)
    first = run(pipe, 9)
    assert first.isfinite().all()
    assert set(decisions(pipe)) == {LETTERS}
    assert torch.equal(run(pipe, 9), first)
    assert set(decisions(pipe)) == {LETTERS}
    restore(pipe)
    assert torch.equal(run(pipe, 3), run(bare, 3))
    return first


@cache
def alone(site: str, build: Callable[[], Any] = wan_pipeline, run: Callable[..., Tensor] = run_wan) -> Tensor:
    """What the method gives without the feature."""
    return run(composed(lambda pipe: None, "before", build, site=site), 9)
