"""The laws on the trained models, through their pipelines' own ``__call__``; and one law of quality.

Nothing here knows the weights: whatever they have learned, the laws hold.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffcache import accelerate_pipeline, accelerated, restore
from diffcache.zoo import list_models, load_pipeline, loading
from diffcache.zoo.world import ACTIONS

from .models import decisions
from .reads import Reads, ignore_inside, watched
from .test_law_memory import formula
from .test_law_restore import attributes, forward_hooks

STEPS = 8

#: name -> settings with which it predicts at least two steps in a row of eight
METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "worldcache": dict(computed=0.5, threshold=math.inf),
    "worldcache:voyager": {},
    "interval:site=body": {},
}
SKIPPING = [name for name in METHODS if name != "none"]


@dataclass
class Trained:
    """A shipped pipeline, its example call, and what it gives without any method."""

    name: str
    pipe: Any
    call: dict[str, Any]
    kept: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)

    def run(self, seed: int = 0, steps: int = STEPS, **more: Any) -> np.ndarray:
        generator = torch.Generator().manual_seed(seed)
        return self.pipe(**self.call, num_inference_steps=steps, generator=generator, output_type="np", **more).frames

    def bare(self, seed: int = 0, steps: int = STEPS) -> np.ndarray:
        if (seed, steps) not in self.kept:
            restore(self.pipe)
            self.kept[seed, steps] = self.run(seed, steps)
        return self.kept[seed, steps]


def example_call(name: str) -> dict[str, Any]:
    """One held-out context with the actions of one chunk; or one of the prompts."""
    if name == "tiny-world":
        clips = load_file(loading.WEIGHTS / name / "clips.safetensors")
        context = {"image": clips["context_rgb"][0].numpy(), "depth": clips["context_depth"][0].numpy()}
        return context | {"actions": "".join(ACTIONS[k] for k in clips["actions"][0, :8].tolist())}
    entry = list_models()[name]
    size = {"height": entry.height, "width": entry.width, "num_frames": entry.num_frames}
    return {"prompt": "turns left", "guidance_scale": entry.guidance_scale, **size, **entry.call}


@pytest.fixture(scope="session")
def loaded() -> dict[str, Trained]:
    models = {}
    for name in ("tiny-world", "tiny-wan"):
        pipe, call = load_pipeline(name), example_call(name)
        pipe.set_progress_bar_config(disable=True)
        models[name] = Trained(name, pipe, call)
    return models


@pytest.fixture(params=["tiny-world", "tiny-wan"])
def trained(request, loaded):
    model = loaded[request.param]
    yield model
    restore(model.pipe)


@contextlib.contextmanager
def own_forward(model, wrap):
    """Put a forward of the test's on the instance, below any hook; ``wrap`` is undone at the end."""
    wrap(model)
    try:
        yield
    finally:
        del model.forward


# -- laws 1 to 3 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_method_that_never_skips_equals_the_bare_pipeline(trained, method):
    bare = trained.bare()
    accelerate_pipeline(trained.pipe, method, **METHODS[method] | {"max_skip": 0})
    assert np.array_equal(trained.run(), bare)
    assert {*decisions(trained.pipe)} == {"F" * STEPS}


@pytest.mark.parametrize("method", SKIPPING)
def test_a_skipping_method_skips_and_changes_the_picture(trained, method):
    """Without this the other laws would hold for a method that does nothing."""
    accelerate_pipeline(trained.pipe, method, **METHODS[method])
    frames = trained.run()
    assert all("cc" in letters for letters in decisions(trained.pipe))
    assert np.isfinite(frames).all()
    assert not np.array_equal(frames, trained.bare())


def carried(pipe) -> tuple[Any, ...]:
    model = pipe.transformer
    return set(vars(pipe)), set(vars(pipe.scheduler)), attributes(model), forward_hooks(model)


@pytest.mark.parametrize("method", METHODS)
def test_restored_pipeline_is_bare_again(trained, method):
    pipe = trained.pipe
    bare = trained.bare()
    before = carried(pipe)
    accelerate_pipeline(pipe, method, **METHODS[method])
    trained.run()
    restore(pipe)
    after = carried(pipe)
    assert after == before
    assert np.array_equal(trained.run(), bare)


@pytest.mark.parametrize("method", METHODS)
def test_one_seed_gives_one_result_whatever_ran_in_between(trained, method):
    accelerate_pipeline(trained.pipe, method, **METHODS[method])
    first, letters = trained.run(seed=1), decisions(trained.pipe)
    assert not np.array_equal(trained.run(seed=2, steps=6), first)
    assert np.array_equal(trained.run(seed=1), first)
    assert decisions(trained.pipe) == letters


@pytest.mark.parametrize("method", SKIPPING)
def test_chunks_of_a_rollout_are_trajectories_of_their_own(loaded, method):
    """A rollout of two chunks decides each chunk as it decides the chunk alone."""
    world = loaded["tiny-world"]
    first, both = [], []
    with accelerated(world.pipe, method, **METHODS[method]):
        note = lambda pipe, step, t, kwargs: both.append(kwargs["latents"].clone()) or {}  # noqa: E731
        pair = {**world.call, "actions": world.call["actions"] + "L8"}
        world.pipe(**pair, num_inference_steps=8, generator=torch.Generator().manual_seed(0), callback_on_step_end=note)
        assert all(len(letters) == 8 and letters.startswith("FFF") for letters in decisions(world.pipe))
        note = lambda pipe, step, t, kwargs: first.append(kwargs["latents"].clone()) or {}  # noqa: E731
        world.run(steps=8, callback_on_step_end=note)
    assert len(both) == 16
    assert all(torch.equal(a, b) for a, b in zip(first, both, strict=False))


# -- law 4 -------------------------------------------------------------------------------------------------------------


def reads_per_step(trained: Trained, method: str | None) -> tuple[list[int], list[str]]:
    """Host reads outside the bare model in each step; what the pipeline and the sampler read is among them."""
    reads, marks = Reads(), []
    note = lambda pipe, step, t, kwargs: marks.append(reads.count) or {}  # noqa: E731
    model = trained.pipe.transformer
    with own_forward(model, lambda m: ignore_inside(m, reads)):
        if method is not None:
            accelerate_pipeline(trained.pipe, method, **METHODS[method])
        with watched(reads):
            trained.run(callback_on_step_end=note)
        letters = decisions(trained.pipe) if method is not None else []
        restore(trained.pipe)
    return [b - a for a, b in zip([0, *marks], marks, strict=False)], letters


@pytest.mark.parametrize("method", METHODS)
def test_one_read_for_a_computed_step_and_none_for_a_predicted_one(trained, method):
    bare, _ = reads_per_step(trained, None)
    ours, letters = reads_per_step(trained, method)
    assert len(ours) == len(bare) == STEPS
    assert len({*letters}) == 1
    for step, letter in enumerate(letters[0]):
        allowed = 1 if letter == "F" else 0  # in the first step the clock reads the sampler's timesteps
        allowed += step == 0 and "body" in method  # a body is proved once, in its model's first computed step
        assert ours[step] - bare[step] <= allowed, (step, letters, ours, bare)


# -- law 5 -------------------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


@pytest.mark.parametrize("method", METHODS)
def test_an_exception_in_a_callback_leaves_the_next_generation_clean(trained, method):
    def fail(pipe, step, t, kwargs):
        if step == 5:
            raise Stop
        return kwargs

    accelerate_pipeline(trained.pipe, method, **METHODS[method])
    wanted, letters = trained.run(seed=1), decisions(trained.pipe)
    with pytest.raises(Stop):
        trained.run(seed=2, callback_on_step_end=fail)
    assert np.array_equal(trained.run(seed=1), wanted)
    assert decisions(trained.pipe) == letters


# -- law 6 -------------------------------------------------------------------------------------------------------------


def hold_input(model):
    """Make the first sample and timestep that the model sees those of every call."""
    inner, first = model.forward, {}

    def forward(*args, **kwargs):
        for name in ("hidden_states", "timestep"):
            kwargs[name] = first.setdefault(name, kwargs[name].clone())
        return inner(*args, **kwargs)

    model.forward = forward


@pytest.mark.parametrize("method", METHODS)
def test_constant_input_reproduces_the_dense_output(trained, method):
    model = trained.pipe.transformer
    with own_forward(model, hold_input):
        dense = trained.run()
        accelerate_pipeline(trained.pipe, method, **METHODS[method])
        frames = trained.run()
        assert method == "none" or "c" in decisions(trained.pipe)[0]
        restore(trained.pipe)
    assert not np.array_equal(dense, trained.bare())
    np.testing.assert_allclose(frames, dense, rtol=0, atol=1e-4)


# -- law 8 -------------------------------------------------------------------------------------------------------------


def shapes(trained: Trained) -> tuple[torch.Size, torch.Size]:
    """Shapes of the denoiser's output and of what goes from block to block."""
    model, seen = trained.pipe.transformer, {}
    blocks = model.blocks if hasattr(model, "blocks") else model.transformer_blocks
    handles = [
        model.register_forward_hook(lambda m, a, out: seen.update(output=out[0].shape)),
        blocks[-1].register_forward_hook(
            lambda m, a, out: seen.update(body=(out[0] if isinstance(out, tuple) else out).shape)
        ),
    ]
    restore(trained.pipe)
    trained.run(steps=1)
    for handle in handles:
        handle.remove()
    return seen["output"], seen["body"]


@pytest.mark.parametrize("stacked", [False, True], ids=["one", "modalities"])
@pytest.mark.parametrize("method", METHODS)
def test_cached_bytes_equal_the_formula(trained, method, stacked):
    world = trained.name == "tiny-world"
    if stacked and not (world and method.startswith("worldcache")):
        pytest.skip("no modalities")
    output, body = shapes(trained)
    own = trained.pipe.modalities if world else ()  # the pipeline names its own; one group must be asked for
    widths = own if stacked else (sum(own),) if world and method.startswith("worldcache") else ()
    accelerate_pipeline(trained.pipe, method, **METHODS[method] | ({"modalities": widths} if len(widths) == 1 else {}))
    trained.run()
    wanted = {
        "none": 0,
        "interval:site=body": 4 * body.numel(),  # reuse: one residual
    }.get(method)
    if wanted is None:
        like = torch.empty(output, device="meta")
        kind = "faithful" if method.endswith("voyager") else "sample"
        wanted = formula(like, 1, kind, len(widths) or 1, 2 if world else 1)
    assert {s.cached_bytes for s in trained.pipe.diffcache.stats().segments} == {wanted}


# -- quality -----------------------------------------------------------------------------------------------------------


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.square(a - b).mean()))


def closeness(trained: Trained, steps: int, run_steps: int, method: str | None, **settings: Any) -> tuple[float, int]:
    """PSNR against ``steps`` dense steps, mean of two seeds; and the computed steps (the largest of the runs)."""
    values, computed = [], []
    for seed in (0, 1):
        dense = trained.bare(seed, steps)
        if method is None:
            frames = trained.bare(seed, run_steps)
            computed.append(run_steps)
        else:
            with accelerated(trained.pipe, method, **settings):
                frames = trained.run(seed, run_steps)
                computed.append(decisions(trained.pipe)[0].count("F"))
        values.append(psnr(frames, dense))
    return float(np.mean(values)), max(computed)


def test_worldcache_is_closer_to_dense_than_fewer_steps_and_than_interval_reuse(trained):
    steps, half = 40, 20
    ours, computed = closeness(trained, steps, steps, "worldcache", computed=half, threshold=math.inf)
    assert computed == half
    fewer, _ = closeness(trained, steps, half, None)
    reuse, theirs = closeness(trained, steps, steps, "interval", predictor="reuse", interval=2, warmup=1)
    assert theirs >= half
    print(f"{trained.name}: worldcache {ours:.2f} dB, {half} steps {fewer:.2f} dB, reuse ({theirs}) {reuse:.2f} dB")
    assert ours > fewer
    assert ours > reuse
