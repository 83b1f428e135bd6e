"""What stats say of a drift schedule: what it heard at each step and its threshold; both explain the decisions."""

from __future__ import annotations

import json
import math

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from diffcache import accelerated
from diffcache.zoo import load_pipeline

STEPS = 12


@pytest.fixture(scope="module")
def pipe():
    loaded = load_pipeline("tiny-dit")
    loaded.set_progress_bar_config(disable=True)
    return loaded


def segment_of(pipe, method, steps=STEPS, **fields):
    with accelerated(pipe, method, **fields):
        noise = torch.Generator().manual_seed(0)
        pipe(class_labels=[1], num_inference_steps=steps, generator=noise, output_type="np")
        stats = pipe.diffcache.stats()
    json.dumps(stats.to_dict(), allow_nan=False)
    (segment,) = stats.segments
    return segment


@pytest.mark.parametrize(("method", "threshold"), [("fbcache", 0.3), ("easycache", 0.1), ("teacache", 0.2)])
def test_a_step_that_hears_its_threshold_is_computed(pipe, method, threshold):
    more = {"polynomial": (1.0, 0.0)} if method == "teacache" else {}
    found = segment_of(pipe, method, threshold=threshold, **more)
    assert found.threshold == threshold
    assert len(found.heard) == STEPS
    heard = [(value, letter) for value, letter in zip(found.heard, found.decisions, strict=True) if value is not None]
    assert {letter for _, letter in heard} == {"F", "c"}
    assert all((value >= threshold) == (letter == "F") for value, letter in heard)
    assert found.heard[0] is None  # nothing to compare with


def test_the_guard_computes_where_it_expects_too_much(pipe):
    found = segment_of(pipe, "worldcache", computed=4, threshold=0.3)
    expected = [value for value, letter in zip(found.heard, found.decisions, strict=True) if letter == "c"]
    assert expected
    assert all(value < 0.3 for value in expected)
    assert any(value is not None and value >= 0.3 for value in found.heard)


def test_a_sampler_that_adds_noise_is_computed_more_where_less_error_is_allowed(pipe):
    """The path of its outputs looks straight, and the errors are those of the noise."""
    ordinary = pipe.scheduler
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(ordinary.config, algorithm_type="sde-dpmsolver++")
    try:
        counts = []
        for threshold in (math.inf, 0.5, 0.1):
            torch.manual_seed(0)  # the sampler draws from the global generator
            found = segment_of(pipe, "worldcache", threshold=threshold, steps=24)
            counts.append(found.decisions.count("F"))
    finally:
        pipe.scheduler = ordinary
    assert counts == sorted(counts)
    assert counts[1] > 1.3 * counts[0]
    assert counts[2] >= 20  # two predictions show what noise does, and few are tried again


def test_schedules_that_compare_nothing_heard_nothing(pipe):
    found = segment_of(pipe, "interval", interval=2, warmup=1)
    assert found.heard == []
    assert found.threshold is None
    assert segment_of(pipe, "worldcache", threshold=float("inf")).threshold is None


def test_deciding_is_a_part_of_its_own(pipe):
    found = segment_of(pipe, "worldcache", computed=4)
    assert 0 < found.decide_seconds < found.compute_seconds
    assert found.predict_seconds > 0
