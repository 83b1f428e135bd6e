"""``fbcache`` beside diffusers' FirstBlockCache and cache-dit's DBCache: equal decisions give equal outputs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache
from safetensors import safe_open
from torch import nn

from diffcache import accelerate_model, accelerate_pipeline
from diffcache.hooks.anatomy import find_block_lists

from .models import decisions
from .peers import CASES, MORE, STEPS


def ours(case):
    """Outputs and decisions of ``fbcache``."""
    target = case.build()
    attach = accelerate_model if isinstance(target, nn.Module) else accelerate_pipeline
    attach(target, "fbcache", threshold=case.threshold, first=case.first, last=case.last)
    outputs = case.run(target)
    letters = decisions(target)
    assert len(letters) == case.calls
    assert all("c" in text and "F" in text[1:] for text in letters)
    return outputs, letters


@pytest.fixture(scope="module")
def dbcache(tmp_path_factory):
    """Outputs and skipped steps of cache-dit, from a process of its own."""
    pytest.importorskip("cache_dit")
    path = tmp_path_factory.mktemp("peers") / "outputs.safetensors"
    command = [sys.executable, "-m", "tests.peers", str(path)]
    subprocess.run(command, cwd=Path(__file__).parents[1], check=True, capture_output=True, timeout=300)
    with safe_open(path, framework="pt") as file:
        skipped = json.loads(file.metadata()["skipped"])
        return {name: (file.get_tensor(name), skipped[name]) for name in file.keys()}  # noqa: SIM118 - it is no mapping


def noting_computed_calls(model):
    """A list that gets, for each call of the model, whether its last block ran."""
    calls = []
    (*_, blocks) = find_block_lists(model).values()
    part = next(m for m in blocks[-1].modules() if isinstance(m, nn.Linear))
    model.register_forward_pre_hook(lambda module, args: calls.append(False))
    part.register_forward_pre_hook(lambda module, args: calls.__setitem__(-1, True))
    return calls


#: diffusers' cache needs a cache context, which these do not have
CONTEXTLESS = ("dit", "pixart")


@pytest.mark.parametrize("name", [name for name in CASES if name not in CONTEXTLESS])
def test_fbcache_is_diffusers_first_block_cache(name):
    case = CASES[name]
    target = case.build()
    model = target if isinstance(target, nn.Module) else target.transformer
    calls = noting_computed_calls(model)
    apply_first_block_cache(model, FirstBlockCacheConfig(threshold=case.threshold))
    theirs = case.run(target)
    outputs, letters = ours(case)
    assert calls == [text[step] == "F" for step in range(STEPS) for text in letters]
    torch.testing.assert_close(outputs, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*CASES, *MORE])
def test_fbcache_is_cache_dits_dbcache(name, dbcache):
    theirs, skipped = dbcache[name]
    outputs, letters = ours({**CASES, **MORE}[name])
    assert [[step for step, letter in enumerate(text) if letter == "c"] for text in letters] == skipped
    torch.testing.assert_close(outputs, theirs, rtol=1e-5, atol=1e-5)
