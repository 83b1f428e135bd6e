"""Law 8: cached memory equals the formula in the method's docstring, and is freed when the trajectory ends."""

from __future__ import annotations

import contextlib
import gc
import types
import weakref

import pytest
import torch

from diffcache import accelerate_model, accelerate_pipeline, denoising

from .cases import SKIPPING
from .models import FAMILIES, PIPELINES, decisions, run_wan, sample, walk_steps, wan_pipeline


def formula(output, batch, kind="sample", modalities=1, channel=1, patch=1):
    """The docstring of WorldCacheConfig."""
    tokens = output.numel() // output.shape[channel] // patch
    scalars = {"sample": 0, "token": 4 * tokens + 12 * batch, "faithful": 12 * tokens}[kind] * modalities
    return 3 * output.numel() * output.element_size() + scalars


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("modalities", [(), (3, 1)])
@pytest.mark.parametrize("kind", ["sample", "token", "faithful"])
@pytest.mark.parametrize(("family", "channel", "patch"), [("wan", 1, 4), ("cogvideox", 2, 1)])
def test_cached_bytes_equal_the_formula(family, channel, patch, kind, modalities, dtype):
    model = FAMILIES[family].build(0).to(dtype)
    settings = dict(faithful=True, threshold=5.0) if kind == "faithful" else dict(threshold=1.0)
    if kind == "token":
        settings["share"] = 1.0
    accelerate_model(model, "worldcache", warmup=3, modalities=modalities, **settings)
    run = sample(family, model, batch=2, dtype=dtype)
    assert "c" in decisions(model)[0]
    wanted = formula(run.outputs[0], 2, kind, len(modalities) or 1, channel, patch)
    assert [s.cached_bytes for s in model.diffcache.stats().segments] == [wanted, wanted]


def storages(model):
    return {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}


def reachable_tensors(root, stop):
    """Tensors that ``root`` keeps alive, without going through the model itself."""
    seen, found, queue = {id(s) for s in stop}, {}, [root]
    while queue:
        item = queue.pop()
        if id(item) in seen or isinstance(item, (type, types.ModuleType, torch.nn.Module)):
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            found[item.untyped_storage().data_ptr()] = item
        elif isinstance(item, types.FunctionType):
            queue += item.__closure__ or ()  # not its globals
        else:
            queue += gc.get_referents(item)
    return found


@pytest.mark.parametrize("case", SKIPPING)
def test_what_is_really_held_is_what_is_reported(case):
    """Every tensor reachable from the hook, but for the inputs: stored outputs, the fit and the plan's few numbers."""
    name, settings = SKIPPING[case]
    model = accelerate_model(FAMILIES["wan"].build(0), name, **settings)
    ((_, hook),) = model.diffcache.hooks.values()
    inputs = storages(model)
    for step in walk_steps("wan", model, 12):
        if step < 6:
            continue
        branches = hook.segment.branches.values()
        given = inputs | {t.untyped_storage().data_ptr() for b in branches for t in b.conditioning.tensors}
        held = {p: t for p, t in reachable_tensors(list(branches), []).items() if p not in given}
        total = sum(t.untyped_storage().nbytes() for t in held.values())
        plans = sum(b.cache.pending.numbers.numel() * 4 for b in branches if b.cache.pending is not None)
        assert total - plans == sum(b.cache.nbytes + b.exact.nbytes for b in branches)
        break


@pytest.mark.parametrize("case", SKIPPING)
@pytest.mark.parametrize("end", ["loop", "exception"])
def test_memory_is_free_after_the_trajectory(end, case):
    name, settings = SKIPPING[case]
    model = accelerate_model(FAMILIES["wan"].build(0), name, **settings)
    ((_, hook),) = model.diffcache.hooks.values()
    refs = []

    def look(step):
        if step == 6:
            for branch in hook.segment.branches.values():
                refs.extend(weakref.ref(v) for v in branch.cache.held())
            if end == "exception":
                raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        sample("wan", model, before=look)
    gc.collect()
    assert len(refs) >= 2
    assert not [r for r in refs if r() is not None]


@pytest.mark.parametrize("kind", PIPELINES)
def test_nothing_is_held_after_a_pipeline_call(kind):
    build, run = PIPELINES[kind]
    pipe = accelerate_pipeline(build(), "worldcache", threshold=1.0)
    run(pipe, 12)
    gc.collect()
    for _, hook in pipe.diffcache.hooks.values():
        assert hook.segment is None
        known = {pointer for model, _ in pipe.diffcache.hooks.values() for pointer in storages(model)}
        held = set(reachable_tensors([hook.segment, hook.progress.closed, pipe.diffcache.trajectories], [])) - known
        assert not held


def test_a_second_expert_frees_the_first_ones_memory():
    build, run = PIPELINES["wan-two-experts"]
    pipe = accelerate_pipeline(build(), "worldcache", threshold=1.0)
    first, second = (hook for _, hook in pipe.diffcache.hooks.values())
    seen = []

    def look(pipe, step, t, kwargs):
        if second.segment is not None:
            seen.append(first.segment)
        return kwargs

    run(pipe, 16, callback_on_step_end=look)
    assert seen
    assert all(segment is None for segment in seen)


def test_a_method_that_never_skips_stores_nothing():
    model = accelerate_model(FAMILIES["wan"].build(0), "none")
    ((_, hook),) = model.diffcache.hooks.values()
    for _ in walk_steps("wan", model, 6):
        assert not any(branch.cache.nbytes for branch in hook.segment.branches.values())


def test_a_loop_of_unknown_length_stores_nothing():
    kind = FAMILIES["wan"]
    model = accelerate_model(kind.build(0), "interval")
    ((_, hook),) = model.diffcache.hooks.values()
    for step in range(4):
        with torch.no_grad():
            model(
                hidden_states=kind.latents(0, 1, 2), timestep=kind.time(1 - step / 4)[None], **kind.conditioning(1, 1)
            )
        assert not any(branch.cache.nbytes for branch in hook.segment.branches.values())


def test_reset_frees_a_trajectory_that_was_never_finished():
    pipe = accelerate_pipeline(wan_pipeline(), "worldcache")

    def stop(pipe, step, t, kwargs):
        pipe._interrupt = step >= 5
        return kwargs

    run_wan(pipe, 12, callback_on_step_end=stop)
    pipe.diffcache.reset()
    assert all(hook.segment is None for _, hook in pipe.diffcache.hooks.values())
    assert not pipe.diffcache.stats().segments


def test_denoising_of_a_bare_model_is_nothing():
    model = FAMILIES["wan"].build(0)
    before = set(model.__dict__)
    with denoising(model, 3):
        assert set(model.__dict__) == before
