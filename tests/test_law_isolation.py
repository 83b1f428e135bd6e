"""Law 3: no state crosses trajectories, shapes, branches, experts, pipelines or threads."""

from __future__ import annotations

import threading

import pytest
import torch

from diffcache import UnsupportedModelError, accelerate_model, accelerate_pipeline, denoising

from .cases import PLACED, SKIPPING
from .models import FAMILIES, PIPELINES, decisions, run_wan, sample, wan_pipeline


@pytest.mark.parametrize("case", SKIPPING)
def test_one_seed_gives_one_result_whatever_ran_in_between(case):
    name, settings = SKIPPING[case]
    model = accelerate_model(FAMILIES["wan"].build(0), name, **settings)
    first = sample("wan", model, seed=1)
    letters = decisions(model)
    sample("wan", model, seed=2)
    sample("wan", model, 7, seed=3, size=3)
    assert sample("wan", model, seed=1).equals(first)
    assert decisions(model) == letters


@pytest.mark.parametrize("kind", PIPELINES)
def test_one_seed_gives_one_result_by_the_pipelines_own_call(kind):
    build, run = PIPELINES[kind]
    pipe = accelerate_pipeline(build(), "worldcache", warmup=3, threshold=1.0)
    first = run(pipe, 12, seed=1)
    letters = decisions(pipe)
    run(pipe, 9, seed=2)
    assert torch.equal(run(pipe, 12, seed=1), first)
    assert decisions(pipe) == letters
    assert any("c" in s for s in letters)


@pytest.mark.parametrize(("batch", "size"), [(2, 2), (1, 3), (3, 1)])
def test_another_shape_equals_a_fresh_model(batch, size):
    model = accelerate_model(FAMILIES["wan"].build(0), "worldcache", threshold=1.0)
    sample("wan", model, seed=1)
    fresh = accelerate_model(FAMILIES["wan"].build(0), "worldcache", threshold=1.0)
    kwargs = dict(seed=1, batch=batch, size=size)
    assert sample("wan", model, **kwargs).equals(sample("wan", fresh, **kwargs))


def alone(branch, steps=12):
    """The outputs of one branch of a fixed input under a fixed placement, computed without the other."""
    kind = FAMILIES["wan"]
    model = accelerate_model(kind.build(0), "interval", interval=3, predictor="linear")
    return list(walk(model, [branch], steps)[branch])


def walk(model, order, steps, swap=lambda step: False):
    kind = FAMILIES["wan"]
    conditioning = {"cond": kind.conditioning(100, 1), "uncond": kind.conditioning(7, 1)}
    outputs = {name: [] for name in order}
    with torch.no_grad(), denoising(model, steps):
        for step in range(steps):
            for name in reversed(order) if swap(step) else order:
                level = 1.0 - step / steps
                x = kind.latents(0, 1, 2) * level
                outputs[name].append(
                    model(
                        hidden_states=x,
                        timestep=kind.time(level)[None],
                        **conditioning[name],
                        return_dict=False,
                    )[0].clone()
                )
    return outputs


@pytest.mark.parametrize("swap", ["never", "sometimes", "always"])
def test_branches_have_histories_of_their_own(swap):
    """Each branch gives, call for call, what it gives when it runs without the other one; the order is no matter."""
    model = accelerate_model(FAMILIES["wan"].build(0), "interval", interval=3, predictor="linear")
    when = {"never": lambda s: False, "sometimes": lambda s: s % 3 == 1, "always": lambda s: True}[swap]
    both = walk(model, ["cond", "uncond"], 12, when)
    for name in both:
        assert all(torch.equal(a, b) for a, b in zip(both[name], alone(name), strict=True))
    assert len(decisions(model)) == 2
    assert len(set(decisions(model))) == 1


def test_branches_are_told_apart_by_label_where_the_conditioning_is_one_object():
    """A guider may perturb attention instead of the prompt: the label is then the only difference."""
    kind = FAMILIES["wan"]
    model = accelerate_model(kind.build(0), "interval", interval=2)
    conditioning = kind.conditioning(1, 1)
    with torch.no_grad(), denoising(model, 8):
        for step in range(8):
            for label in ("cond", "skip-layer"):
                with model.cache_context(label):
                    model(hidden_states=kind.latents(0, 1, 2), timestep=kind.time(1 - step / 8)[None], **conditioning)
    stats = model.diffcache.stats()
    assert [s.branch for s in stats.segments] == ["cond", "skip-layer"]
    assert not any(s.fallbacks for s in stats.segments)


def test_branches_are_told_apart_by_content_where_the_pipeline_rebuilds_its_conditioning():
    kind = FAMILIES["wan"]
    model = accelerate_model(kind.build(0), "interval", interval=2)
    with torch.no_grad(), denoising(model, 8):
        for step in range(8):
            for seed in (1, 2):
                model(
                    hidden_states=kind.latents(0, 1, 2),
                    timestep=kind.time(1 - step / 8)[None],
                    **kind.conditioning(seed, 1),  # new tensors each step
                )
    letters = decisions(model)
    assert len(letters) == 2
    assert all(s == letters[0] and "c" in s for s in letters)


@pytest.mark.parametrize("case", PLACED)
def test_a_dropped_uncond_call_leaves_the_other_branch_alone(case):
    """Lumina2's cfg_trunc_ratio and guidance intervals call the unconditional branch on some steps only."""
    name, settings = PLACED[case]
    model = accelerate_model(FAMILIES["wan"].build(0), name, **settings)
    sample("wan", model, 12, uncond=lambda step: step < 7)
    cond, uncond = model.diffcache.stats().segments
    assert "c" in cond.decisions
    assert len(cond.decisions) == len(uncond.decisions) == 12
    assert set(uncond.decisions[7:]) == {"-"}
    assert uncond.decisions[:7] == cond.decisions[:7]


def test_a_branch_that_returns_is_never_predicted_from_what_it_has_not_got():
    """A branch that was away at a computed step may be older than the other, never wrong."""
    model = accelerate_model(FAMILIES["wan"].build(0), "interval", interval=3, warmup=3)
    sample("wan", model, 12, uncond=lambda step: step >= 4)
    _, uncond = model.diffcache.stats().segments
    assert uncond.decisions.lstrip("-")[0] == "F"


@pytest.mark.parametrize("kwargs_order", ["hidden first", "timestep first"])
def test_a_new_resolution_in_mid_trajectory_recomputes(kwargs_order):
    """Also where the caller names the sample last: the shape that counts is the sample's."""
    kind = FAMILIES["wan"]
    model = accelerate_model(kind.build(0), "interval", interval=4)
    conditioning = kind.conditioning(1, 1)

    def call(step):
        x = kind.latents(0, 1, 2 if step < 5 else 3)
        timestep = kind.time(1 - step / 12)[None]
        if kwargs_order == "hidden first":
            result = model(hidden_states=x, timestep=timestep, **conditioning)
        else:
            result = model(timestep=timestep, **conditioning, hidden_states=x)
        return x, result.sample

    with torch.no_grad(), denoising(model, 12):
        for step in range(12):
            x, output = call(step)
            assert output.shape == x.shape
    (segment,) = model.diffcache.stats().segments
    assert segment.decisions[4:6] == "cF"
    assert [(f.step, "shape" in f.reason) for f in segment.fallbacks] == [(5, True)]


@pytest.mark.parametrize("case", PLACED)
def test_a_new_batch_size_in_mid_trajectory_recomputes(case):
    name, settings = PLACED[case]
    kind = FAMILIES["dit"]
    model = accelerate_model(kind.build(0), name, **settings)
    with torch.no_grad(), denoising(model, 12):
        for step in range(12):
            rows = 1 if step < 7 else 2
            x = kind.latents(0, rows, 1)
            output = model(
                hidden_states=x,
                timestep=kind.time(1 - step / 12).expand(rows),
                class_labels=torch.full((rows,), 5),
            ).sample
            assert output.shape == x.shape


def test_the_way_of_returning_may_change_in_mid_trajectory():
    kind = FAMILIES["wan"]
    model = accelerate_model(kind.build(0), "interval", interval=4)
    conditioning = kind.conditioning(1, 1)
    with torch.no_grad(), denoising(model, 12):
        for step in range(12):
            output = model(
                hidden_states=kind.latents(0, 1, 2),
                timestep=kind.time(1 - step / 12)[None],
                **conditioning,
                return_dict=step % 3 == 0,
            )
            assert isinstance(output, tuple) == (step % 3 != 0)


def test_experts_are_segments_with_histories_of_their_own():
    build, run = PIPELINES["wan-two-experts"]
    pipe = accelerate_pipeline(build(), "interval", interval=3)
    run(pipe, 16)
    segments = pipe.diffcache.stats().segments
    assert [(s.expert, s.branch) for s in segments] == [
        ("transformer", "cond"),
        ("transformer", "uncond"),
        ("transformer_2", "cond"),
        ("transformer_2", "uncond"),
    ]
    switch = len(segments[0].decisions)
    assert 0 < switch < 16
    assert len(segments[2].decisions) == 16 - switch
    assert all(s.decisions[0] == "F" and s.decisions[-1] == "F" and "c" in s.decisions for s in segments)


def test_two_pipelines_in_two_threads_give_what_they_give_alone():
    settings = [("worldcache", dict(threshold=1.0)), ("interval", dict(interval=3, predictor="linear"))]
    pipes = [accelerate_pipeline(wan_pipeline(), name, **more) for name, more in settings]
    wanted = [(run_wan(pipe, 12, seed=i), decisions(pipe)) for i, pipe in enumerate(pipes)]
    found: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    barrier = threading.Barrier(2)

    def work(i):
        barrier.wait()
        found[i] += [run_wan(pipes[i], 12, seed=i) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    for i, (latents, letters) in enumerate(wanted):
        assert len(found[i]) == 3
        assert all(torch.equal(run, latents) for run in found[i])
        assert decisions(pipes[i]) == letters


def test_two_pipelines_interleaved_call_by_call():
    """Callbacks run one pipeline inside another's step."""
    outer = accelerate_pipeline(wan_pipeline(), "interval", interval=3)
    inner = accelerate_pipeline(wan_pipeline(1), "interval", interval=2)
    wanted, wanted_inner = run_wan(outer, 9), run_wan(inner, 6)

    def nested(pipe, step, t, kwargs):
        assert torch.equal(run_wan(inner, 6), wanted_inner)
        return kwargs

    assert torch.equal(run_wan(outer, 9, callback_on_step_end=nested), wanted)


def test_a_denoiser_shared_by_two_pipelines_has_one_method():
    pipe, other = wan_pipeline(), wan_pipeline()
    other.transformer = pipe.transformer
    accelerate_pipeline(pipe, "interval")
    with pytest.raises(UnsupportedModelError, match="shared"):
        accelerate_pipeline(other, "interval")


def test_a_bare_loop_over_a_pipelines_denoiser_leaves_the_pipeline_accelerated():
    pipe = accelerate_pipeline(wan_pipeline(), "interval", interval=3)
    wanted = run_wan(pipe, 9)
    letters = decisions(pipe)
    sample("wan", pipe.transformer, 6)
    assert torch.equal(run_wan(pipe, 9), wanted)
    assert decisions(pipe) == letters
