"""Generations that take turns on one pipeline or denoiser, each in a session of its own, go as if they were alone."""

from __future__ import annotations

import asyncio
import copy
import threading

import pytest
import torch

from diffcache import accelerate_model, accelerate_pipeline, denoising, restore

from .models import FAMILIES, run_wan, wan, wan_pipeline
from .states import attributes, forward_hooks

STEPS = 9
METHODS = {
    "output": dict(method="worldcache", threshold=1.0),
    "body": dict(method="interval", interval=3, predictor="linear", site="body"),
    "module": dict(method="fora", interval=3),
    "first": dict(method="fbcache", threshold=0.3, warmup=3),
}


def request(pipe, seed, steps=STEPS):
    """A generation by a server's own loop; yields after each step, returns what it got from the denoiser."""
    kind, model, sampler = FAMILIES["wan"], pipe.transformer, copy.deepcopy(pipe.scheduler)
    sampler.set_timesteps(steps)
    x, cond, empty = kind.latents(seed, 1, 2), kind.conditioning(seed + 100, 1), kind.conditioning(7, 1)
    outputs = []
    for t in sampler.timesteps:
        with torch.no_grad():
            with model.cache_context("cond"):
                v = model(hidden_states=x, timestep=t[None], **cond, return_dict=False)[0].clone()
            with model.cache_context("uncond"):
                w = model(hidden_states=x, timestep=t[None], **empty, return_dict=False)[0].clone()
        outputs += [v, w]
        x = sampler.step(w + 3.0 * (v - w), t, x, return_dict=False)[0]
        yield outputs


def alone(method, seed, steps=STEPS):
    pipe = accelerate_pipeline(wan_pipeline(), **METHODS[method])
    *_, outputs = request(pipe, seed, steps)
    return outputs, [s.decisions for s in pipe.diffcache.stats().segments]


def same(a, b):
    return len(a) == len(b) and all(map(torch.equal, a, b))


@pytest.mark.parametrize("method", METHODS)
def test_requests_that_take_turns_step_by_step(method):
    pipe = accelerate_pipeline(wan_pipeline(), **METHODS[method])
    handle, requests, outputs = pipe.diffcache, {seed: request(pipe, seed) for seed in (1, 2, 3)}, {}
    for turn in range(3 * STEPS):
        for key in requests:
            if turn >= 2 * key:  # they come at different times, and stay out of step
                with handle.session(key):
                    outputs[key] = next(requests[key], outputs.get(key))
    for key in outputs:
        wanted, letters = alone(method, key)
        assert same(outputs[key], wanted)
        with handle.session(key):
            assert [s.decisions for s in handle.stats().segments] == letters
    assert "c" in letters[0]
    assert not handle.stats().segments  # nothing happened outside of the sessions


def test_a_request_beside_the_pipelines_own_call():
    pipe = accelerate_pipeline(wan_pipeline(), **METHODS["output"])
    wanted = run_wan(accelerate_pipeline(wan_pipeline(), **METHODS["output"]), STEPS)
    beside = request(pipe, 1, STEPS - 1)

    def step(pipe, index, timestep, kwargs):
        with pipe.diffcache.session("beside"):
            outputs.append(next(beside, None))
        return {}

    outputs = []
    assert torch.equal(run_wan(pipe, STEPS, callback_on_step_end=step), wanted)
    assert same(outputs[-2], alone("output", 1, STEPS - 1)[0])


@pytest.mark.parametrize("method", METHODS)
def test_requests_in_threads(method):
    pipe = accelerate_pipeline(wan_pipeline(), **METHODS[method])
    outputs, start = {}, threading.Barrier(3)

    def serve(seed):
        start.wait()
        with pipe.diffcache.session(seed):
            *_, outputs[seed] = request(pipe, seed)

    threads = [threading.Thread(target=serve, args=(seed,)) for seed in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (1, 2, 3):
        assert same(outputs[seed], alone(method, seed)[0])


def test_requests_in_asyncio_tasks():
    pipe, outputs = accelerate_pipeline(wan_pipeline(), **METHODS["output"]), {}

    async def serve(seed):
        with pipe.diffcache.session(seed):
            for got in request(pipe, seed):
                outputs[seed] = got
                await asyncio.sleep(0)

    async def serve_all():
        await asyncio.gather(*(serve(seed) for seed in (1, 2)))

    asyncio.run(serve_all())
    for seed in (1, 2):
        assert same(outputs[seed], alone("output", seed)[0])


def test_loops_over_a_bare_denoiser_that_take_turns():
    kind = FAMILIES["wan"]

    def loop(model, seed):
        with denoising(model, STEPS):
            for step in range(STEPS):
                level = 1.0 - step / STEPS
                x = kind.latents(seed, 1, 2) * level
                yield model(x, kind.time(level)[None], **kind.conditioning(seed, 1), return_dict=False)[0].clone()

    with torch.no_grad():
        wanted = {seed: list(loop(accelerate_model(wan(), "interval", interval=3), seed)) for seed in (1, 2)}
        model = accelerate_model(wan(), "interval", interval=3)
        loops, outputs = {seed: loop(model, seed) for seed in (1, 2)}, {1: [], 2: []}
        for _ in range(STEPS + 1):
            for seed in loops:
                with model.diffcache.session(seed):
                    outputs[seed] += [x for x in [next(loops[seed], None)] if x is not None]
    assert all(same(outputs[seed], wanted[seed]) for seed in wanted)


def test_an_exception_in_one_session_leaves_the_others_alone():
    pipe = accelerate_pipeline(wan_pipeline(), **METHODS["output"])
    good, bad = request(pipe, 1), request(pipe, 2)
    for _ in range(5):
        with pipe.diffcache.session("good"):
            next(good)
        with pipe.diffcache.session("bad"):
            next(bad)
    with pipe.diffcache.session("bad"), pytest.raises(ValueError, match="broken"):
        _break(pipe, bad)
    with pipe.diffcache.session("good"):
        *_, outputs = good
    assert same(outputs, alone("output", 1)[0])


def _break(pipe, generation):
    def fail(*args):
        raise ValueError("broken")

    hook = pipe.transformer.blocks[0].register_forward_pre_hook(fail)
    try:
        for _ in generation:
            pass
    finally:
        hook.remove()


def cached(handle, key):
    with handle.session(key):
        segments = [hook.segment for _, hook in handle.hooks.values()]
        return sum(branch.cache.nbytes for s in segments if s is not None for branch in s.branches.values())


def test_memory_is_freed_when_a_session_ends_or_is_closed():
    pipe = accelerate_pipeline(wan_pipeline(), **METHODS["output"])
    handle, requests = pipe.diffcache, {key: request(pipe, key) for key in (1, 2)}
    for key in requests:
        with handle.session(key):
            for _ in range(5):
                next(requests[key])
    assert cached(handle, 1) == cached(handle, 2) > 0
    handle.close(1)
    handle.close("never opened")
    assert cached(handle, 1) == 0
    with handle.session(2):
        *_, _ = requests[2]
    assert cached(handle, 2) == 0


def test_reset_ends_every_session():
    pipe = accelerate_pipeline(wan_pipeline(), **METHODS["output"])
    under_way = request(pipe, 1)
    with pipe.diffcache.session(1):
        next(under_way)
    pipe.diffcache.reset()
    with pipe.diffcache.session(1):
        assert not pipe.diffcache.stats().segments


def test_restore_leaves_nothing_of_sessions_under_way():
    pipe = wan_pipeline()
    before = attributes(pipe.transformer)
    scheduler = dict(vars(pipe.scheduler))
    accelerate_pipeline(pipe, **METHODS["body"])
    under_way = request(pipe, 1)
    with pipe.diffcache.session(1):
        for _ in range(4):
            next(under_way)
        restore(pipe)
    assert attributes(pipe.transformer) == before
    assert forward_hooks(pipe.transformer) == 0
    assert vars(pipe.scheduler).keys() == scheduler.keys()
    *_, rest = under_way  # the same generation goes on, in full
    assert all(part.isfinite().all() for part in rest)


def test_ended_sessions_are_not_kept_for_ever():
    model = accelerate_model(wan(), "interval", interval=3)
    kind = FAMILIES["wan"]
    with torch.no_grad():
        for key in range(80):
            with model.diffcache.session(key), denoising(model, 1):
                model(kind.latents(0, 1, 1), kind.time(1.0)[None], **kind.conditioning(1, 1))
    assert len(list(model.diffcache.sessions)) < 80
