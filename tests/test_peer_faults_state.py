"""What cache-dit 1.5.3 and diffusers 0.42.1 get wrong, and must hold here: state, hooks, host reads and graphs."""

from __future__ import annotations

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, WanPipeline
from diffusers.hooks import HookRegistry
from torch._dynamo.utils import counters

from diffcache import (
    ConfigError,
    ScheduleFileError,
    UnsupportedModelError,
    accelerate_model,
    accelerate_pipeline,
    denoising,
    restore,
)

from .composing import LETTERS, alone, composed
from .models import (
    FAMILIES,
    decisions,
    run_wan,
    sample,
    walk_steps,
    wan,
    wan_pipeline,
    wan_two_experts,
)
from .states import attributes, forward_hooks
from .test_composition_compile import WAYS, Graphs
from .test_composition_modular import modular
from .test_composition_modular import run as run_modular
from .test_law_restore import EFFECT, call
from .test_signals import reads_of

SITES = ["output", "body", "module"]

# -- what a run leaves behind ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", SITES)
def test_a_run_broken_off_leaves_nothing_to_the_next_prompt(site):
    """cache-dit 1.5.3: 3 of 6 steps, then another prompt: the first 4 steps are off by 24 %."""
    model = accelerate_model(wan(), "interval", interval=3, site=site)
    wanted = sample("wan", model, 6, seed=2)

    def stop(step):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample("wan", model, 6, seed=1, before=stop)
    assert sample("wan", model, 6, seed=2).equals(wanted)

    for step in walk_steps("wan", model, 6, seed=1):  # left without an exception
        if step == 2:
            break
    assert sample("wan", model, 6, seed=2).equals(wanted)


def interrupted(pipe, step, t, kwargs):
    pipe._interrupt = step >= 3  # the pipeline's own way: the remaining steps are passed over
    return kwargs


def failing(pipe, step, t, kwargs):
    if step == 3:
        raise RuntimeError("stop")
    return kwargs


@pytest.mark.parametrize("size", [2, 3], ids=["same resolution", "another resolution"])
@pytest.mark.parametrize("site", SITES)
def test_a_generation_that_fails_leaves_nothing_to_the_next_one(site, size):
    """diffusers 0.42.1: after an exception another resolution raises, and the same one reuses old residuals."""
    fresh = accelerate_pipeline(wan_pipeline(), "interval", interval=3, site=site)
    wanted = run_wan(fresh, 9, size=size)
    pipe = accelerate_pipeline(wan_pipeline(), "interval", interval=3, site=site)
    with pytest.raises(RuntimeError, match="stop"):
        run_wan(pipe, 9, seed=1, callback_on_step_end=failing)
    assert torch.equal(run_wan(pipe, 9, size=size), wanted)
    run_wan(pipe, 9, seed=1, callback_on_step_end=interrupted)
    assert torch.equal(run_wan(pipe, 9, size=size), wanted)
    assert decisions(pipe) == [LETTERS] * 2


@pytest.mark.parametrize("site", SITES)
def test_a_modular_pipeline_that_fails_leaves_nothing_to_the_next_run(site):
    """diffusers 0.42.1: modular pipelines never reset their caches."""
    pipe = accelerate_pipeline(modular(), "interval", interval=3, site=site)
    wanted = run_modular(pipe)
    calls = iter(range(100))

    def fail(module, args):
        if next(calls) == 7:
            raise RuntimeError("stop")

    handle = pipe.transformer.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="stop"):
        run_modular(pipe, seed=1)
    handle.remove()
    for _ in range(2):
        assert torch.equal(run_modular(pipe), wanted)
        assert decisions(pipe) == [LETTERS] * 2


# -- whom a method touches ---------------------------------------------------------------------------------------------


def test_pipelines_of_one_class_know_nothing_of_each_other():
    """cache-dit 1.5.3: patches the class: enabling one pipeline marks all, disabling it breaks even fresh ones."""
    members = {cls: dict(vars(cls)) for cls in (*WanPipeline.__mro__, *type(wan()).__mro__)}
    bare = run_wan(wan_pipeline(), 4)
    one, other = wan_pipeline(), wan_pipeline()
    accelerate_pipeline(one, "interval", interval=3)
    assert not hasattr(other, "diffcache")
    assert torch.equal(run_wan(other, 4), bare)
    run_wan(one, 9)
    restore(one)
    for pipe in (one, other, wan_pipeline()):
        assert torch.equal(run_wan(pipe, 4), bare)
    assert all(dict(vars(cls)) == before for cls, before in members.items())


class Named(DiffusionPipeline):
    """A pipeline whose denoiser is not called transformer."""

    def __init__(self, scheduler, net):
        super().__init__()
        self.register_modules(scheduler=scheduler, net=net)

    def __call__(self, steps):
        self.scheduler.set_timesteps(steps)
        kind, x = FAMILIES["wan"], FAMILIES["wan"].latents(0, 1, 2)
        with torch.no_grad():
            for t in self.scheduler.timesteps:
                x = self.scheduler.step(self.net(x, t[None], **kind.conditioning(1, 1)).sample, t, x).prev_sample
        return x


PIPES = {
    "two experts": (wan_two_experts, lambda pipe: run_wan(pipe, 16)),
    "a name of its own": (lambda: Named(FlowMatchEulerDiscreteScheduler(), wan()), lambda pipe: pipe(9)),
}


@pytest.mark.parametrize("kind", PIPES)
def test_restore_finds_every_denoiser_whatever_it_is_called(kind):
    """cache-dit 1.5.3: ``disable_cache`` looks at ``transformer`` and ``transformer_2`` alone."""
    build, go = PIPES[kind]
    pipe = build()
    models = [m for m in pipe.components.values() if isinstance(m, torch.nn.Module)]
    bare = go(pipe)  # a pipeline's cache_context leaves diffusers' registry behind
    before = [attributes(m) for m in models]
    accelerate_pipeline(pipe, "interval", interval=3, site="module")
    assert not torch.equal(go(pipe), bare)
    assert {s.expert for s in pipe.diffcache.stats().segments} <= set(pipe.components)
    assert all("c" in letters for letters in decisions(pipe))
    restore(pipe)
    assert [attributes(m) for m in models] == before
    assert not any(forward_hooks(m) for m in models)
    assert torch.equal(go(pipe), bare)


# -- hooks and contexts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("foreign", EFFECT)
def test_of_two_hooks_on_a_module_one_can_be_removed(foreign, site):
    """diffusers 0.42.1: removing the first of two hooks that replace forward disables the second."""
    for theirs_first in (True, False):
        model = wan()
        bare = call(model)
        registry = HookRegistry.check_if_exists_or_initialize(model)
        if theirs_first:
            registry.register_hook(foreign(), "foreign")
        accelerate_model(model, "interval", interval=3, site=site)
        if not theirs_first:
            registry.register_hook(foreign(), "foreign")
        restore(model)
        assert torch.equal(call(model), EFFECT[foreign](bare))  # theirs works without ours
        accelerate_model(model, "interval", interval=3, site=site)
        registry.remove_hook("foreign", recurse=False)
        assert torch.equal(call(model), bare)
        sample("wan", model, 9)
        assert decisions(model) == [LETTERS] * 2  # ours works without theirs


def test_contexts_may_be_nested():
    """diffusers 0.42.1: leaving an inner ``cache_context`` clears the outer one, and the next call raises."""
    kind = FAMILIES["wan"]
    texts = {name: kind.conditioning(seed, 1) for name, seed in (("cond", 100), ("uncond", 7))}

    def outputs(nested):
        model, found = accelerate_model(wan(), "interval", interval=3), []

        def one(name, step):
            x = kind.latents(0, 1, 2) * (1 - step / 18)
            found.append(model(x, kind.time(1 - step / 9)[None], **texts[name], return_dict=False)[0].clone())

        with torch.no_grad(), denoising(model, 9):
            for step in range(9):
                if nested:
                    with model.cache_context("cond"):
                        with model.cache_context("uncond"):
                            one("uncond", step)
                        one("cond", step)
                else:
                    for name in ("uncond", "cond"):
                        with model.cache_context(name):
                            one(name, step)
        stats = model.diffcache.stats()
        assert not any(segment.fallbacks for segment in stats.segments)
        return found, decisions(model)

    (plain, letters), (nested, same) = outputs(False), outputs(True)
    assert letters == same == [LETTERS] * 2
    assert all(torch.equal(a, b) for a, b in zip(nested, plain, strict=True))


REFUSED = {
    "a value out of range": (ConfigError, "fbcache", dict(threshold=-1)),
    "more blocks than there are": (ConfigError, "fbcache", dict(first=2)),
    "no such module": (UnsupportedModelError, "pab", dict(spatial=None, cross=None)),
    "no such file": (ScheduleFileError, "magcache", dict(schedule="nowhere.safetensors")),
    "no calibration": (ConfigError, "teacache", {}),
}


@pytest.mark.parametrize("earlier", [False, True], ids=["on a bare model", "on an accelerated model"])
@pytest.mark.parametrize("why", REFUSED)
def test_a_method_that_is_refused_leaves_the_model_as_it_was(why, earlier):
    """diffusers 0.42.1: an ``enable_cache`` that fails leaves hooks behind, and the cache counts as enabled."""
    error, method, settings = REFUSED[why]
    pipe = wan_two_experts()
    if earlier:
        accelerate_pipeline(pipe, "interval", interval=3)
    models, wanted = (pipe.transformer, pipe.transformer_2), run_wan(pipe, 9)
    before, hooks = [attributes(m) for m in models], [forward_hooks(m) for m in models]
    with pytest.raises(error):
        accelerate_pipeline(pipe, method, **settings)
    assert [attributes(m) for m in models] == before
    assert [forward_hooks(m) for m in models] == hooks
    assert hasattr(pipe, "diffcache") == earlier
    assert torch.equal(run_wan(pipe, 9), wanted)


def test_what_the_second_expert_refuses_is_not_left_on_the_first():
    """diffusers 0.42.1: as above, with two experts of unlike depth."""
    pipe = wan_two_experts()
    pipe.transformer_2 = wan(1, layers=1)
    wanted = run_wan(pipe, 4)
    before = attributes(pipe.transformer)
    with pytest.raises(ConfigError, match=r"first \+ last must be < 1"):
        accelerate_pipeline(pipe, "fbcache")
    assert attributes(pipe.transformer) == before
    assert torch.equal(run_wan(pipe, 4), wanted)


# -- host reads and graphs ---------------------------------------------------------------------------------------------

#: every schedule that listens to something measured
DRIFTS = {
    "worldcache": dict(computed=0.5, threshold=0.5),
    "worldcache:voyager": dict(warmup=3, threshold=5.0),
    "fbcache": dict(threshold=0.6, max_skip=3),
    "teacache": dict(threshold=1.0, polynomial=(1.0, 0.0)),
    "easycache": dict(threshold=1.0, warmup=2),
}


@pytest.mark.parametrize("method", DRIFTS)
@pytest.mark.parametrize("family", ["wan", "cogvideox", "flux"])
def test_a_call_reads_the_device_once_at_most(family, method):
    """cache-dit 1.5.3: one ``item()`` for every decision of every block list and branch, whatever is decided."""
    model = FAMILIES[family].build(0)
    assert not any(reads_of(family, model))
    accelerate_model(model, method, **DRIFTS[method])
    counts = reads_of(family, model)
    branches = decisions(model)
    assert "c" in branches[0]
    # what only looks at outputs is read once for all branches; what listens, once a call
    most = 1 if method.startswith("worldcache") else len(branches)
    assert 1 <= max(counts[1:]) <= most, counts


#: what is compiled, the site, and how many graphs there are then: of the denoiser, or of its one kind of block
COMPILED = [("in place", "output", 1), ("wrapped", "output", 1), ("blocks", "body", 1), ("blocks", "output", 1)]


@pytest.mark.parametrize(("way", "site", "count"), COMPILED)
def test_what_is_compiled_stays_one_graph_whatever_the_steps_do(way, site, count):
    """cache-dit 1.5.3: 8 graphs in 6 steps. diffusers 0.42.1: 4 to 14 graphs, up to 7 breaks, one more graph a step."""
    torch.compiler.reset()
    counters.clear()
    graphs = Graphs()
    try:
        pipe = composed(WAYS[way](graphs), "after", site=site)
        assert torch.equal(run_wan(pipe, 9), alone(site))
        assert decisions(pipe) == [LETTERS] * 2
        assert len(graphs) == count
        assert not counters["graph_break"]
    finally:
        torch.compiler.reset()
