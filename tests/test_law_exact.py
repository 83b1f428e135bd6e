"""Law 1: a method that never skips is bit-identical to the bare model, and says so where it was meant to skip."""

from __future__ import annotations

import warnings

import pytest
import torch

from diffcache import NothingSkippedWarning, accelerate_model, accelerate_pipeline, list_methods, restore

from .cases import SKIPPING
from .models import FAMILIES, PIPELINES, decisions, sample

SETTINGS = {name: {} for name in list_methods("denoiser")} | {
    "worldcache:aether": {},
    "interval:site=body": {},
    "powerlaw:site=body": {},
}


@pytest.mark.parametrize("method", SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_max_skip_zero_equals_the_bare_model(family, method):
    model = FAMILIES[family].build(0)
    bare = sample(family, model, 6)
    accelerate_model(model, method, max_skip=0)
    run = sample(family, model, 6)
    assert all(torch.equal(a, b) for a, b in zip(run.outputs, bare.outputs, strict=True))
    assert run.equals(bare)
    assert set("".join(decisions(model))) == {"F"}


@pytest.mark.parametrize("kind", PIPELINES)
def test_never_skipping_pipeline_equals_the_bare_one(kind):
    build, run = PIPELINES[kind]
    pipe = build()
    bare = run(pipe, 6)
    for method in ("none", "worldcache:max_skip=0", "interval:max_skip=0,site=body"):
        accelerate_pipeline(pipe, method)
        with warnings.catch_warnings():
            warnings.simplefilter("error", NothingSkippedWarning)  # it never meant to skip: nothing to warn of
            assert torch.equal(run(pipe, 6), bare)


@pytest.mark.parametrize("case", SKIPPING)
@pytest.mark.parametrize("family", FAMILIES)
def test_steps_within_warmup_and_cooldown_are_bit_exact_with_a_warning(family, case):
    name, settings = SKIPPING[case]
    model = FAMILIES[family].build(0)
    bare = sample(family, model, 5)
    accelerate_model(model, name, **{**settings, "warmup": 4, "cooldown": 1})
    with pytest.warns(NothingSkippedWarning, match=r"steps \(5\) <= warmup \(4\) \+ cooldown \(1\)"):
        run = sample(family, model, 5)
    assert run.equals(bare)
    assert "warmup" in model.diffcache.stats().reason


def test_the_warning_comes_once_not_per_trajectory():
    model = FAMILIES["wan"].build(0)
    accelerate_model(model, "interval", warmup=10)
    with pytest.warns(NothingSkippedWarning):
        sample("wan", model, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NothingSkippedWarning)
        sample("wan", model, 5, seed=1)


def test_a_threshold_that_never_allows_a_prediction_is_named():
    model = FAMILIES["wan"].build(0)
    accelerate_model(model, "worldcache", threshold=0.0, warmup=3)
    with pytest.warns(NothingSkippedWarning, match="threshold"):
        sample("wan", model, 8)
    assert set("".join(decisions(model))) == {"F"}


def test_a_method_that_skips_does_not_warn():
    model = FAMILIES["wan"].build(0)
    accelerate_model(model, "interval", interval=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NothingSkippedWarning)
        sample("wan", model, 8)
    assert "c" in decisions(model)[0]
    restore(model)
