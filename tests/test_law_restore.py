"""Law 2: after restore the model is bit-identical and carries nothing of ours; other people's hooks keep working."""

from __future__ import annotations

import pytest
import torch
from diffusers.hooks import HookRegistry, ModelHook

from diffcache import accelerate_model, accelerate_pipeline, restore

from .cases import SKIPPING
from .models import FAMILIES, PIPELINES, decisions, denoisers, sample
from .states import attributes, forward_hooks, with_own_forward


@pytest.mark.parametrize("case", SKIPPING)
@pytest.mark.parametrize("family", FAMILIES)
def test_model_is_bare_again(family, case):
    name, settings = SKIPPING[case]
    model = FAMILIES[family].build(0)
    bare = sample(family, model, 6)
    before = attributes(model)
    accelerate_model(model, name, **{**settings, "warmup": 3})
    sample(family, model, 8)
    assert "c" in "".join(decisions(model))
    restore(model)
    assert attributes(model) == before
    assert forward_hooks(model) == 0
    assert sample(family, model, 6).equals(bare)


@pytest.mark.parametrize("site", ["output", "body"])
@pytest.mark.parametrize("kind", PIPELINES)
def test_pipeline_is_bare_again(kind, site):
    build, run = PIPELINES[kind]
    pipe = build()
    bare = run(pipe, 6)  # a pipeline's own cache_context leaves an empty registry: part of "before"
    before = set(pipe.__dict__), set(pipe.scheduler.__dict__), [attributes(m) for m in denoisers(pipe)]
    accelerate_pipeline(pipe, "interval", site=site)
    run(pipe, 9)
    assert "c" in "".join(decisions(pipe))
    restore(pipe)
    assert (set(pipe.__dict__), set(pipe.scheduler.__dict__), [attributes(m) for m in denoisers(pipe)]) == before
    assert torch.equal(run(pipe, 6), bare)


def test_restore_in_mid_trajectory_leaves_the_rest_bare():
    model = FAMILIES["wan"].build(0)
    bare = sample("wan", model, 8)
    before = attributes(model)
    accelerate_model(model, "interval", interval=2, site="body")
    half = sample("wan", model, 8, before=lambda step: restore(model) if step == 4 else None)
    assert attributes(model) == before
    assert len(half.outputs) == len(bare.outputs)
    assert sample("wan", model, 8).equals(bare)


def test_restore_twice_and_on_a_bare_model_changes_nothing():
    model = FAMILIES["wan"].build(0)
    before = attributes(model)
    restore(model)
    accelerate_model(model, "worldcache")
    restore(model)
    restore(model)
    assert attributes(model) == before


def test_a_user_forward_of_the_instance_survives():
    model = FAMILIES["wan"].build(0)
    forward, calls = with_own_forward(model)
    accelerate_model(model, "interval")
    sample("wan", model, 6)
    assert calls
    restore(model)
    assert model.forward is forward


class Doubler(ModelHook):
    """A foreign hook that replaces forward: it works if the output is twice as large."""

    def new_forward(self, module, *args, **kwargs):
        (value,) = self.fn_ref.original_forward(*args, **kwargs)
        return (value * 2,)


class Shifter(ModelHook):
    """A foreign hook without a forward of its own."""

    def post_forward(self, module, output):
        return (output[0] + 1,)


def call(model):
    kind = FAMILIES["wan"]
    with torch.no_grad():
        return model(
            hidden_states=kind.latents(0, 1, 2),
            timestep=torch.tensor([500.0]),
            **kind.conditioning(1, 1),
            return_dict=False,
        )[0]


EFFECT = {Doubler: lambda value: value * 2, Shifter: lambda value: value + 1}


@pytest.mark.parametrize("site", ["output", "body"])
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("foreign", EFFECT)
def test_a_foreign_hook_works_with_ours_on_and_after_restore(foreign, order, site):
    model = FAMILIES["wan"].build(0)
    wanted = EFFECT[foreign](call(model))
    registry = HookRegistry.check_if_exists_or_initialize(model)
    if order == "before":
        registry.register_hook(foreign(), "foreign")
    accelerate_model(model, "interval", interval=2, site=site)
    if order == "after":
        HookRegistry.check_if_exists_or_initialize(model).register_hook(foreign(), "foreign")
    assert torch.equal(call(model), wanted)
    sample("wan", model, 8)
    assert "c" in decisions(model)[0]
    restore(model)
    assert torch.equal(call(model), wanted)
    model._diffusers_hook.remove_hook("foreign", recurse=False)
    assert not torch.equal(call(model), wanted)


@pytest.mark.parametrize("foreign", EFFECT)
def test_removing_an_earlier_foreign_hook_neither_disables_ours_nor_comes_back(foreign):
    model = FAMILIES["wan"].build(0)
    bare = call(model)
    registry = HookRegistry.check_if_exists_or_initialize(model)
    registry.register_hook(foreign(), "foreign")
    accelerate_model(model, "interval", interval=2)
    registry.remove_hook("foreign", recurse=False)
    assert torch.equal(call(model), bare)
    sample("wan", model, 8)
    assert "c" in "".join(decisions(model))
    restore(model)
    assert torch.equal(call(model), bare)


@pytest.mark.parametrize("order", ["before", "after"])
def test_layerwise_casting_survives(order):
    model = FAMILIES["wan"].build(0)

    def cast():
        model.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)

    if order == "before":
        cast()
    accelerate_model(model, "interval", interval=2, site="body")
    if order == "after":
        cast()
    sample("wan", model, 8)
    assert "c" in decisions(model)[0]
    restore(model)
    assert model.blocks[0].ffn.net[0].proj.weight.dtype == torch.bfloat16
    assert call(model).isfinite().all()  # raises on mixed types where the casting was lost
