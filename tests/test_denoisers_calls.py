"""Calls that differ in more than their tensors: modes, layers left out, modalities left out, lists that are emptied."""

from __future__ import annotations

import pytest
import torch

from diffcache import UnsupportedModelError, accelerate_model, denoising, restore
from diffcache.hooks.outputs import flatten

from .denoisers import DENOISERS
from .denoisers.running import STEPS, equal, method_on, model_of, run
from .models import normal


def both(name, site, change):
    """Two calls a step, the second with ``change``: outputs of each, and the stats."""
    model, arguments = model_of(name), DENOISERS[name].trajectory()
    outputs = [[], []]
    with method_on(name, site), torch.no_grad(), denoising(model, STEPS):
        for step in range(STEPS):
            usual = arguments(1.0 - step / STEPS)
            for kept, call in zip(outputs, (usual, {**usual, **change}), strict=True):
                kept.append([t.clone() for t in flatten(model(**call))[0]])
        stats = model.diffcache.stats()
    return outputs, stats


#: arguments by which pipelines tell two calls of a step apart although prompt and sample are the same objects
SWITCHES = {
    "SD3Transformer2DModel": {"skip_layers": [1]},
    "LTX2VideoTransformer3DModel": {"isolate_modalities": True},
    "LatteTransformer3DModel": {"enable_temporal_attentions": False},
    "WanAnimate2Transformer3DModel": {"is_uncondtion": True},
}


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_makes_a_branch_of_its_own(name):
    (usual, changed), stats = both(name, "output", SWITCHES[name])
    assert len(stats.segments) == 2
    assert all("c" in segment.decisions and not segment.fallbacks for segment in stats.segments)
    with method_on(name, "output"):
        assert equal(run(name), usual)
        alone = run(name, before=lambda step, arguments: {**arguments, **SWITCHES[name]})
    assert equal(alone, changed)


@pytest.mark.parametrize("name", [n for n in SWITCHES if n != "LatteTransformer3DModel"])
def test_a_body_whose_calls_differ_is_never_wrong(name):
    """A call that runs other blocks has a body of its own: it is found anew, or the step is computed."""
    (usual, changed), stats = both(name, "body", SWITCHES[name])
    model, arguments = model_of(name), DENOISERS[name].trajectory()
    for segment, outputs, change in zip(stats.segments, (usual, changed), ({}, SWITCHES[name]), strict=True):
        for step, letter in enumerate(segment.decisions):
            if letter == "F":
                with torch.no_grad():
                    dense = flatten(model(**{**arguments(1.0 - step / STEPS), **change}))[0]
                assert all(torch.equal(a, b) for a, b in zip(outputs[step], dense, strict=True))


@pytest.mark.parametrize("site", ["output", "body"])
def test_a_modality_may_be_left_out_in_mid_trajectory(site):
    name = "Kandinsky6Transformer3DModel"

    def silent(step, arguments):
        return {k: v for k, v in arguments.items() if k != "audio_hidden_states"} if step >= 3 else arguments

    wanted = run(name, before=silent)
    with method_on(name, site) as model:
        outputs = run(name, before=silent)
        letters = model.diffcache.stats().segments[0].decisions
    assert letters[3] == "F"
    assert [len(output) for output in outputs] == [2, 2, 2, 1, 1]
    assert equal(
        [outputs[i] for i, s in enumerate(letters) if s == "F"], [wanted[i] for i, s in enumerate(letters) if s == "F"]
    )


def test_a_list_that_the_model_empties_is_given_whole_to_the_proof():
    """HunyuanDiT takes the ControlNet's residuals out of the list that it was given."""
    name = "HunyuanDiT2DModel"
    residual = normal(1, 8, 16, seed=9)

    def controlled(step, arguments):
        return {**arguments, "controlnet_block_samples": [residual]}

    wanted = run(name, before=controlled)
    with method_on(name, "body") as model:
        outputs = run(name, before=controlled)
        (segment,) = model.diffcache.stats().segments
    assert "c" in segment.decisions
    assert equal(outputs[:3], wanted[:3])


def test_a_reference_pass_is_computed_and_stays_apart():
    """WanAnimate 2 fills its cache of keys in a call of its own, before the first step."""
    name = "WanAnimate2Transformer3DModel"
    model, arguments = model_of(name), DENOISERS[name].trajectory()
    with method_on(name, "output"), torch.no_grad(), denoising(model, STEPS):
        for step in range(STEPS):
            call = arguments(1.0 - step / STEPS)
            if step == 0:
                grid = torch.tensor([[2, 4, 2]])
                model(**{**call, "kv_cache_mode": "extract", "offset_grid_sizes": grid})
                call["kv_cache"].get(0).store(normal(1, 8, 2, 12, seed=1), normal(1, 8, 2, 12, seed=2))
                call["kv_cache"].get(1).store(normal(1, 8, 2, 12, seed=3), normal(1, 8, 2, 12, seed=4))
            model(**call)
        reference, steps = model.diffcache.stats().segments
    assert reference.decisions.strip("-") == "F"
    assert "c" in steps.decisions
    assert not steps.fallbacks


class Leaky(torch.nn.Module):
    """A denoiser whose blocks also speak through an attribute: skipping them leaves that as it was."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList([Speaking() for _ in range(2)])
        self.norm = torch.nn.LayerNorm(8)

    def forward(self, hidden_states, timestep):
        for block in self.blocks:
            hidden_states = block(hidden_states * (1 + timestep))
        return self.norm(hidden_states) + sum(block.said.pop() for block in self.blocks)


class Speaking(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = torch.nn.Linear(8, 8)
        self.said = []

    def forward(self, hidden_states):
        self.said.append(hidden_states.mean())
        return hidden_states + self.attn(hidden_states)


def test_a_body_that_cannot_be_proved_is_refused_before_anything_is_predicted():
    model = accelerate_model(Leaky().eval(), "interval", site="body")
    with torch.no_grad(), denoising(model, STEPS), pytest.raises(UnsupportedModelError, match="use site output"):
        model(hidden_states=normal(1, 4, 8, seed=0), timestep=torch.tensor(0.5))
    restore(model)
    accelerate_model(model, "interval", interval=3, warmup=2)
    with torch.no_grad(), denoising(model, STEPS):
        for step in range(STEPS):
            model(hidden_states=normal(1, 4, 8, seed=0) * (1 - step / 9), timestep=torch.tensor(0.5 - step / 20))
    assert "c" in model.diffcache.stats().segments[0].decisions
