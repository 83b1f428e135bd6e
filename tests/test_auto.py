"""``auto``: plans from measurements, the guard, what its files are refused for, and its quality on a trained model."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from math import inf

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from diffcache import (
    ConfigError,
    ScheduleFileError,
    accelerate_model,
    accelerate_pipeline,
    accelerated,
    denoising,
    list_models,
    restore,
)
from diffcache.errors import CalibratingWarning
from diffcache.hooks.forecast import Forecast
from diffcache.learn import calibrate, describe, make_calibrator, read_calibration, write_calibration
from diffcache.learn.climbing import Climb
from diffcache.learn.prices import Prices
from diffcache.learn.refitting import surprises
from diffcache.methods import make_config
from diffcache.methods.auto import NINE, NOISE, assured, caution
from diffcache.predictors.evidence import Evidence, Track
from diffcache.predictors.fitted import before
from diffcache.schedules.placing import splits_for
from diffcache.schedules.planning import Landscape, Placements, frontier, tabulate

from .models import FAMILIES, decisions, run_wan, wan_pipeline, wan_two_experts
from .reads import Reads, ignore_inside, watched

STEPS = 12
OPTIONS = dict(speedups=[1.5, 2, 3], rounds=1, probes=2, trials=1)


def run(seed, steps=STEPS):
    """A generation as calibration takes it: the latent stands for the pictures."""
    return lambda pipe: run_wan(pipe, steps, seed=seed)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A calibration of the tiny random Wan pipeline, and its file."""
    path = tmp_path_factory.mktemp("auto") / "auto.safetensors"
    found = calibrate(wan_pipeline(), "auto", [run(1), run(2)], **OPTIONS)
    write_calibration(found, path)
    return found, str(path)


def walk(seed, steps=8, width=40):
    """A trajectory whose outputs are smooth curves."""
    generator = torch.Generator().manual_seed(seed)
    a, b, c = torch.randn(3, width, generator=generator)
    track = Track()
    for step in range(steps):
        t = step / steps
        track.note("all", step, [a[None] * (1 - t)], [(a + b * t + c * t**2 * 0.3 + 0.1 * torch.sin(6 * t * b))[None]])
    return track


# -- planning ----------------------------------------------------------------------------------------------------------


def test_the_plan_of_each_length_is_the_best_of_all():
    """Dynamic programming with a last polish, against every placement there is."""
    landscape = Landscape(Evidence.of([walk(0), walk(1)], 8))
    for count, plan in frontier(landscape, 3, 5).items():
        every = [(0, *rest) for rest in combinations(range(1, 8), count - 1)]
        assert landscape.error(plan) <= 1.05 * min(map(landscape.error, every))


def test_more_computed_steps_are_never_worse():
    landscape = Landscape(Evidence.of([walk(0), walk(1)], 8))
    errors = [landscape.error(plan) for _, plan in sorted(frontier(landscape, 2, 8).items())]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0.0


def test_weights_are_no_worse_than_reuse_linear_and_taylor_on_what_they_were_fitted_to():
    tracks = [walk(0), walk(1)]
    evidence, computed = Evidence.of(tracks, 8), (0, 1, 3, 5)
    plan = tabulate(evidence, computed)
    for step in (4, 6, 7):
        history = before(computed, step)
        stack = [torch.cat([*(t.outputs["all"][s] for s in history), t.samples[history[0]]]) for t in tracks]
        truth = torch.cat([t.outputs["all"][step][0] for t in tracks])

        def miss(weights, stack=stack, truth=truth):
            made = torch.cat([torch.tensor(weights, dtype=torch.float32) @ rows for rows in stack])
            return float((made - truth).norm())

        ahead = (step - history[0]) / (history[0] - history[1])
        fitted = miss(plan.weights["all"][step])
        assert fitted <= miss([1.0, 0.0, 0.0, 0.0]) * 1.0001
        assert fitted <= miss([1.0 + ahead, -ahead, 0.0, 0.0]) * 1.0001


def test_a_constant_trajectory_is_reproduced():
    """With everything held constant a plan made of it changes nothing."""
    track = Track()
    for step in range(6):
        track.note("all", step, [torch.ones(1, 9)], [torch.arange(9.0)[None]])
    plan = tabulate(Evidence.of([track], 6), (0, 2))
    for step in (1, 3, 4, 5):
        weights, count = plan.weights["all"][step], len(plan.before(step))
        made = sum(weights[:count]) * torch.arange(9.0) + weights[-1]
        torch.testing.assert_close(made, torch.arange(9.0), rtol=1e-4, atol=1e-4)


def test_real_runs_lead_to_a_better_placement_than_gains_that_were_measured_wrongly():
    turns = torch.randn(16, 1, 400, generator=torch.Generator().manual_seed(1))
    track = Track()
    for step, value in enumerate(turns.cumsum(0).cumsum(0)):
        track.note("all", step, [], [value])
    evidence = Evidence.of([track], 16)
    truth, wrong = Landscape(evidence, np.exp(-np.linspace(0, 6, 16))), Landscape(evidence)
    runs = []

    def score(computed):
        runs.append(computed)
        return -10 * np.log10(truth.error(computed))

    start, best = frontier(wrong, 6, 6)[6], frontier(truth, 6, 6)[6]
    found = Climb([wrong], score).best([start], 6)
    assert len(runs) == len(set(runs)) == 7
    assert score(found) > score(start) + 0.5 * (score(best) - score(start)) > score(start) + 0.5


def test_steps_that_the_guard_would_add_are_counted_on_calls_that_were_left_out():
    plan = tabulate(Evidence.of([walk(1)], 8), (0, 2, 3, 6))
    quiet, loud = np.full((1, 8), 0.1), np.full((1, 8), 0.1)
    loud[0, 2:7] = 0.2  # at 2 a step is computed that the plan has anyway, at 4 and 5 nothing is looked at
    assert surprises(plan, [quiet, loud], 1.5) == [1.0]
    assert surprises(plan, [quiet, loud], 2.5) == [0.0]


def test_a_variance_that_goes_as_it_is_known_to_go_has_not_left():
    def alarms(value, changes):
        return Forecast(make_config("auto").recipe()).collapses(0, [1.0], [[value]], changes) == [[True]]

    assert (alarms(0.3, None), alarms(0.3, [0.4]), alarms(3.0, [2.0])) == (True, False, False)
    assert all(alarms(value, [0.4]) for value in (0.1, 2.1, inf, float("nan")))
    plan = replace(tabulate(Evidence.of([walk(1)], 8), (0, 2)), spread={"all": [4.0, 2.0, 1.0] + [1.0] * 5})
    assert (plan.change("all", 0, 2), plan.change("other", 0, 2)) == (0.25, 1.0)


@pytest.mark.parametrize("prices", [(1.0, 1.0), (1.0, 2.5)])
def test_what_two_denoisers_compute_is_the_best_that_the_budget_pays(prices):
    """Against every placement there is; no span crosses the border, and both begin with a computed step."""
    evidence = Evidence.of([walk(0), walk(1)], 8, starts=(0, 3))
    landscape, room = Landscape(evidence), 5.2
    splits = splits_for([3, 5], prices, room)
    found = Placements(landscape, 8).best(splits)
    assert {0, 3} <= set(found)
    every = [p for n in range(3, 6) for p in combinations(range(8), n) if landscape.split(p) in splits]
    cost = [sum(prices[step >= 3] for step in placement) for placement in every]
    assert room - max(prices) < max(cost) <= room
    assert landscape.error(found) <= 1.05 * min(map(landscape.error, every))
    assert landscape.span((2, 0), 4) == inf
    plan = tabulate(evidence, found)
    assert plan.weights["all"][3] == [0.0] * 4
    assert plan.before(5) == tuple(s for s in sorted(found, reverse=True) if 3 <= s < 5)
    assert [part.computed[0] for part in plan.segments()] == [0, 0]


def test_a_plan_is_paid_with_what_each_denoiser_costs():
    prices = Prices((4, 6), ((1.0, 0.0, 0.0), (3.0, 0.5, 0.1)))
    assert prices.dense == 22.0
    assert prices.speedup((4, 6)) == pytest.approx(22.0 / 22.6)
    assert prices.speedup((1, 2)) == pytest.approx(22.0 / (1 + 6 + 2 + 0.6))
    for split in prices.splits(1.5):
        assert prices.speedup(split) >= 1.5
        assert all(
            prices.speedup(more) < 1.5 for more in ((split[0], split[1] + 1), (split[0] + 1, split[1])) if more[0] < 5
        )
    assert not prices.splits(8.0)


# -- a calibration and what runs with it -------------------------------------------------------------------------------


def test_the_decisions_are_those_of_the_plan(made):
    found, path = made
    numbers = found.experts["transformer"].numbers
    pipe = wan_pipeline()
    for number, speedup in enumerate(numbers["speedup"].tolist()):
        accelerate_pipeline(pipe, "auto", schedule=path, speedup=max(speedup - 1e-3, 1.0), guard=inf)
        run(3)(pipe)
        able = [i for i, s in enumerate(numbers["speedup"].tolist()) if s >= NOISE * (speedup - 1e-3)]
        best = max(able, key=lambda i: float(numbers["psnr"][i].mean()))
        wanted = "".join("F" if chosen else "c" for chosen in numbers["computed"][best].tolist())
        assert set(decisions(pipe)) == {wanted}, number


def test_all_is_described_and_survives_the_file(made):
    found, path = made
    again = read_calibration(path)
    assert describe(again) == describe(found)
    assert again.guidance == 3.0
    for name, value in found.experts["transformer"].numbers.items():
        torch.testing.assert_close(again.experts["transformer"].numbers[name], value, equal_nan=True)


def test_a_file_without_the_spread_of_outputs_is_read_as_well(made, tmp_path):
    found, _ = made
    expert = found.experts["transformer"]
    assert expert.numbers["spread"].shape == (2, STEPS)
    numbers = {name: value for name, value in expert.numbers.items() if name != "spread"}
    write_calibration(
        replace(found, experts={"transformer": replace(expert, numbers=numbers)}), tmp_path / "a.safetensors"
    )
    pipe = accelerate_pipeline(wan_pipeline(), "auto", schedule=str(tmp_path / "a.safetensors"), speedup=1.5)
    run(3)(pipe)
    assert "c" in decisions(pipe)[0]


def test_the_host_reads_once_for_a_computed_step_and_never_for_a_predicted_one(made):
    _, path = made
    counts = []
    for guard in (None, 1.5):
        reads, pipe = Reads(), wan_pipeline()
        ignore_inside(pipe.transformer, reads)
        if guard is not None:
            accelerate_pipeline(pipe, "auto", schedule=path, speedup=1.3, guard=guard)
        with watched(reads):
            run(3)(pipe)
        counts.append(reads.count)
    letters = decisions(pipe)[0]
    assert "c" in letters
    assert counts[1] - counts[0] <= letters.count("F")


def test_memory_is_three_outputs_and_a_sample(made):
    _, path = made
    pipe = wan_pipeline()
    accelerate_pipeline(pipe, "auto", schedule=path, speedup=1.3, guard=inf)
    made_of = run(3)(pipe)
    assert {s.cached_bytes for s in pipe.diffcache.stats().segments} == {4 * made_of.numel() * 4}


def test_a_harder_sample_than_those_of_the_calibration_is_computed_more_often(made):
    _, path = made
    pipe, counts = wan_pipeline(), []
    for guard in (inf, 0.0):
        accelerate_pipeline(pipe, "auto", schedule=path, speedup=1.3, guard=guard)
        run(3)(pipe)
        counts.append(decisions(pipe)[0].count("F"))
    assert counts[0] < counts[1]
    assert any(h is not None for h in pipe.diffcache.stats().segments[0].heard)


def test_a_pipeline_without_a_calibration_is_measured_in_its_first_generation():
    pipe, bare = wan_pipeline(), wan_pipeline()
    accelerate_pipeline(pipe, "auto", speedup=2)
    with pytest.warns(CalibratingWarning, match="no calibration for 12 steps") as warned:
        first = run(1)(pipe)
    assert [w.category for w in warned] == [CalibratingWarning]  # that nothing was skipped has been said
    assert "to be measured" in pipe.diffcache.stats().reason
    assert torch.equal(first, run(1)(bare))
    run(2)(pipe)
    assert {text.count("F") for text in decisions(pipe)} == {STEPS // 2}
    restore(pipe)
    assert torch.equal(run(1)(pipe), first)


def sampled(model, seed, moving=(True, True)):
    """A bare loop over a batch of two, of which some samples are held where they began."""
    kind, scheduler = FAMILIES["wan"], FlowMatchEulerDiscreteScheduler()
    x, conditioning = kind.latents(seed, 2, 2), kind.conditioning(seed, 2)
    still, outputs = ~torch.tensor(moving), []
    with torch.no_grad(), denoising(model, STEPS, scheduler):
        scheduler.set_timesteps(STEPS)
        for t in scheduler.timesteps:
            time = torch.where(still, 500.0, t)
            out = model(hidden_states=x, timestep=time, **conditioning, **kind.fixed(2), return_dict=False)[0]
            after = scheduler.step(out, t, x, return_dict=False)[0]
            x = torch.where(still.view(2, 1, 1, 1, 1), x, after)
            outputs.append(out)
    return torch.stack(outputs)


@pytest.mark.parametrize("moving", [(False, False), (True, False)])
def test_what_stands_still_is_reused_whatever_the_weights_are(moving, tmp_path):
    """Law 6, for an input that no calibration has seen; also beside a sample that moves."""
    model, path = FAMILIES["wan"].build(0), tmp_path / "auto.safetensors"
    runs = [lambda m, seed=seed: sampled(m, seed)[-1] for seed in (1, 2)]
    write_calibration(calibrate(model, "auto", runs, **{**OPTIONS, "probes": 0}), path)
    dense = sampled(model, 3, moving)
    accelerate_model(model, "auto", schedule=path, speedup=1.4, guard=inf)
    outputs = sampled(model, 3, moving)
    assert "c" in decisions(model)[0]
    torch.testing.assert_close(outputs[:, 1], dense[:, 1], rtol=2e-6, atol=1e-5)


def test_an_interrupted_calibration_goes_on(tmp_path):
    kept, seen = tmp_path / "kept.partial", []

    def broken(pipe):
        raise KeyboardInterrupt

    def counted(seed):
        return lambda pipe: (seen.append(seed), run(seed)(pipe))[1]

    with pytest.raises(KeyboardInterrupt):
        calibrate(wan_pipeline(), "auto", [counted(1), broken], kept=kept, **OPTIONS)
    assert (seen, kept.is_file()) == ([1], True)
    calibrate(wan_pipeline(), "auto", [counted(1), counted(2)], kept=kept, **{**OPTIONS, "probes": 0})
    assert seen[:2] == [1, 1]  # other options: begun anew
    assert not kept.exists()


# -- two denoisers that take turns -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """A calibration of a random Wan 2.2 pipeline with two experts, and its file."""
    path = tmp_path_factory.mktemp("experts") / "auto.safetensors"
    write_calibration(calibrate(wan_two_experts(), "auto", [run(1), run(2)], **OPTIONS), path)
    return read_calibration(path), str(path)


def test_two_experts_run_under_one_plan(experts):
    known, path = experts
    high, low = known.experts["transformer"], known.experts["transformer_2"]
    assert high.steps + low.steps == known.steps == STEPS
    assert torch.equal(high.numbers["speedup"], low.numbers["speedup"])
    assert all(bool((e.numbers["computed"][:, 0] == 1.0).all()) for e in (high, low))
    plans = len(high.numbers["speedup"])
    told = [label.partition(" ")[0] for label, _ in describe(known)]
    assert told == ["trajectories"] + ["transformer"] * (plans + 1) + ["transformer_2"] * (plans + 1)
    pipe = accelerate_pipeline(wan_two_experts(), "auto", schedule=path, speedup=1.5, guard=inf)
    sample = run(3)(pipe)
    number = max(
        (i for i, s in enumerate(high.numbers["speedup"].tolist()) if s >= NOISE * 1.5),
        key=lambda i: float(high.numbers["psnr"][i].mean()),
    )
    wanted = ["".join("F" if c else "c" for c in e.numbers["computed"][number].tolist()) for e in (high, low)]
    assert decisions(pipe) == [wanted[0]] * 2 + [wanted[1]] * 2
    assert "c" in "".join(wanted)
    restore(pipe)
    dense = run(3)(pipe)
    assert not torch.equal(sample, dense)
    assert float((sample - dense).norm() / dense.norm()) < 0.1


def test_a_plan_of_two_experts_is_for_their_boundary_and_for_both(experts):
    _, path = experts
    pipe = accelerate_pipeline(wan_two_experts(boundary=0.4), "auto", schedule=path)
    with pytest.raises(ScheduleFileError, match="steps of transformer: made for 5, but here it is 8"):
        run(1)(pipe)
    with pytest.raises(ScheduleFileError, match="model: made for transformer and transformer_2, but here it is trans"):
        accelerate_pipeline(wan_pipeline(), "auto", schedule=path)
    with pytest.raises(ConfigError, match=r"calls: transformer_2 never ran .* change the boundary between them"):
        calibrate(wan_two_experts(boundary=0.0), "auto", [run(1), run(2)], **OPTIONS)


def test_files_whose_experts_disagree_are_refused(experts, tmp_path):
    known, _ = experts
    low = known.experts["transformer_2"]
    other = replace(low, numbers={**low.numbers, "psnr": low.numbers["psnr"] + 1.0})
    write_calibration(replace(known, experts={**known.experts, "transformer_2": other}), tmp_path / "a.safetensors")
    with pytest.raises(ScheduleFileError, match="damaged: the plans of transformer and transformer_2 differ"):
        make_config("auto", schedule=tmp_path / "a.safetensors")


def test_two_experts_without_a_calibration_are_measured_in_their_first_generation():
    pipe, bare = accelerate_pipeline(wan_two_experts(), "auto", speedup=2), wan_two_experts()
    with pytest.warns(CalibratingWarning, match="no calibration for 5 steps"):
        assert torch.equal(run(1)(pipe), run(1)(bare))
    run(2)(pipe)
    assert [text[0] + str(text.count("F")) for text in decisions(pipe)] == ["F2", "F2", "F3", "F3"]


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_file_for_something_else_is_refused(made):
    found, path = made
    pipe = accelerate_pipeline(wan_pipeline(), "auto", schedule=path)
    with pytest.raises(ScheduleFileError, match="steps: made for 12, but here it is 10"):
        run(1, steps=10)(pipe)
    with pytest.raises(ScheduleFileError, match="guidance: made for 3, but here it is 5"):
        run_wan(pipe, STEPS, guidance=5.0)
    other = replace(found, source="file")
    with pytest.raises(ScheduleFileError, match="timestep of step 1: made for"):
        other.check_timesteps((1.0, 2.0), (1.0, 3.0))
    with pytest.raises(ScheduleFileError, match="method: made for auto"):
        accelerate_pipeline(wan_pipeline(), "magcache", schedule=path)


def test_a_file_of_an_earlier_form_is_refused(made, tmp_path):
    found, path = made[0], tmp_path / "old.safetensors"
    write_calibration(replace(found, experts={n: replace(e, facts={}) for n, e in found.experts.items()}), path)
    with pytest.raises(ScheduleFileError, match="form: the file has 1, this diffcache reads 2; make it again"):
        accelerate_pipeline(wan_pipeline(), "auto", schedule=str(path))


def test_the_promise_is_below_what_was_measured(made):
    """By the spread over the runs, more of it the fewer they are, and by what runs lose that were not fitted to."""
    expert = made[0].experts["transformer"]
    psnr, optimism = expert.numbers["psnr"], expert.numbers["optimism"]
    assert optimism.shape == psnr.shape[:1]
    assert (optimism >= 0.0).all()
    assert (assured(expert) <= psnr.mean(1) - optimism).all()
    generator = torch.Generator().manual_seed(0)
    for runs in (4, 8, 16):  # nine in ten samples are above the bound, nine times in ten
        x = torch.randn(4000, runs, generator=generator)
        bound = x.mean(1) - caution(runs) * x.std(1)
        assert 0.87 < float((bound < -NINE).float().mean()) < 0.93


def test_a_target_out_of_reach_says_what_is_in_reach(made):
    _, path = made
    with pytest.raises(ConfigError, match=r"out of reach, .* from \d\.\d+x to \d\.\d+x for \d+ steps; .* auto --steps"):
        accelerate_pipeline(wan_pipeline(), "auto", schedule=path, speedup=50)
    with pytest.raises(ConfigError, match=r"min_psnr: 190 is out of reach, .* assures at most"):
        accelerate_pipeline(wan_pipeline(), "auto", schedule=path, min_psnr=190)
    with pytest.raises(ConfigError, match="min_psnr: auto needs the model's measured plans"):
        accelerate_pipeline(wan_pipeline(), "auto", min_psnr=30)
    with pytest.raises(ConfigError, match="speedup: cannot go with min_psnr"):
        accelerate_pipeline(wan_pipeline(), "auto", speedup=2, min_psnr=30)


def test_the_quick_mode_has_fewer_plans_and_no_search():
    full, quick = make_calibrator("auto"), make_calibrator("auto", quick=True)
    assert len(quick.speedups) < len(full.speedups)
    assert (quick.rounds, quick.trials) == (1, 0)
    assert len(quick.quick_seeds.split(",")) < len(full.seeds.split(","))
    assert make_calibrator("auto", quick=True, trials=3).trials == 3


def test_bad_calibrations_are_refused():
    with pytest.raises(ConfigError, match="seeds: one is too few"):
        calibrate(wan_pipeline(), "auto", run(1))
    with pytest.raises(ConfigError, match="speedups: must be a list of numbers > 1"):
        calibrate(wan_pipeline(), "auto", [run(1), run(2)], speedups=[0.5])
    with pytest.raises(ConfigError, match="unknown option 'degree'"):
        calibrate(wan_pipeline(), "auto", [run(1), run(2)], degree=3)
    with pytest.raises(ConfigError, match="steps: the runs differ"):
        calibrate(wan_pipeline(), "auto", [run(1), run(2, steps=10)], **OPTIONS)


# -- on a trained model ------------------------------------------------------------------------------------------------


def test_on_a_trained_model_it_beats_worldcache_and_fewer_steps_at_a_third_of_the_calls():
    from diffcache.zoo import load_pipeline

    pipe = load_pipeline("tiny-dit")
    pipe.set_progress_bar_config(disable=True)

    def sample(steps=50):
        guidance = list_models()["tiny-dit"].guidance_scale
        call = dict(class_labels=[1], num_inference_steps=steps, guidance_scale=guidance, output_type="np")
        return pipe(**call, generator=torch.Generator().manual_seed(11)).images

    def psnr(pictures):
        return -10 * np.log10(np.mean((pictures - dense) ** 2))

    dense = sample()
    fewer = psnr(sample(17))
    with accelerated(pipe, "auto", speedup=2.8):
        auto, used = psnr(sample()), decisions(pipe)[0].count("F")
    with accelerated(pipe, "worldcache", computed=used, threshold=inf):
        worldcache = psnr(sample())
    assert used <= 18
    assert auto > worldcache + 1.0
    assert auto > fewer + 3.0
