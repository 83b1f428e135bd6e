"""The public contract: names, signatures, what replaces what, and the words of the errors."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, FirstBlockCacheConfig, UNet2DModel
from torch import nn

import diffcache
from diffcache import (
    ConfigError,
    NothingSkippedWarning,
    UnsupportedModelError,
    accelerate_model,
    accelerate_pipeline,
    accelerated,
    denoising,
    list_methods,
    restore,
    supports,
)
from diffcache.methods import MethodConfig, make_config
from diffcache.methods.language import LanguageConfig
from diffcache.zoo import list_language_models

from .models import FAMILIES, PIPELINES, decisions, run_wan, sample, wan, wan_pipeline

SIGNATURES = {
    "accelerate_pipeline": ["pipe", "method", "overrides"],
    "accelerate_model": ["model", "method", "overrides"],
    "accelerated": ["pipe", "method", "overrides"],
    "denoising": ["model", "num_inference_steps"],
    "restore": ["pipe_or_model"],
    "list_methods": [],
    "list_models": [],
    "supports": ["model", "method"],
    "estimate_memory": ["model", "method", "call"],
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name):
    parameters = list(inspect.signature(getattr(diffcache, name)).parameters)
    wanted = SIGNATURES[name]
    assert parameters[: len(wanted)] == wanted
    assert name in diffcache.__all__


def test_defaults_and_bases():
    assert inspect.signature(accelerate_pipeline).parameters["method"].default == "worldcache"
    assert inspect.signature(supports).parameters["method"].default == "worldcache"
    assert issubclass(UnsupportedModelError, TypeError)
    assert issubclass(diffcache.ScheduleFileError, ValueError)
    assert issubclass(ConfigError, ValueError)
    assert all(hasattr(diffcache, name) for name in diffcache.__all__)


def test_every_method_has_the_common_knobs_and_a_summary():
    for name, config in list_methods().items():
        assert config.method == name
        assert config.summary
        assert make_config(name) == config()
    for config in list_methods("denoiser").values():
        assert issubclass(config, MethodConfig)
        assert {"warmup", "cooldown", "max_skip"} <= set(config.__dataclass_fields__)
    for config in list_methods("language").values():
        assert issubclass(config, LanguageConfig)
        assert "warmup" in config.__dataclass_fields__
    assert {*list_methods("denoiser"), *list_methods("language")} == set(list_methods())


def test_list_methods_is_a_copy():
    list_methods().clear()
    assert "worldcache" in list_methods()


def test_the_same_object_comes_back():
    pipe, model = wan_pipeline(), wan()
    assert accelerate_pipeline(pipe) is pipe
    assert accelerate_model(model, "interval") is model


def test_the_handle():
    pipe = accelerate_pipeline(wan_pipeline(), "interval", interval=4)
    assert pipe.diffcache is pipe.transformer.diffcache
    assert pipe.diffcache.config == make_config("interval", interval=4)
    assert repr(pipe.diffcache) == "<diffcache: interval on WanPipeline>"
    run_wan(pipe, 8)
    assert pipe.diffcache.stats().segments
    pipe.diffcache.reset()
    assert not pipe.diffcache.stats().segments
    assert "no trajectory" in str(pipe.diffcache.stats())
    pipe.diffcache.restore()
    assert not hasattr(pipe, "diffcache")
    assert not hasattr(pipe.transformer, "diffcache")


def test_a_second_method_replaces_the_first():
    pipe = wan_pipeline()
    bare = run_wan(pipe, 8)
    accelerate_pipeline(pipe, "interval", interval=2)
    accelerate_pipeline(pipe, "powerlaw")
    assert pipe.diffcache.config.method == "powerlaw"
    assert len(pipe.transformer._diffusers_hook.hooks) == 1
    restore(pipe)
    assert torch.equal(run_wan(pipe, 8), bare)


def test_a_method_that_cannot_be_put_on_leaves_the_first_in_place():
    model = accelerate_model(wan(), "interval", interval=2)
    with pytest.raises(ConfigError):
        accelerate_model(model, "powerlaw", computed=-1)
    assert model.diffcache.config.method == "interval"
    sample("wan", model, 8)
    assert "c" in decisions(model)[0]


def test_accelerated_is_for_the_block_only():
    pipe = wan_pipeline()
    bare = run_wan(pipe, 8)
    with accelerated(pipe, "interval", interval=2) as same:
        assert same is pipe
        assert not torch.equal(run_wan(pipe, 8), bare)
    assert not hasattr(pipe, "diffcache")
    assert torch.equal(run_wan(pipe, 8), bare)


@pytest.mark.parametrize("fails", [False, True])
def test_accelerated_brings_the_earlier_method_back(fails):
    pipe = accelerate_pipeline(wan_pipeline(), "interval", interval=3)
    wanted = run_wan(pipe, 9)
    try:
        with accelerated(pipe, "powerlaw", computed=0.5):
            assert pipe.diffcache.config.method == "powerlaw"
            run_wan(pipe, 9)
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert pipe.diffcache.config == make_config("interval", interval=3)
    assert torch.equal(run_wan(pipe, 9), wanted)


def test_accelerated_takes_a_bare_model_too():
    model = wan()
    with accelerated(model, "interval"):
        assert hasattr(model, "diffcache")
    assert not hasattr(model, "diffcache")


# -- stats -------------------------------------------------------------------------------------------------------------

KEYS = {
    "expert",
    "branch",
    "decisions",
    "computed",
    "predicted",
    "partial",
    "block_share",
    "token_share",
    "compute_seconds",
    "predict_seconds",
    "cached_bytes",
    "fallbacks",
}


@pytest.mark.parametrize("kind", PIPELINES)
def test_stats_are_json_ready_with_one_letter_a_step(kind):
    build, run = PIPELINES[kind]
    pipe = accelerate_pipeline(build(), "worldcache", threshold=1.0)
    run(pipe, 11)
    data = json.loads(json.dumps(pipe.diffcache.stats().to_dict(), allow_nan=False))
    assert {"method", "steps", "segments"} <= set(data)
    assert (data["method"], data["steps"]) == ("worldcache", 11)
    for segment in data["segments"]:
        assert set(segment) >= KEYS
        counts = [segment["decisions"].count(letter) for letter in "Fcp"]
        assert counts == [segment["computed"], segment["predicted"], segment["partial"]]
    for branch in {s["branch"] for s in data["segments"]}:
        assert sum(len(s["decisions"]) for s in data["segments"] if s["branch"] == branch) == 11


def test_fallbacks_are_in_the_dictionary():
    kind = FAMILIES["wan"]
    model = accelerate_model(kind.build(0), "interval", interval=4)
    sample("wan", model, 9, before=lambda s: model.proj_out.weight.mul_(1.0) if s == 4 else None)
    data = model.diffcache.stats().to_dict()
    first = data["segments"][0]["fallbacks"][0]
    assert first == {"step": 4, "reason": first["reason"], "count": 1}
    assert first["reason"] in str(model.diffcache.stats())


def test_stats_in_mid_trajectory_show_what_has_been_done():
    model = accelerate_model(wan(), "interval", interval=3, warmup=1)
    seen = []
    sample("wan", model, 9, before=lambda s: seen.append(model.diffcache.stats()))
    assert decisions(model)[0] == "FccFccFcF"
    for step, stats in enumerate(seen[1:], 1):
        assert stats.segments[0].decisions == "FccFccFcF"[:step]


def test_trajectories_are_counted():
    model = accelerate_model(wan(), "interval")
    for i in range(3):
        sample("wan", model, 6)
        assert model.diffcache.stats().trajectories == i + 1


# -- errors ------------------------------------------------------------------------------------------------------------


def test_unknown_method_names_the_closest_first():
    with pytest.raises(ConfigError, match=r"unknown method 'wordcache': did you mean 'worldcache'\? known: worldcache"):
        accelerate_pipeline(wan_pipeline(), "wordcache")


def test_unknown_field_names_the_closest_first():
    with pytest.raises(ConfigError, match=r"unknown field 'warm_up': did you mean 'warmup'\? known: warmup"):
        accelerate_pipeline(wan_pipeline(), "worldcache", warm_up=3)


BAD = [
    ("worldcache", dict(warmup=-1), "warmup"),
    ("worldcache", dict(warmup=2.5), "warmup"),
    ("worldcache", dict(warmup=True), "warmup"),
    ("worldcache", dict(cooldown=-1), "cooldown"),
    ("worldcache", dict(max_skip="all"), "max_skip"),
    ("worldcache", dict(threshold=float("nan")), "threshold"),
    ("worldcache", dict(threshold=-0.1), "threshold"),
    ("worldcache", dict(stable=0.7, chaotic=0.6), "stable"),
    ("worldcache", dict(chaotic=1.1), "chaotic"),
    ("worldcache", dict(axis="time"), "axis"),
    ("worldcache", dict(computed=0), "computed"),
    ("worldcache", dict(computed=1.5), "computed"),
    ("worldcache", dict(computed=float("inf")), "computed"),
    ("worldcache", dict(computed=10**400), "computed"),
    ("worldcache", dict(faithful="yes"), "faithful"),
    ("worldcache", dict(modalities=(0, 4)), "modalities"),
    ("interval", dict(interval=0), "interval"),
    ("interval", dict(predictor="linaer"), "predictor"),
    ("interval", dict(order=5), "order"),
    ("interval", dict(site="blocks"), "site"),
    ("steps", dict(steps=(1, -2)), "steps"),
    ("steps", dict(steps=5), "steps"),
    ("powerlaw", dict(alpha=0), "alpha"),
    ("worldcache:nosuch", {}, "preset"),
]


@pytest.mark.parametrize(("method", "settings", "field"), BAD)
def test_a_bad_value_is_named_in_one_line(method, settings, field):
    with pytest.raises(ConfigError, match=rf"^{field}\b") as refused:
        make_config(method, **settings)
    assert "\n" not in str(refused.value)


def test_denoising_is_for_bare_denoisers():
    with (
        pytest.raises(UnsupportedModelError, match="WanPipeline is not a"),
        denoising(wan_pipeline(), 4),
    ):
        pass


@pytest.mark.parametrize("steps", [0, -1, 2.0, True, None])
def test_denoising_refuses_a_bad_number_of_steps(steps):
    with pytest.raises(ConfigError, match="num_inference_steps"):
        with denoising(wan(), steps):
            pass


def test_modalities_that_do_not_fit_the_model_are_refused_at_once():
    with pytest.raises(ConfigError, match="modalities"):
        accelerate_model(wan(), "worldcache", modalities=(3, 3))


def unet():
    return UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
    )


class NoDenoiser(DiffusionPipeline):
    def __init__(self, scheduler):
        super().__init__()
        self.register_modules(scheduler=scheduler)


REFUSED = {
    "U-Net": (lambda: DDPMPipeline(unet(), DDPMScheduler()), accelerate_pipeline, "U-Net"),
    "bare U-Net": (unet, accelerate_model, "U-Net"),
    "no denoiser": (lambda: NoDenoiser(DDPMScheduler()), accelerate_pipeline, "no transformer denoiser"),
    "linear": (lambda: nn.Linear(2, 2), accelerate_model, "timestep"),
    "not a module": (lambda: object(), accelerate_model, "not a torch.nn.Module"),
    "not a pipeline": (lambda: object(), accelerate_pipeline, "no transformer denoiser"),
    "model as pipeline": (wan, accelerate_pipeline, "accelerate_model"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_supported_says_why(kind):
    build, attach, why = REFUSED[kind]
    thing = build()
    before = set(getattr(thing, "__dict__", {}))
    with pytest.raises(UnsupportedModelError, match=why) as refused:
        attach(thing, "worldcache")
    assert "\n" not in str(refused.value)
    assert set(getattr(thing, "__dict__", {})) == before


@pytest.mark.parametrize("kind", PIPELINES)
def test_supports_is_what_accelerate_does(kind):
    pipe = PIPELINES[kind][0]()
    assert supports(pipe, "worldcache").status == "works"
    assert supports(pipe, "none").status == "exact"
    assert bool(supports(pipe))
    assert not hasattr(pipe, "diffcache")


def test_supports_gives_the_reason_of_a_refusal():
    answer = supports(DDPMPipeline(unet(), DDPMScheduler()))
    assert not answer
    assert (answer.status, "U-Net" in answer.reason) == ("refused", True)
    assert not supports(nn.Linear(2, 2))


def test_package_doctests_name_the_closest():
    from diffcache.errors import unknown

    assert unknown("method", "zzz", ["a", "b"]) == "unknown method 'zzz': known: a, b"


MODEL = """
from diffcache.zoo import ZooEntry

OTHER = ZooEntry("other", "owner/other", "nowhere:Pipeline", "text-to-image", "other", 64, 64, 1, 20, None)
NOT = "no entry"
"""
POINTS = """
[diffcache.methods]
thirds = thirds:Thirds
gone = nowhere:Gone

[diffcache.models]
my-dit = thirds:MY_DIT
other = my_models:OTHER
wrong = my_models:NOT
lost = nowhere:LOST
"""


@pytest.fixture
def installed(tmp_path):
    """The distribution of docs/plugins.md, through real metadata; runs code in a process that has it."""
    page = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text()
    (tmp_path / "thirds.py").write_text(re.search(r"```python\n(# thirds.py.*?)```", page, re.S)[1])
    (tmp_path / "my_models.py").write_text(MODEL)
    info = tmp_path / "thirds-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thirds\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    return lambda *arguments: subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment
    )


def test_an_installed_plugin_adds_a_method_and_a_broken_one_is_named(installed):
    code = "from diffcache import list_methods; from diffcache.methods import make_config; "
    code += "print(make_config('thirds:order=2')); print('gone' in list_methods())"
    done = installed("-c", code)
    assert done.stdout.startswith("Thirds(warmup=3"), done.stderr
    assert "order=2)\nFalse\n" in done.stdout
    assert "method gone: its plugin cannot be loaded" in done.stderr


@pytest.mark.parametrize("second", ["interval", "taylorseer"])
def test_a_handle_that_was_replaced_takes_nothing_off(second):
    pipe = accelerate_pipeline(wan_pipeline(), "worldcache")
    stale = pipe.diffcache
    wanted = run_wan(accelerate_pipeline(pipe, second), 8)
    for call in (stale.restore, stale.reset, stale.restore):
        call()
        assert pipe.diffcache is pipe.transformer.diffcache is not stale
    assert torch.equal(run_wan(pipe, 8), wanted)
    restore(pipe)
    assert torch.equal(run_wan(pipe, 8), run_wan(wan_pipeline(), 8))


def test_a_cache_of_diffusers_beside_ours_is_named():
    pipe = accelerate_pipeline(wan_pipeline(), "worldcache")
    bare = run_wan(wan_pipeline(), 8)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.warns(UserWarning, match=r"worldcache: transformer.enable_cache\(\) is on as well.*disable_cache\(\)"):
        run_wan(pipe, 8)
    restore(pipe)
    pipe.transformer.disable_cache()
    assert torch.equal(run_wan(pipe, 8), bare)


def test_stats_of_a_loop_of_unknown_length_say_why_nothing_is_skipped_while_it_runs():
    model, kind = accelerate_model(wan(), "interval"), FAMILIES["wan"]
    call = dict(hidden_states=kind.latents(0, 1, 2), **kind.conditioning(7, 1), **kind.fixed(2))
    with torch.no_grad():
        for step in range(5):
            model(timestep=kind.time(1.0 - step / 5)[None], **call)
    assert "nothing was skipped: the number of steps is unknown: wrap the loop in" in str(model.diffcache.stats())
    loop = denoising(model, 9)
    with pytest.warns(NothingSkippedWarning):
        loop.__enter__()
    with torch.no_grad():
        model(timestep=kind.time(1.0)[None], **call)
    assert model.diffcache.stats().reason is None  # not that of the loop before
    loop.__exit__(None, None, None)


def test_the_method_that_the_page_tries_out_runs_without_being_installed():
    page = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text()
    names: dict = {}
    exec(re.search(r"```python\n(# widening.py.*?)```", page, re.S)[1], names)
    config = names["WideningConfig"]
    with pytest.raises(ConfigError, match="damping: 2 is out of range"):
        config(damping=2)
    pipe = wan_pipeline()
    assert supports(pipe, config())
    run_wan(accelerate_pipeline(pipe, config(damping=0.8)), 24)
    assert decisions(pipe) == ["FFFFFcFcFccFccFcccFccccF"] * 2


def test_an_installed_plugin_adds_a_model_and_broken_ones_are_named(installed):
    done = installed("-m", "diffcache", "models", "--json")
    known = json.loads(done.stdout)
    assert known["my-dit"]["source"] == "owner/my-dit"
    assert set(known) - {*diffcache.list_models(), *list_language_models()} == {"my-dit", "other"}
    assert "warning: model lost: its plugin cannot be loaded" in done.stderr
    assert "warning: model wrong: my_models:NOT is no ZooEntry of that name" in done.stderr
    done = installed("-m", "diffcache", "info", "my-dit", "--method", "thirds")
    assert done.returncode == 1
    assert "my-dit (owner/my-dit): not in the local cache" in done.stderr
    done = installed("-m", "diffcache", "info", "other", "--method", "fora")
    assert done.returncode == 1
    assert "other: its pipeline nowhere:Pipeline is missing" in done.stderr
