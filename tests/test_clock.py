"""The clock: where a trajectory begins, how long it is, and which step a call belongs to."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.models.attention import BasicTransformerBlock
from torch import nn

from diffcache import NothingSkippedWarning, accelerate_model, accelerate_pipeline, denoising, restore
from diffcache.hooks.timesteps import host_value
from diffcache.hooks.timesteps import index_of as first_index

from .models import FAMILIES, decisions, dit_pipeline, run_dit, run_wan, sample, seeded, wan_pipeline
from .reads import Reads, watched

SCHEDULERS = {
    "flow-euler": FlowMatchEulerDiscreteScheduler,
    "flow-heun": FlowMatchHeunDiscreteScheduler,
    "unipc": lambda: UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    "dpm": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    "ddim": DDIMScheduler,
}


def scheduled(model, scheduler, steps, start=0, begin_index=False, announce=True):
    """A loop with a diffusers sampler; ``start`` > 0 begins late, as image-to-image does."""
    kind = FAMILIES["wan"]
    x = kind.latents(0, 1, 2)
    with torch.no_grad(), denoising(model, steps, scheduler if announce else None):
        scheduler.set_timesteps(steps)
        if begin_index:
            scheduler.set_begin_index(start)
        for t in scheduler.timesteps[start:]:
            hidden = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            v = model(hidden_states=hidden, timestep=t[None], **kind.conditioning(1, 1), return_dict=False)[0]
            x = scheduler.step(v, t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_call_of_a_sampler_is_a_step(name):
    """Samplers of second order call twice a step; their timestep list counts the calls."""
    scheduler = SCHEDULERS[name]()
    model = accelerate_model(FAMILIES["wan"].build(0), "interval", interval=3, warmup=3)
    scheduled(model, scheduler, 9)
    calls = len(scheduler.timesteps)
    (letters,) = decisions(model)
    assert len(letters) == calls
    assert letters == ("FFFcc" + "Fcc" * calls)[: calls - 1] + "F"
    assert not model.diffcache.stats().segments[0].fallbacks


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("begin_index", [False, True])
def test_a_late_start_counts_the_steps_that_run(name, begin_index):
    scheduler = SCHEDULERS[name]()
    if not hasattr(scheduler, "set_begin_index"):
        pytest.skip("this sampler has no begin index")
    model = accelerate_model(FAMILIES["wan"].build(0), "interval", interval=3, warmup=3)
    scheduled(model, scheduler, 14, start=4, begin_index=begin_index)
    calls = len(scheduler.timesteps) - 4
    assert decisions(model) == [("FFFcc" + "Fcc" * calls)[: calls - 1] + "F"]


@pytest.mark.parametrize("name", ["flow-euler", "unipc", "ddim"])
def test_the_samplers_steps_need_not_be_announced_to_the_clock(name):
    model = accelerate_model(FAMILIES["wan"].build(0), "interval", interval=3, warmup=3)
    scheduled(model, SCHEDULERS[name](), 9, announce=False)
    assert decisions(model) == ["FFFccFccF"]


@pytest.mark.parametrize("axis", ["sigma", "logsnr"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_noise_axes_work_with_every_sampler(name, axis):
    model = accelerate_model(FAMILIES["wan"].build(0), "interval", interval=3, warmup=3, predictor="linear", axis=axis)
    latents = scheduled(model, SCHEDULERS[name](), 9)
    assert latents.isfinite().all()
    assert "c" in decisions(model)[0]


def test_the_axis_matters():
    runs = []
    for axis in ("index", "sigma", "logsnr"):
        model = accelerate_model(
            FAMILIES["wan"].build(0), "interval", interval=3, warmup=3, predictor="linear", axis=axis
        )
        runs.append(scheduled(model, FlowMatchEulerDiscreteScheduler(shift=5.0), 9))
    assert not torch.allclose(runs[0], runs[1])
    assert not torch.allclose(runs[1], runs[2])


def test_signatures_and_scheduler_behaviour_are_kept():
    pipe = wan_pipeline()
    before = {n: inspect.signature(getattr(pipe.scheduler, n)) for n in ("set_timesteps", "step")}
    accelerate_pipeline(pipe, "interval")
    assert {n: inspect.signature(getattr(pipe.scheduler, n)) for n in before} == before
    pipe.scheduler.set_timesteps(7)
    assert len(pipe.scheduler.timesteps) == 7


def test_set_timesteps_begins_a_trajectory():
    pipe = accelerate_pipeline(wan_pipeline(), "interval", interval=3)
    wanted = run_wan(pipe, 9)
    pipe.scheduler.set_timesteps(20)  # as a user does to look at the schedule
    pipe.scheduler.set_timesteps(5)
    assert torch.equal(run_wan(pipe, 9), wanted)
    assert pipe.diffcache.stats().steps == 9


def test_a_scheduler_put_in_after_acceleration_is_followed():
    pipe = accelerate_pipeline(wan_pipeline(), "interval", interval=3)
    run_wan(pipe, 6)
    old = pipe.scheduler
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    new_keys = set(pipe.scheduler.__dict__)
    fresh = accelerate_pipeline(wan_pipeline(scheduler=FlowMatchEulerDiscreteScheduler()), "interval", interval=3)
    for _ in range(2):
        assert torch.equal(run_wan(pipe, 9), run_wan(fresh, 9))
        assert decisions(pipe) == decisions(fresh)
    restore(pipe)
    assert not {"set_timesteps", "step"} & set(old.__dict__)
    assert not {"set_timesteps", "step"} & set(pipe.scheduler.__dict__) - new_keys


def test_a_deep_copied_scheduler_works_alone_and_in_the_pipeline():
    pipe = accelerate_pipeline(wan_pipeline(), "interval", interval=3)
    wanted = run_wan(pipe, 9)
    letters = decisions(pipe)
    twin = copy.deepcopy(pipe.scheduler)
    twin.set_timesteps(4)
    assert len(twin.timesteps) == 4
    assert len(pipe.scheduler.timesteps) == 9
    pipe.scheduler = twin
    for _ in range(2):
        assert torch.equal(run_wan(pipe, 9), wanted)
        assert decisions(pipe) == letters
    restore(pipe)
    bare = run_wan(wan_pipeline(), 9)
    assert torch.equal(run_wan(pipe, 9), bare)
    assert not {"set_timesteps", "step"} & set(twin.__dict__)


def test_a_scheduler_copied_in_the_loop_drives_the_clock():
    """Some pipelines step a copy of their scheduler (LTX2 for audio), and leave the original alone."""
    kind = FAMILIES["wan"]
    pipe = accelerate_pipeline(wan_pipeline(), "interval", interval=3, warmup=3)
    scheduler = copy.deepcopy(pipe.scheduler)
    x = kind.latents(0, 1, 2)
    with torch.no_grad():
        scheduler.set_timesteps(9)
        for t in scheduler.timesteps:
            v = pipe.transformer(hidden_states=x, timestep=t[None], **kind.conditioning(1, 1), return_dict=False)[0]
            x = scheduler.step(v, t, x, return_dict=False)[0]
    assert decisions(pipe) == ["FFFccFccF"]


def test_two_schedulers_that_step_in_turn_are_one_step():
    kind = FAMILIES["wan"]
    pipe = accelerate_pipeline(wan_pipeline(), "interval", interval=3, warmup=3)
    first = pipe.scheduler
    first.set_timesteps(9)
    second = copy.deepcopy(first)
    x = y = kind.latents(0, 1, 2)
    with torch.no_grad():
        for t in first.timesteps:
            v = pipe.transformer(hidden_states=x, timestep=t[None], **kind.conditioning(1, 1), return_dict=False)[0]
            x = first.step(v, t, x, return_dict=False)[0]
            y = second.step(v, t, y, return_dict=False)[0]
    assert decisions(pipe) == ["FFFccFccF"]
    assert torch.equal(x, y)


class Plain(nn.Module):
    """A denoiser of the user's own, around a diffusers block, that takes any kind of timestep."""

    def __init__(self):
        super().__init__()
        with seeded(0):
            self.blocks = nn.ModuleList([BasicTransformerBlock(8, 2, 4)])
        self.eval().requires_grad_(False)

    def forward(self, x, timesteps):
        level = torch.as_tensor(timesteps, dtype=torch.float32).reshape(-1).max() / 1000
        for block in self.blocks:
            x = block(x * (1 + level))
        return x


FORMS = {
    "float": float,
    "int": int,
    "0-d": torch.tensor,
    "0-d int": lambda t: torch.tensor(int(t)),
    "0-d bf16": lambda t: torch.tensor(t, dtype=torch.bfloat16),
    "1-d": lambda t: torch.tensor([t]),
    "expanded": lambda t: torch.tensor(t).expand(2),
    "per frame": lambda t: torch.tensor(t).repeat(2, 3),
    "diffusion forcing": lambda t: torch.tensor([[0.0, t / 2, t]] * 2),
    "falling fraction": lambda t: t / 1000,
    "rising": lambda t: 1000 - t,
}


@pytest.mark.parametrize("form", FORMS)
def test_any_form_of_timestep(form):
    model = Plain()
    accelerate_model(model, "interval", interval=3, warmup=3)
    x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    for _ in range(2):  # the second loop starts over by itself
        with torch.no_grad(), denoising(model, 9):
            for step in range(9):
                model(x, FORMS[form](1000.0 - 100 * step))
        assert decisions(model) == ["FFFccFccF"]
    assert model.diffcache.stats().trajectories == 2


def test_unknown_number_of_steps_computes_everything_and_says_so():
    model = Plain()
    x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    times = [1000.0 - 100 * s for s in range(9)]
    with torch.no_grad():
        bare = [model(x, t) for t in times]
        accelerate_model(model, "interval")
        with pytest.warns(NothingSkippedWarning, match="denoising"):
            runs = [[model(x, t) for t in times] for _ in range(2)]
    for run in runs:
        assert all(torch.equal(a, b) for a, b in zip(run, bare, strict=True))


def test_more_steps_than_announced_are_computed():
    model = accelerate_model(Plain(), "interval", interval=3, warmup=3)
    x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), denoising(model, 6):
        for step in range(12):
            model(x, 1200.0 - 100 * step)
    assert decisions(model)[0] == "FFFcc" + "F" * 7


def test_fewer_steps_than_announced_leave_nothing_behind():
    model = accelerate_model(FAMILIES["wan"].build(0), "interval", interval=3)
    wanted = sample("wan", model, 9)
    sample("wan", model, 5, announced=30, seed=4)
    assert sample("wan", model, 9).equals(wanted)


def test_a_timestep_that_jumps_back_begins_a_trajectory():
    model = accelerate_model(Plain(), "interval", interval=3, warmup=3)
    x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), denoising(model, 9):
        for step in (0, 1, 2, 3, 0, 1, 2, 3, 4):
            output = model(x, 1000.0 - 100 * step)
        assert torch.equal(output, Plain()(x, 600.0))


def test_repeated_calls_of_the_dit_pipeline_agree():
    pipe = accelerate_pipeline(dit_pipeline(), "powerlaw", computed=0.5)
    assert torch.equal(run_dit(pipe, 10), run_dit(pipe, 10))
    assert len(decisions(pipe)[0]) == 10


@pytest.mark.parametrize(
    ("value", "index"), [(1000.0, 0), (1.0, 0), (0.5, 1), (500.0, 1), (0.001, 3), (7.0, 0)], ids=str
)
def test_a_first_timestep_is_found_whether_the_model_takes_t_or_t_over_1000(value, index):
    """1.0 is both the first of t/1000 and the last of t here: nothing begins at its last step."""
    assert first_index(value, torch.tensor([1000.0, 500.0, 250.0, 1.0])) == index


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.int32, torch.int16])
def test_a_timestep_on_the_cpu_is_its_largest_entry_and_reads_no_device(dtype):
    steps = torch.tensor([752, 496, 8]).to(dtype)
    forms = [steps[1], steps[1:2], steps[1].expand(4), steps[1:2, None].expand(2, 3)]
    reads = Reads()
    with watched(reads):
        assert [host_value(form) for form in forms] == [496.0] * 4
        assert host_value(steps) == host_value(steps[::2]) == host_value(steps.flip(0)) == 752.0
        assert host_value(steps[:0]) is None
    assert reads.count == 0
