"""``copy.deepcopy`` and ``save_pretrained`` of what is accelerated."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel

from diffcache import accelerate_model, accelerate_pipeline, restore

from .composing import LETTERS, SITES
from .models import decisions, run_wan, sample, wan, wan_pipeline, wan_two_experts
from .states import attributes, forward_hooks, with_own_forward


def ruin(model):
    """Whoever still uses this model's weights is found out."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))


@pytest.mark.parametrize("site", SITES)
def test_a_copied_pipeline_works_on_its_own(site):
    pipe = accelerate_pipeline(wan_pipeline(), "interval", interval=3, site=site)
    wanted = run_wan(pipe, 9)
    twin = copy.deepcopy(pipe)
    ruin(pipe.transformer)
    assert twin.diffcache is twin.transformer.diffcache
    assert twin.diffcache is not pipe.diffcache
    for _ in range(2):
        assert torch.equal(run_wan(twin, 9), wanted)
        assert decisions(twin) == [LETTERS] * 2
    assert twin.diffcache.stats().trajectories == 2
    assert pipe.diffcache.stats().trajectories == 1
    restore(pipe)
    assert torch.equal(run_wan(twin, 9), wanted)
    restore(twin)
    assert torch.equal(run_wan(twin, 4), run_wan(wan_pipeline(), 4))


@pytest.mark.parametrize("site", SITES)
def test_pickle_and_torch_save_say_what_to_do_and_work_after_it(site):
    pipe = accelerate_pipeline(wan_pipeline(), "interval", site=site)
    config = pickle.loads(pickle.dumps(pipe.diffcache.config))
    for write in (lambda: pickle.dumps(pipe), lambda: torch.save(pipe.transformer, io.BytesIO())):
        with pytest.raises(TypeError, match=r"what interval is on cannot be pickled: restore\(\.\.\.\) it first"):
            write()
    wanted = run_wan(pipe, 6)
    restore(pipe)
    twin = accelerate_pipeline(pickle.loads(pickle.dumps(pipe)), config)
    assert torch.equal(run_wan(twin, 6), wanted)


def test_a_pickled_scheduler_is_a_plain_one():
    """It works, and no clock hears it."""
    pipe = accelerate_pipeline(wan_pipeline(), "interval", interval=3)
    wanted = run_wan(pipe, 6)
    twin = pickle.loads(pickle.dumps(pipe.scheduler))
    assert twin.step.__self__ is twin
    twin.set_timesteps(4)
    assert (len(twin.timesteps), len(pipe.scheduler.timesteps)) == (4, 6)
    assert pipe.diffcache.stats().trajectories == 1
    restore(pipe)
    assert twin.step.__func__ is type(twin).step
    pipe.scheduler = twin
    assert torch.equal(run_wan(accelerate_pipeline(pipe, "interval", interval=3), 6), wanted)


def test_a_shallow_copy_is_restored_as_well():
    pipe = accelerate_pipeline(wan_pipeline(), "interval")
    twin = copy.copy(pipe)
    restore(twin)
    assert not hasattr(twin, "diffcache")
    assert not hasattr(pipe, "diffcache")
    assert torch.equal(run_wan(twin, 4), run_wan(wan_pipeline(), 4))


def test_a_copy_never_skipping_is_the_bare_pipeline():
    twin = copy.deepcopy(accelerate_pipeline(wan_pipeline(), "interval", site="body", max_skip=0))
    assert torch.equal(run_wan(twin, 6), run_wan(wan_pipeline(), 6))


def test_original_and_copy_take_turns_call_by_call():
    pipe = accelerate_pipeline(wan_pipeline(), "interval", interval=3)
    twin = copy.deepcopy(pipe)
    wanted = run_wan(pipe, 9)

    def nested(pipe, step, t, kwargs):
        if step % 3 == 1:
            assert torch.equal(run_wan(twin, 9), wanted)
        return kwargs

    assert torch.equal(run_wan(pipe, 9, callback_on_step_end=nested), wanted)
    assert decisions(pipe) == decisions(twin) == [LETTERS] * 2


def test_a_pipeline_copied_in_mid_run_begins_anew():
    pipe = accelerate_pipeline(wan_pipeline(), "interval", interval=3)
    wanted = run_wan(pipe, 9)
    twins = []

    def take(pipe, step, t, kwargs):
        twins.append(copy.deepcopy(pipe))
        return kwargs

    assert torch.equal(run_wan(pipe, 9, callback_on_step_end=take), wanted)
    for twin in (twins[0], twins[4]):
        assert not twin.diffcache.stats().segments
        assert torch.equal(run_wan(twin, 9), wanted)


def test_two_experts_are_copied_together():
    pipe = accelerate_pipeline(wan_two_experts(), "interval", interval=3)
    wanted = run_wan(pipe, 12)
    twin = copy.deepcopy(pipe)
    ruin(pipe.transformer)
    ruin(pipe.transformer_2)
    assert torch.equal(run_wan(twin, 12), wanted)
    assert [s.expert for s in twin.diffcache.stats().segments] == ["transformer"] * 2 + ["transformer_2"] * 2


@pytest.mark.parametrize("site", SITES)
def test_a_copied_denoiser_works_on_its_own(site):
    model = accelerate_model(wan(), "interval", interval=3, site=site)
    wanted = sample("wan", model, 9)
    twin = copy.deepcopy(model)
    ruin(model)
    assert sample("wan", twin, 9).equals(wanted)
    assert decisions(twin) == [LETTERS] * 2
    restore(twin)
    assert sample("wan", twin, 4).equals(sample("wan", wan(), 4))


@pytest.mark.parametrize("site", SITES)
def test_a_denoiser_copied_out_of_a_pipeline_is_plain(site):
    pipe = wan_pipeline()
    before = attributes(pipe.transformer)
    accelerate_pipeline(pipe, "interval", interval=3, site=site)
    run_wan(pipe, 9)
    twin = copy.deepcopy(pipe.transformer)
    ruin(pipe.transformer)
    assert attributes(twin) == before
    assert forward_hooks(twin) == 0
    assert sample("wan", twin, 4).equals(sample("wan", wan(), 4))


def test_hooks_of_others_are_copied_and_work_on_the_copy():
    """diffusers alone gets this wrong: the copy of a model with layerwise casting runs the original's layers."""
    model = wan()
    model.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    accelerate_model(model, "interval", interval=3, site="body")
    wanted = sample("wan", model, 9)
    twin = copy.deepcopy(model)
    ruin(model)
    assert sample("wan", twin, 9).equals(wanted)
    assert twin.blocks[0].ffn.net[0].proj.weight.dtype == torch.bfloat16


def test_a_forward_of_the_users_own_is_copied():
    model = wan()
    forward, calls = with_own_forward(model)
    accelerate_model(model, "interval")
    twin = copy.deepcopy(model)
    sample("wan", twin, 3)
    assert calls
    restore(twin)
    assert twin.forward is forward


@pytest.mark.parametrize("site", SITES)
def test_a_saved_denoiser_is_the_plain_one(site, tmp_path):
    pipe = wan_pipeline()
    names = list(pipe.transformer.state_dict())
    config = dict(pipe.transformer.config)
    accelerate_pipeline(pipe, "interval", interval=3, site=site)
    run_wan(pipe, 9)
    assert list(pipe.transformer.state_dict()) == names
    assert dict(pipe.transformer.config) == config
    pipe.transformer.save_pretrained(tmp_path / "accelerated")
    wan().save_pretrained(tmp_path / "plain")
    loaded, plain = (WanTransformer3DModel.from_pretrained(tmp_path / name) for name in ("accelerated", "plain"))
    assert attributes(loaded) == attributes(plain)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), wan().parameters(), strict=True))
    assert sample("wan", loaded, 4).equals(sample("wan", plain, 4))


def load(path):
    pipe = WanPipeline.from_pretrained(path, tokenizer=None, text_encoder=None, vae=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_saved_pipeline_is_the_plain_one(tmp_path):
    pipe = accelerate_pipeline(wan_pipeline(), "interval", interval=3)
    wanted = run_wan(pipe, 9)
    pipe.save_pretrained(tmp_path / "accelerated")
    assert torch.equal(run_wan(pipe, 9), wanted)  # and stays accelerated
    wan_pipeline().save_pretrained(tmp_path / "plain")
    loaded, plain = (load(tmp_path / name) for name in ("accelerated", "plain"))
    assert not hasattr(loaded, "diffcache")
    assert torch.equal(run_wan(loaded, 4), run_wan(plain, 4))
    accelerate_pipeline(loaded, "interval", interval=3)
    run_wan(loaded, 9)
    assert decisions(loaded) == [LETTERS] * 2
