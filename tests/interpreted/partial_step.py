"""A partial step of each block family with its kernels in the interpreter equals the one on the torch references."""

from __future__ import annotations

import pytest
import torch

from diffcache.kernels import counting
from diffcache.kernels.dispatch import Kernel, interpreted

from ..denoisers.running import bare, model_of, run
from ..test_site_tokens import put_on

FAMILIES = ["DiT", "PixArt", "Flux", "SD3"]
VIDEO = ["Wan", "CogVideoX"]
CLASSES = [f"{name}Transformer2DModel" for name in FAMILIES] + [f"{name}Transformer3DModel" for name in VIDEO]


def outputs(name, calls):
    """Of every step; each of the model's calls is noted."""
    bare(name)
    model = model_of(name)
    put_on(model, lambda offset, depth, kind: 0.4)
    counted = model.register_forward_pre_hook(lambda module, args: calls.append("model"))
    try:
        return run(name)
    finally:
        counted.remove()
        model.diffcache.restore()


@pytest.mark.parametrize("name", CLASSES)
def test_equals_the_references(name, monkeypatch):
    wanted, calls, plain = outputs(name, []), [], Kernel.__call__

    def call(kernel, *args):  # the interpreter is slow: the last step only
        if calls.count("model") < len(wanted):
            return plain(kernel, *args)
        calls.append(kernel.name)
        return kernel.op(*args)

    monkeypatch.setattr(Kernel, "__call__", call)
    with interpreted(), counting() as fallbacks:
        found = outputs(name, calls)
    assert not fallbacks
    assert {"gather_norm", "scatter_gather_norm", "scatter_update", "accumulate", "project_epilogue"} <= set(calls)
    for a, b in zip(wanted, found, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)
