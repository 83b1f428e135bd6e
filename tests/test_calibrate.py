"""Calibration: what is measured in a dense run, that it leaves no trace, and what the calibrated methods do with it."""

from __future__ import annotations

import math
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler, FluxImg2ImgPipeline
from diffusers.image_processor import VaeImageProcessor

from diffcache import (
    ConfigError,
    ScheduleFileError,
    UnsupportedModelError,
    accelerate_model,
    accelerate_pipeline,
    accelerated,
    restore,
)
from diffcache.learn import POOR, calibrate, describe, fit_polynomial, read_calibration, write_calibration
from diffcache.methods import load_config, make_config
from diffcache.schedules import MagCache, TeaCache

from .models import (
    FAMILIES,
    PIPELINES,
    decisions,
    denoisers,
    dit_pipeline,
    flux_pipeline,
    normal,
    run_wan,
    sample,
    walk_steps,
    wan,
    wan_pipeline,
    wan_two_experts,
)
from .test_law_restore import attributes, forward_hooks
from .test_pipelines import repaint
from .test_schedules import trace
from .test_trained import closeness, loaded  # noqa: F401 - a fixture

STEPS = 10
METHODS = ("magcache", "teacache")


def run(steps=STEPS, seed=0):
    """A dense run as calibration takes it."""
    return lambda pipe: run_wan(pipe, steps, seed=seed)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Schedule files of the tiny random Wan pipeline, one for each method."""
    folder = tmp_path_factory.mktemp("schedules")
    paths = {}
    for method in METHODS:
        paths[method] = str(folder / f"{method}.safetensors")
        write_calibration(calibrate(wan_pipeline(), method, run()), paths[method])
    return paths


# -- what is measured --------------------------------------------------------------------------------------------------


@contextmanager
def blocks_watched(model):
    """Input of the first block, input of its self-attention and output of the last block, of every call."""
    seen = {"entry": [], "attention": [], "exit": []}
    first, last = model.blocks[0], model.blocks[-1]
    handles = [
        first.register_forward_pre_hook(
            lambda m, a, k: seen["entry"].append((a or (k["hidden_states"],))[0]), with_kwargs=True
        ),
        first.attn1.register_forward_pre_hook(
            lambda m, a, k: seen["attention"].append((a or (k["hidden_states"],))[0]), with_kwargs=True
        ),
        last.register_forward_hook(lambda m, a, out: seen["exit"].append(out)),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def ratios_by_hand(seen, branch):
    """The mean over tokens of |r_t| / |r_(t-1)|; the pipeline calls cond, then uncond."""
    pairs = zip(seen["entry"][branch::2], seen["exit"][branch::2], strict=True)
    norms = [(after - before).norm(dim=-1) for before, after in pairs]
    return [1.0, *(float((now / before).mean()) for before, now in pairwise(norms))]


@pytest.mark.parametrize("layers", [1, 3])
def test_ratios_are_those_of_the_residual_over_all_blocks_by_hand(layers):
    pipe = wan_pipeline()
    pipe.transformer = wan(1, layers=layers)
    with blocks_watched(pipe.transformer) as seen:
        run_wan(pipe, STEPS)
    found = calibrate(pipe, "magcache", run()).experts["transformer"]
    assert found.branches == ("cond", "uncond")
    for branch, table in enumerate(found.numbers["ratios"]):
        assert table.tolist() == pytest.approx(ratios_by_hand(seen, branch), rel=1e-4)
    assert not torch.equal(*found.numbers["ratios"])


def test_ratios_of_a_trained_model_by_hand(loaded):  # noqa: F811
    trained = loaded["tiny-wan"]
    with blocks_watched(trained.pipe.transformer) as seen:
        trained.run(3, 6)
    found = calibrate(trained.pipe, "magcache", lambda pipe: trained.run(3, 6)).experts["transformer"]
    for branch, table in enumerate(found.numbers["ratios"]):
        assert table.tolist() == pytest.approx(ratios_by_hand(seen, branch), rel=1e-4)


def test_drift_points_by_hand():
    pipe, outputs = wan_pipeline(), []
    note = pipe.transformer.register_forward_hook(lambda m, a, out: outputs.append(out[0]))
    with blocks_watched(pipe.transformer) as seen:
        run_wan(pipe, STEPS)
    note.remove()
    points = calibrate(pipe, "teacache", run()).experts["transformer"].numbers["points"]

    def change(values, branch):
        mine = values[branch::2]
        return [float((now - before).abs().mean() / before.abs().mean()) for before, now in pairwise(mine)]

    by_hand = [p for b in (0, 1) for p in zip(change(seen["attention"], b), change(outputs, b), strict=True)]
    assert points.shape == (2 * (STEPS - 1), 2)
    torch.testing.assert_close(points, torch.tensor(by_hand, dtype=torch.float64), rtol=1e-4, atol=1e-6)


def test_several_runs_are_averaged_and_their_spread_is_told():
    pipe = wan_pipeline()
    one, two, both = (calibrate(pipe, "magcache", runs) for runs in (run(), run(seed=1), [run(), run(seed=1)]))
    a, b, mean = (c.experts["transformer"].numbers["ratios"] for c in (one, two, both))
    torch.testing.assert_close(mean, (a + b) / 2)
    assert (one.runs, both.runs) == (1, 2)
    spread = both.experts["transformer"].quality["spread"]
    assert spread == pytest.approx(float((a - b).abs().max()))
    assert spread > 0 == one.experts["transformer"].quality["spread"]


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_pipeline_is_calibrated_and_runs_with_its_file(name, method, tmp_path):
    build, generate = PIPELINES[name]
    pipe = build()
    found = calibrate(pipe, method, lambda p: generate(p, 12))
    assert len(found.experts) == len(denoisers(pipe))
    write_calibration(found, tmp_path / "c.safetensors")
    accelerate_pipeline(pipe, method, schedule=tmp_path / "c.safetensors", threshold=1e9)
    generate(pipe, 12)
    assert any("c" in letters for letters in decisions(pipe))


def test_two_experts_have_numbers_of_their_own(tmp_path):
    pipe, path = wan_two_experts(), tmp_path / "c.safetensors"
    found = calibrate(pipe, "magcache", run(12))
    high, low = found.experts["transformer"], found.experts["transformer_2"]
    assert (found.steps, high.steps + low.steps) == (12, 12)
    assert high.numbers["ratios"].shape == (2, high.steps)
    write_calibration(found, path)
    # With a threshold of 0 only a residual that keeps its size to the bit may be reused: by the file, none does.
    accelerate_pipeline(pipe, "magcache", schedule=path, threshold=0.0, retention=0.0)
    run_wan(pipe, 12)
    assert "c" not in "".join(decisions(pipe))
    with pytest.raises(ValueError, match="model: made for transformer and transformer_2, but here it is transformer"):
        accelerate_pipeline(wan_pipeline(), "magcache", schedule=path)


def test_a_bare_denoiser_is_calibrated_in_its_loop(tmp_path):
    model, path = FAMILIES["flux"].build(0), tmp_path / "c.safetensors"
    found = calibrate(model, "magcache", lambda m: sample("flux", m, 8))
    assert (found.sampler, found.steps) == (None, 8)
    write_calibration(found, path)
    accelerate_model(model, "magcache", schedule=path, threshold=1e9)
    sample("flux", model, 8)
    assert "c" in decisions(model)[0]


def test_the_steps_are_those_that_run(tmp_path):
    """A late start leaves steps out, and Heun's sampler calls the denoiser twice in most."""
    pipe, path = FluxImg2ImgPipeline(**flux_pipeline().components), tmp_path / "c.safetensors"
    pipe.latent_channels = 4
    pipe.image_processor = VaeImageProcessor(vae_scale_factor=16, vae_latent_channels=4)
    pipe.set_progress_bar_config(disable=True)
    found = calibrate(pipe, "magcache", lambda p: repaint(p, 15, strength=0.6))
    assert found.steps == 9
    write_calibration(found, path)
    accelerate_pipeline(pipe, "magcache", schedule=path, threshold=1e9)
    repaint(pipe, 15, strength=0.6)
    assert "c" in decisions(pipe)[0]
    with pytest.raises(ScheduleFileError, match="steps: made for 9, but here it is 15"):
        repaint(pipe, 15, strength=1.0)
    pipe = wan_pipeline(scheduler=FlowMatchHeunDiscreteScheduler())
    write_calibration(calibrate(pipe, "magcache", run(6)), path)
    assert read_calibration(path).steps == len(pipe.scheduler.timesteps) > 6
    accelerate_pipeline(pipe, "magcache", schedule=path, threshold=1e9)
    run_wan(pipe, 6)
    assert "c" in decisions(pipe)[0]


def test_every_step_is_told_once_and_in_order():
    told = []
    calibrate(wan_pipeline(), "magcache", [run(4), run(4, seed=1)], progress=lambda *step: told.append(step))
    for number, label in enumerate(("dense run 1/2", "dense run 2/2")):
        assert told[5 * number] == (label, 0, 0)
        assert told[5 * number + 1 : 5 * number + 5] == [(label, step, 4) for step in range(1, 5)]
    assert len(told) == 10


# -- laws --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_calibrating_twice_gives_the_same_file(method, tmp_path):
    for name in "ab":
        write_calibration(calibrate(wan_pipeline(), method, [run(), run(seed=1)]), tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_a_calibration_runs_densely_and_leaves_no_trace(method):
    pipe, seen = wan_pipeline(), []
    bare = run_wan(pipe, STEPS)
    before = set(vars(pipe)), set(vars(pipe.scheduler)), attributes(pipe.transformer), forward_hooks(pipe.transformer)
    calibrate(pipe, method, lambda p: seen.append(run_wan(p, STEPS)))
    after = set(vars(pipe)), set(vars(pipe.scheduler)), attributes(pipe.transformer), forward_hooks(pipe.transformer)
    assert torch.equal(seen[0], bare)
    assert after == before
    assert torch.equal(run_wan(pipe, STEPS), bare)


@pytest.mark.parametrize("method", METHODS)
def test_a_calibration_that_fails_leaves_no_trace(method):
    pipe = wan_pipeline()
    bare = run_wan(pipe, STEPS)

    def fails(p):
        run_wan(p, STEPS, callback_on_step_end=lambda *a: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        calibrate(pipe, method, fails)
    assert not hasattr(pipe, "diffcache")
    assert forward_hooks(pipe.transformer) == forward_hooks(wan_pipeline().transformer)
    assert torch.equal(run_wan(pipe, STEPS), bare)


def test_an_earlier_method_comes_back():
    pipe = accelerate_pipeline(wan_pipeline(), "interval", interval=3)
    wanted = run_wan(pipe, STEPS)
    found = calibrate(pipe, "magcache", run())
    assert pipe.diffcache.config == make_config("interval", interval=3)
    assert torch.equal(run_wan(pipe, STEPS), wanted)
    # and did not change what was measured
    plain = calibrate(wan_pipeline(), "magcache", run())
    assert torch.equal(*(c.experts["transformer"].numbers["ratios"] for c in (found, plain)))


@pytest.mark.parametrize("method", METHODS)
def test_a_file_holds_all_that_was_found(method, files):
    found, again = calibrate(wan_pipeline(), method, run()), read_calibration(files[method])
    assert (again.method, again.sampler) == (method, "UniPCMultistepScheduler")
    assert (again.steps, again.runs) == (STEPS, 1)
    assert describe(again) == describe(found)
    one, two = found.experts["transformer"], again.experts["transformer"]
    assert (one.identity, one.steps, one.branches, one.quality) == (two.identity, two.steps, two.branches, two.quality)
    assert one.numbers.keys() == two.numbers.keys()
    assert all(torch.equal(one.numbers[name], two.numbers[name]) for name in one.numbers)


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
@pytest.mark.parametrize("method", METHODS)
def test_a_configuration_with_a_file_goes_through_yaml_and_json(method, suffix, files, tmp_path):
    config = make_config(method, schedule=files[method], threshold=0.3)
    config.save(tmp_path / f"c{suffix}")
    assert load_config(tmp_path / f"c{suffix}") == config
    pipe = accelerate_pipeline(wan_pipeline(), tmp_path / f"c{suffix}")
    assert pipe.diffcache.config == config


@pytest.mark.parametrize("method", METHODS)
def test_a_calibrated_method_that_never_skips_is_exact(method, files):
    pipe = wan_pipeline()
    bare = run_wan(pipe, STEPS)
    accelerate_pipeline(pipe, method, schedule=files[method], max_skip=0)
    assert torch.equal(run_wan(pipe, STEPS), bare)


@pytest.mark.parametrize("method", METHODS)
def test_a_larger_threshold_never_computes_more(method, files):
    counts = []
    for threshold in (0.0, 0.05, 0.2, 1.0, 1e9):
        pipe = accelerate_pipeline(wan_pipeline(), method, schedule=files[method], threshold=threshold)
        run_wan(pipe, STEPS)
        counts.append(decisions(pipe)[0].count("F"))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == STEPS > counts[-1]


def test_all_branches_take_the_decision_of_the_worst(files):
    pipe = accelerate_pipeline(wan_pipeline(), "magcache", schedule=files["magcache"], threshold=0.3)
    run_wan(pipe, STEPS)
    cond, uncond = decisions(pipe)
    assert cond == uncond
    rows = read_calibration(files["magcache"]).experts["transformer"].numbers["ratios"].tolist()
    assert cond == trace(MagCache(rows, 0.3, cooldown=1), STEPS)


# -- quality -----------------------------------------------------------------------------------------------------------


def test_calibrated_magcache_is_closer_to_dense_than_as_many_steps(loaded, tmp_path):  # noqa: F811
    trained, path, steps = loaded["tiny-wan"], tmp_path / "c.safetensors", 24
    write_calibration(calibrate(trained.pipe, "magcache", lambda pipe: trained.run(7, steps)), path)
    restore(trained.pipe)
    ours, computed = closeness(trained, steps, steps, "magcache", schedule=path)  # other seeds than the calibration's
    fewer, _ = closeness(trained, steps, computed, None)
    print(f"magcache {ours:.1f} dB with {computed} of {steps} steps computed, {computed} steps {fewer:.1f} dB")
    assert computed <= steps / 2
    assert ours > fewer


def test_calibrated_teacache_skips_on_other_seeds_and_says_how_well_it_fits(loaded, tmp_path):  # noqa: F811
    """Nothing is claimed about quality: it depends on the fit, which is reported."""
    trained, path, steps = loaded["tiny-wan"], tmp_path / "c.safetensors", 24
    found = calibrate(trained.pipe, "teacache", lambda pipe: trained.run(7, steps))
    write_calibration(found, path)
    expert = found.experts["transformer"]
    assert expert.quality["points"] == 2 * (steps - 1)
    assert 0 < expert.quality["error"] < math.inf
    assert bool(expert.note) == (expert.quality["r2"] < POOR)
    with accelerated(trained.pipe, "teacache", schedule=path, threshold=0.3):
        frames = trained.run(0, steps)
        letters = decisions(trained.pipe)
    assert all("c" in text for text in letters)
    assert np.isfinite(frames).all()


# -- the fit -----------------------------------------------------------------------------------------------------------


def test_a_polynomial_is_found_again():
    x = torch.linspace(0.02, 0.4, 30).double()
    y = 3 * x**2 - 0.5 * x + 0.1
    fit = fit_polynomial(list(zip(x.tolist(), y.tolist(), strict=True)))
    assert fit.r2 == pytest.approx(1)
    assert not fit.poor
    assert fit.fitted == pytest.approx((0.02, 0.4))
    values = np.polyval(fit.coefficients, x.numpy())
    assert values == pytest.approx(y.numpy())


def test_noise_is_a_poor_fit():
    points = list(zip(normal(40, seed=1).abs().tolist(), normal(40, seed=2).abs().tolist(), strict=True))
    fit = fit_polynomial(points)
    assert fit.poor
    assert fit.r2 < POOR


def test_of_several_degrees_the_one_that_predicts_best_is_taken():
    """Through eight noisy points of a line degree 5 passes closest, and is farthest from points that it never saw."""
    x = torch.linspace(0.1, 0.8, 8).double()
    y = 2 * x + 0.05 * normal(8, seed=3).double()
    points = list(zip(x.tolist(), y.tolist(), strict=True))
    fits = [fit_polynomial(points, degree) for degree in range(1, 6)]
    assert fits[0].degree == 1
    assert [fit.r2 for fit in fits] == sorted(fit.r2 for fit in fits)
    assert fits[-1].degree < 5


@pytest.mark.parametrize("points", [[], [(0.1, 0.2)] * 20, [(0.1 * k, 0.2) for k in range(3)]])
def test_too_few_points_are_refused(points):
    with pytest.raises(ConfigError, match="steps: too few for a fit"):
        fit_polynomial(points)


def test_a_poor_fit_is_said():
    """The input moves evenly, and the last block's output jumps about."""
    model = wan()
    seeds = iter(range(1, 1000))
    model.blocks[-1].register_forward_hook(lambda m, a, out: out + 3 * normal(*out.shape, seed=next(seeds)))

    def loop(m):
        for _ in walk_steps("wan", m, 24):
            pass

    expert = calibrate(model, "teacache", loop).experts["denoiser"]
    assert expert.quality["r2"] < POOR
    assert expert.note.startswith("poor fit: ")


# -- schedules ---------------------------------------------------------------------------------------------------------


def test_a_calibrated_polynomial_is_not_extrapolated():
    schedule = TeaCache(1.0, polynomial=(-1.0, 0.0, 0.5), fitted=(0.1, 0.6))
    assert schedule.rescale(0.3) == pytest.approx(0.41)
    assert schedule.rescale(0.01) == schedule.rescale(0.1)
    assert schedule.rescale(0.61) == math.inf
    assert schedule.rescale(math.nan) == math.inf
    assert TeaCache(1.0, polynomial=(-1.0, 0.0), fitted=(0.1, 0.6)).rescale(0.5) == 0


def test_of_several_branches_one_that_wants_a_step_is_enough():
    still, moving = [1.0] * 10, [1.0] + [0.5] * 9
    alone = trace(MagCache(moving, 0.6, retention=0, cooldown=0), 10)
    assert trace(MagCache([still, moving], 0.6, retention=0, cooldown=0), 10) == alone
    assert trace(MagCache([still, still], 0.6, retention=0, cooldown=0), 10) != alone
    gap = [1.0] * 4 + [math.nan] + [1.0] * 5
    assert trace(MagCache([still, gap], 9.0, retention=0, cooldown=0, max_skip=9), 10)[4] == "F"


# -- wrong arguments ---------------------------------------------------------------------------------------------------


def test_what_cannot_be_calibrated_is_refused():
    pipe = wan_pipeline()
    with pytest.raises(ConfigError, match="method: 'fora' takes no calibration; those that do: magcache, teacache"):
        calibrate(pipe, "fora", run())
    with pytest.raises(ConfigError, match="calls: none given"):
        calibrate(pipe, "magcache", [])
    with pytest.raises(ConfigError, match="degree: 0 is out of range"):
        calibrate(pipe, "teacache", run(), degree=0)
    with pytest.raises(ConfigError, match=r"steps.*: the runs differ \(4 and 5\)"):
        calibrate(pipe, "magcache", [run(4), run(5)])
    with pytest.raises(ConfigError, match="steps: too few for a fit"):
        calibrate(pipe, "teacache", run(2))
    with pytest.raises(ConfigError, match="calls: transformer never ran"):
        calibrate(pipe, "magcache", lambda p: None)
    with pytest.raises(UnsupportedModelError):
        calibrate(torch.nn.Linear(2, 2), "magcache", lambda m: None)


def test_a_run_that_breaks_off_is_refused():
    def interrupted(pipe):
        def stop(p, step, timestep, tensors):
            p._interrupt = step >= 2
            return {}

        run_wan(pipe, STEPS, callback_on_step_end=stop)

    with pytest.raises(ConfigError, match=f"broke off after step 3 of {STEPS}"):
        calibrate(wan_pipeline(), "magcache", interrupted)


def test_a_loop_that_does_not_say_how_long_it_is_cannot_be_calibrated():
    kind = FAMILIES["dit"]

    def loop(model):
        for level in (0.9, 0.8, 0.7):
            model(hidden_states=kind.latents(0, 1, 2), timestep=kind.time(level)[None], **kind.conditioning(1, 1))

    with pytest.raises(ConfigError, match=r"a bare denoiser samples in denoising\(\.\.\.\)"):
        calibrate(kind.build(0), "magcache", loop)


@pytest.mark.parametrize("method", METHODS)
def test_without_a_calibration_the_command_is_named(method):
    pipe = accelerate_pipeline(dit_pipeline(), "interval")
    with pytest.raises(ConfigError, match=f"diffcache calibrate --model MODEL --method {method}") as refused:
        accelerate_pipeline(pipe, method)
    assert "\n" not in str(refused.value)
    assert pipe.diffcache.config.method == "interval"
    accelerate_pipeline(pipe, method, max_skip=0)  # it computes every step and needs none
