"""Law 9 for schedule files: what they were made for is checked, and what is not one of ours is refused by name."""

from __future__ import annotations

import json
import pickle
import re

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffcache import ScheduleFileError, accelerate_model, accelerate_pipeline, denoising, restore
from diffcache.learn import calibrate, read_calibration, write_calibration
from diffcache.methods import make_config

from .models import FAMILIES, decisions, flux_pipeline, run_wan, sample, wan, wan_pipeline, wan_two_experts

STEPS = 10
METHODS = ("magcache", "teacache")


@pytest.fixture(scope="module", params=METHODS)
def made(request, tmp_path_factory):
    """A method, and its schedule file for the tiny random Wan pipeline."""
    path = tmp_path_factory.mktemp(request.param) / "schedule.safetensors"
    write_calibration(calibrate(wan_pipeline(), request.param, lambda pipe: run_wan(pipe, STEPS)), path)
    return request.param, str(path)


def refusal(method, path, attach=accelerate_pipeline, owner=None):
    """The one line with which a file is refused."""
    with pytest.raises(ScheduleFileError) as refused:
        attach(owner or wan_pipeline(), method, schedule=path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# -- made for something else -------------------------------------------------------------------------------------------


def test_another_model_class_is_refused(made):
    assert "model: made for WanTransformer3DModel, but here it is FluxTransformer2DModel" in refusal(
        *made, owner=flux_pipeline()
    )


def test_another_model_of_the_class_is_refused(made):
    pipe = wan_pipeline()
    pipe.transformer = wan(0, layers=3)
    assert "model: made for WanTransformer3DModel with blocks=2, but here it is blocks=3" in refusal(*made, owner=pipe)


def test_another_number_of_denoisers_is_refused(made):
    found = refusal(*made, owner=wan_two_experts())
    assert "model: made for transformer, but here it is transformer and transformer_2" in found


def test_another_sampler_is_refused(made):
    pipe = wan_pipeline(scheduler=FlowMatchEulerDiscreteScheduler())
    wanted = "sampler: made for UniPCMultistepScheduler, but here it is FlowMatchEulerDiscreteScheduler"
    assert wanted in refusal(*made, owner=pipe)


def test_a_sampler_that_is_swapped_later_is_refused_when_the_trajectory_begins(made):
    method, path = made
    pipe = accelerate_pipeline(wan_pipeline(), method, schedule=path, threshold=1e9)
    wanted = run_wan(pipe, STEPS)
    kept, pipe.scheduler = pipe.scheduler, FlowMatchEulerDiscreteScheduler()
    for _ in range(2):
        with pytest.raises(ScheduleFileError, match="sampler: made for UniPC"):
            run_wan(pipe, STEPS)
    pipe.scheduler = kept
    assert torch.equal(run_wan(pipe, STEPS), wanted)


@pytest.mark.parametrize("steps", [STEPS - 1, STEPS + 1, 1, 2 * STEPS])
def test_another_number_of_steps_is_refused_and_the_next_generation_is_clean(made, steps):
    method, path = made
    pipe = accelerate_pipeline(wan_pipeline(), method, schedule=path, threshold=1e9)
    wanted = run_wan(pipe, STEPS)
    with pytest.raises(ScheduleFileError, match=f"steps: made for {STEPS}, but here it is {steps}") as refused:
        run_wan(pipe, steps)
    assert path in str(refused.value)
    assert torch.equal(run_wan(pipe, STEPS), wanted)
    assert "c" in decisions(pipe)[0]
    restore(pipe)
    assert torch.equal(run_wan(pipe, steps), run_wan(wan_pipeline(), steps))


def test_another_method_is_refused(made):
    method, path = made
    other = METHODS[1 - METHODS.index(method)]
    assert f"method: made for {method}, but here it is {other}" in refusal(other, path)


def test_a_bare_loop_must_name_the_sampler_and_keep_the_steps(made):
    method, path = made
    model, sampler = wan_pipeline().transformer, wan_pipeline().scheduler
    accelerate_model(model, method, schedule=path)
    with (
        pytest.raises(ScheduleFileError, match="sampler: made for UniPCMultistepScheduler, but here it is none"),
        denoising(model, STEPS),
    ):
        pass
    sampler.set_timesteps(STEPS)
    with denoising(model, STEPS, sampler):
        pass


def test_steps_of_a_bare_loop_are_checked(tmp_path):
    model, path = FAMILIES["wan"].build(0), tmp_path / "c.safetensors"
    write_calibration(calibrate(model, "magcache", lambda m: sample("wan", m, 8)), path)
    accelerate_model(model, "magcache", schedule=path)
    with pytest.raises(ScheduleFileError, match="steps: made for 8, but here it is 9"):
        sample("wan", model, 9)
    sample("wan", model, 8)


def test_a_refused_file_leaves_the_earlier_method_in_place(made):
    pipe = accelerate_pipeline(flux_pipeline(), "interval", interval=3)
    refusal(*made, owner=pipe)
    assert pipe.diffcache.config == make_config("interval", interval=3)


def test_weights_and_dtype_may_be_others(made):
    """A fine-tuned, half-precision or LoRA-carrying model is the same model."""
    method, path = made
    pipe = wan_pipeline(seed=5)
    pipe.transformer = pipe.transformer.to(torch.bfloat16)
    accelerate_pipeline(pipe, method, schedule=path)


# -- damaged or foreign ------------------------------------------------------------------------------------------------


def header_of(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["diffcache"])


def rewritten(path, target, change_header=None, change_numbers=None):
    """The file with a changed header or changed numbers."""
    header, numbers = header_of(path), load_file(path)
    header = change_header(header) if change_header else header
    numbers = change_numbers(numbers) if change_numbers else numbers
    numbers = {name: value.contiguous() for name, value in numbers.items()}
    save_file(numbers, target, metadata={"diffcache": json.dumps(header)})
    return target


def cut(name, value):
    def change(header):
        return {**header, name: value}

    return change


CHANGED = {
    "another format": (cut("format", "something else"), None, "not a schedule of diffcache"),
    "a later version": (cut("version", 2), None, "version: the file has 2, this diffcache reads 1"),
    "no steps": (lambda h: {k: v for k, v in h.items() if k != "steps"}, None, "damaged: KeyError: 'steps'"),
    "steps in words": (cut("steps", "ten"), None, "damaged: TypeError: 'ten' is not a int"),
    "no denoiser": (cut("experts", {}), None, "damaged: no denoiser"),
    "experts is a list": (cut("experts", []), None, "damaged"),
    "an expert is a number": (cut("experts", {"transformer": 3}), None, "damaged"),
    "a header that is a list": (lambda h: [h], None, "not a schedule of diffcache"),
    "no numbers": (None, lambda n: {"other": torch.ones(1)}, "damaged: "),
    "numbers of another shape": (None, lambda n: {k: v[..., :1] for k, v in n.items()}, "damaged: "),
    "whole numbers": (None, lambda n: {k: v.long() for k, v in n.items()}, "damaged: "),
}


@pytest.mark.parametrize("case", CHANGED)
def test_a_changed_file_is_refused(case, made, tmp_path):
    method, path = made
    header, numbers, wanted = CHANGED[case]
    assert wanted in refusal(method, str(rewritten(path, tmp_path / "c.safetensors", header, numbers)))


FOREIGN = {
    "empty": b"",
    "text": b"method: magcache\n",
    "pickle": pickle.dumps({"ratios": [1.0]}),
    "binary": bytes(range(256)) * 8,
    "a huge header": b"\xff" * 8 + b"{}",
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_foreign_file_is_refused(case, tmp_path):
    (tmp_path / "c.safetensors").write_bytes(FOREIGN[case])
    assert "not readable as safetensors, or damaged" in refusal("magcache", str(tmp_path / "c.safetensors"))


def test_weights_are_no_schedule(tmp_path):
    save_file({"weight": torch.ones(2, 2)}, tmp_path / "c.safetensors")
    assert "not a schedule of diffcache" in refusal("magcache", str(tmp_path / "c.safetensors"))
    save_file({"weight": torch.ones(2, 2)}, tmp_path / "d.safetensors", metadata={"diffcache": "{not json"})
    assert "damaged" in refusal("magcache", str(tmp_path / "d.safetensors"))


def test_a_file_that_is_cut_off_is_refused_wherever_it_ends(made, tmp_path):
    method, path = made
    with open(path, "rb") as file:
        content = file.read()
    for length in range(0, len(content), 97):
        (tmp_path / "c.safetensors").write_bytes(content[:length])
        refusal(method, str(tmp_path / "c.safetensors"))


def test_missing_files_and_folders_are_refused(tmp_path):
    path = str(tmp_path / "none.safetensors")
    make = f"diffcache calibrate --model MODEL --method magcache --out {path}"
    assert refusal("magcache", path).endswith(f"no such file; make it with: {make}")
    assert "is a folder" in refusal("magcache", str(tmp_path))


@pytest.mark.parametrize("value", [3, 0.5, ["a"], True])
def test_a_path_is_text(value):
    with pytest.raises(ValueError, match=re.escape(f"schedule: {value!r} is not the path of a schedule file")):
        make_config("magcache", schedule=value)


def test_numbers_that_are_not_finite_compute(made, tmp_path):
    method, path = made
    poisoned = rewritten(path, tmp_path / "c.safetensors", None, lambda n: {k: v * float("nan") for k, v in n.items()})
    pipe = accelerate_pipeline(wan_pipeline(), method, schedule=poisoned, threshold=1e9)
    bare = run_wan(wan_pipeline(), STEPS)
    assert torch.equal(run_wan(pipe, STEPS), bare)


@pytest.mark.parametrize("suffix", ["", ".pt", ".json"])
def test_a_schedule_is_written_to_safetensors_only(made, suffix, tmp_path):
    with pytest.raises(ScheduleFileError, match=r"must be \.safetensors"):
        write_calibration(read_calibration(made[1]), tmp_path / f"c{suffix}")
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_leaves_the_old_one(made, tmp_path):
    (tmp_path / "c.safetensors").mkdir()
    with pytest.raises(ScheduleFileError, match="cannot be written"):
        write_calibration(read_calibration(made[1]), tmp_path / "c.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]
