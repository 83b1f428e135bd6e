"""Law 4: the host reads the device at most once per computed step, and never for a predicted one."""

from __future__ import annotations

import pytest
import torch

from diffcache import accelerate_model, accelerate_pipeline

from .models import FAMILIES, PIPELINES, decisions, run_wan, walk_steps, wan_pipeline
from .reads import Reads, ignore_inside, watched

METHODS = {
    "worldcache": dict(computed=0.5, threshold=0.5),
    "worldcache:voyager": dict(warmup=3, threshold=5.0),
    "interval": dict(interval=3),
    "powerlaw": dict(computed=0.4),
    "interval:site=body": dict(interval=3),
    "fora": dict(interval=3),
    "taylorseer": dict(interval=3),
    "interval:site=block": dict(interval=3, predictor="linear"),
}


def test_the_counter_sees_every_kind_of_read():
    for read in (
        lambda t: t.sum().item(),
        lambda t: t.tolist(),
        lambda t: bool(t.any()),
        lambda t: float(t[0]),
        lambda t: torch.equal(t, t.clone()),
        lambda t: t.nonzero(),
    ):
        reads = Reads()
        with watched(reads):
            read(torch.ones(3))
        assert reads.count == 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["wan", "cogvideox", "flux"])
def test_one_read_for_a_computed_step_and_none_for_a_predicted_one(family, method):
    reads = Reads()
    model = ignore_inside(FAMILIES[family].build(0), reads)
    accelerate_model(model, method, **METHODS[method])
    per_step = []
    with torch.no_grad(), watched(reads):
        for _ in walk_steps(family, model, 14):
            per_step.append(reads.count - sum(per_step))
    (letters,) = set(decisions(model))
    assert "cc" in letters
    for step, (letter, count) in enumerate(zip(letters, per_step, strict=True)):
        proof = step == 0 and "body" in method  # the body of a model is proved once, in its first computed step
        assert count <= (1 if letter == "F" else 0) + proof, (letters, per_step, reads.names)


@pytest.mark.parametrize("method", METHODS)
def test_reads_of_a_whole_pipeline_call(method):
    """Against the bare pipeline: the sampler and the pipeline read, too."""
    bare = Reads()
    pipe = wan_pipeline()
    ignore_inside(pipe.transformer, bare)
    with watched(bare):
        run_wan(pipe, 14)
    ours = Reads()
    pipe = wan_pipeline()
    ignore_inside(pipe.transformer, ours)
    accelerate_pipeline(pipe, method, **METHODS[method])
    with watched(ours):
        run_wan(pipe, 14)
    letters = decisions(pipe)[0]
    assert "cc" in letters
    assert ours.count - bare.count <= letters.count("F"), ours.names


def test_conditioning_of_batched_cfg_is_not_read():
    build, run = PIPELINES["dit"]
    counts = []
    for method in (None, "interval"):
        reads = Reads()
        pipe = build()
        ignore_inside(pipe.transformer, reads)
        if method:
            accelerate_pipeline(pipe, method)
        with watched(reads):
            run(pipe, 12)
        counts.append(reads.count)
    assert counts[1] - counts[0] <= decisions(pipe)[0].count("F")
