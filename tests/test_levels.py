"""Levels of ``auto``: predicted steps at which a share of the tokens is computed. Planned, carried out, measured."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product
from math import inf
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffcache import ConfigError, ScheduleFileError, accelerate_model, accelerate_pipeline, estimate_memory, restore
from diffcache.hooks.grid import Grid
from diffcache.hooks.levels import LevelSite, _put
from diffcache.hooks.stats import SegmentStats
from diffcache.learn import calibrate, describe, read_calibration, write_calibration
from diffcache.learn.auto import _experts, _identities
from diffcache.learn.bench import Bench
from diffcache.learn.kept import Kept
from diffcache.learn.levels import Finding, Levels, _turns, told
from diffcache.learn.measuring import Reporter
from diffcache.learn.piloting import Piloted, _costs
from diffcache.predictors import Pilot, Plan
from diffcache.predictors.evidence import Evidence, Track
from diffcache.schedules.calibration import Calibration
from diffcache.schedules.levels import MOST, UNITS, Level, Market, Offer, Placement, spans
from diffcache.schedules.planning import Landscape, frontier
from diffcache.zoo import load_pipeline

from .denoisers import DENOISERS
from .denoisers.running import model_of
from .denoisers.running import run as run_class
from .models import FAMILIES, decisions, run_wan, sample, wan_pipeline
from .reads import Reads, watched

STEPS = 12
OFFER = Offer((Level(0.25, 0.3, 0.7), Level(0.5, 0.55, 0.4)), hold=0.1)


def run(seed):
    return lambda pipe: run_wan(pipe, STEPS, seed=seed)


def landscape(steps=6, seed=1):
    """Of outputs that no weighted sum foretells."""
    track = Track()
    turns = torch.randn(steps, 1, 400, generator=torch.Generator().manual_seed(seed))
    for step, value in enumerate(turns.cumsum(0).cumsum(0)):
        track.note("all", step, [], [value])
    return Landscape(Evidence.of([track], steps), np.exp(-np.linspace(0, 1, steps)))


def following(plan):
    pilot = Pilot()
    pilot.plan, pilot.levelled = plan, bool(plan.levels)
    return Piloted(pilots=lambda name: pilot)


def plan_with(shares, computed=(0, 1, 4, 8), steps=STEPS):
    """Reuses the newest; ``shares`` of the tokens at some steps."""
    levels = tuple(float(shares.get(step, 0.0)) for step in range(steps))
    weights = {name: [[1.0, 0.0, 0.0, 0.0]] * steps for name in ("all", "branch 1")}
    return Plan(steps, computed, weights, (inf,) * steps, levels=levels if shares else ())


# -- planning ----------------------------------------------------------------------------------------------------------


def every_placement(steps):
    for count in range(1, steps + 1):
        for rest in combinations(range(1, steps), count - 1):
            free = [step for step in range(steps) if step not in (0, *rest)]
            for kinds in product((None, 0, 1), repeat=len(free)):
                partial = tuple((s, k) for s, k in zip(free, kinds, strict=True) if k is not None)
                yield Placement((0, *rest), partial)


@pytest.fixture(scope="module")
def all_plans():
    """Price and squared error of every plan of some steps, the latter by its definition."""
    known = landscape()
    found = [p for p in every_placement(known.steps) if all(len(s[2]) <= MOST for s in spans(p, known.steps))]

    def error(placement, depth):
        total = 0.0
        for history, end, levels in spans(placement, known.steps):
            left = np.ones(end - history[0] - 1)
            for step, number in levels:
                left[step - history[0] - 1] = OFFER.levels[number].left
            products = known.products(history[:depth])[: len(left), : len(left)]
            total += float(left @ products @ left)
        return total

    def price(placement):
        levels = [OFFER.levels[number].price for _, number in placement.partial]
        return len(placement.computed) + sum(levels) + 0.1 * sum(bool(s[2]) for s in spans(placement, known.steps))

    prices = np.array([price(p) for p in found])
    return known, prices, np.array([error(p, 2) for p in found]), np.array([error(p, 3) for p in found])


@pytest.mark.parametrize("room", [1.0, 1.45, 2.0, 2.7, 3.3, 4.0, 5.2, 6.0])
def test_the_plan_is_the_best_of_all_that_there_are(room, all_plans):
    """Exact where predictions look back two steps; the polish to three makes it no worse than what is found so."""
    known, prices, errors, deep = all_plans
    market = Market(known, OFFER)
    able = prices <= room + 1e-9
    polish, market._polish = market._polish, lambda placement, most: placement
    found = market.plan(room)
    with_two = sum(_two_steps_back(market, span) for span in spans(found, known.steps))
    assert with_two == pytest.approx(errors[able].min(), rel=1e-9, abs=1e-12)
    polished = polish(found, int(UNITS * room + 1e-9))
    assert market.error(polished) <= market.error(found) * (1 + 1e-9)
    assert market.error(polished) >= deep[able].min() * (1 - 1e-9)
    assert OFFER.price(polished) <= UNITS * room + 1e-9


def _two_steps_back(market, span):
    history, end, levels = span
    return market._span(history[:2], end, levels)


def test_dear_levels_leave_the_plan_as_it_is_and_cheap_ones_join_it():
    known = landscape(12)
    plain = frontier(known, 4, 4)[4]
    assert Market(known, Offer((Level(0.5, 1.1, 0.5),))).plan(4.9).partial == ()
    assert Market(known, Offer((Level(0.5, 0.5, 1.1),))).plan(4.9).partial == ()  # it makes things worse
    cheap = Market(known, Offer((Level(0.5, 0.3, 0.5),)))
    found = cheap.plan(4.9)
    assert found.partial
    assert cheap.error(found) < known.error(plain)
    assert cheap.error(Placement(plain)) == pytest.approx(known.error(plain))
    assert cheap.plan(0.9) is None
    with_price = Market(known, Offer((Level(0.5, 0.3, 0.5),), hold=0.7)).plan(4.9)
    assert with_price.partial == ()  # holding tokens costs as well


# -- carrying out ------------------------------------------------------------------------------------------------------


def test_with_all_tokens_a_level_is_the_dense_step_bit_for_bit():
    """Predictions are wrong on purpose: nothing of them is left."""
    model = FAMILIES["wan"].build(0)
    dense = sample("wan", model)
    plan = plan_with(dict.fromkeys((2, 3, 5, 6, 7, 9, 10, 11), 0.999))
    accelerate_model(model, following(replace(plan, weights={n: [[1.2, 0.0, 0.0, 0.0]] * STEPS for n in plan.weights})))
    assert sample("wan", model).equals(dense)
    assert decisions(model) == ["FFppFpppFppp"] * 2
    assert {s.token_share for s in model.diffcache.stats().segments} == {1.0}
    restore(model)
    assert sample("wan", model).equals(dense)


def test_fresh_tokens_stand_among_the_prediction_and_do_not_join_the_history():
    model = FAMILIES["wan"].build(0)
    dense = sample("wan", model, cfg="none").outputs
    accelerate_model(model, following(plan_with({2: 0.5, 6: 0.5})))
    made = sample("wan", model, cfg="none").outputs
    assert decisions(model) == ["FFpcFcpcFccc"]
    tokens = made[2].unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2))  # windows of 2 x 2
    reused = (tokens == made[1].unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2))).all(-1).all(-2).all(1)
    assert 0.4 < float(reused.float().mean()) < 0.6
    assert float((made[2] - dense[2]).norm()) < 0.9 * float((made[1] - dense[2]).norm())
    assert torch.equal(made[3], made[1])  # of the last planned step again
    (segment,) = model.diffcache.stats().segments
    assert segment.token_share == pytest.approx((4 + 2 * 0.5) / STEPS, abs=0.02)


def test_the_tokens_are_held_from_the_step_before_a_level_to_the_next_computed_one():
    model = FAMILIES["wan"].build(0)
    accelerate_model(model, following(plan_with({6: 0.5})))
    ((_, hook),) = model.diffcache.hooks.values()
    held = []
    steps = lambda step: held.append([b.cache.tokens.nbytes for b in hook.segment.branches.values()] if step else [])  # noqa: E731
    sample("wan", model, before=steps)
    assert [bool(sum(sizes)) for sizes in held] == [5 <= step <= 8 for step in range(STEPS)]


def test_memory_is_what_was_estimated_with_and_without_levels(shared):
    pipe = wan_pipeline()
    call = dict(prompt_embeds=torch.zeros(1, 4, 16), negative_prompt_embeds=torch.zeros(1, 4, 16))
    call |= dict(height=48, width=48, num_frames=5, num_inference_steps=STEPS, guidance_scale=3.0, output_type="latent")
    sizes = []
    for path in shared:
        config = dict(schedule=path, speedup=1.01)
        estimate = estimate_memory(pipe, accelerate_pipeline(wan_pipeline(), "auto", **config).diffcache.config, **call)
        accelerate_pipeline(pipe, "auto", guard=inf, **config)
        pipe(**call)
        sizes.append(sum(s.cached_bytes for s in pipe.diffcache.stats().segments))
        assert estimate.cached_bytes == sizes[-1] > 0
    assert sizes[1] > 2 * sizes[0]


def test_a_denoiser_without_partial_steps_computes_them_in_full_and_counts_them():
    name = "ErnieImageTransformer2DModel"
    model = accelerate_model(model_of(name), following(plan_with({2: 0.5, 5: 0.5})))
    try:
        run_class(name, steps=STEPS)
        (segment,) = model.diffcache.stats().segments
        assert [(f.step, f.reason.split(":")[0]) for f in segment.fallbacks] == [
            (2, "no partial steps"),
            (5, "no partial steps"),
        ]
        assert (segment.partial, segment.decisions[2], segment.decisions[5], segment.decisions[3]) == (0, *"FFc")
    finally:
        restore(model)
    assert name in DENOISERS


def test_what_is_not_finite_stays_predicted():
    cache = SimpleNamespace(tokens=SimpleNamespace(age=torch.zeros(4)), grid=Grid(1, (1, 1)))
    part, guess = torch.full((1, 2, 2, 2), inf), torch.zeros(1, 2, 2, 2)
    part[:, :, 1] = 7.0
    made = _put(cache, torch.tensor([0, 2]), part, guess)
    assert made[0, 0].tolist() == [[0.0, 0.0], [7.0, 0.0]]


def test_the_host_reads_nothing_at_a_level():
    counts, model, pilot = [], FAMILIES["wan"].build(0), Pilot()
    pilot.lessons = {}
    for shares in ({}, {2: 0.5, 6: 0.5}, {2: 0.5, 6: 0.5}):  # where tokens are is learned once
        pilot.plan, pilot.levelled = plan_with(shares), bool(shares)
        accelerate_model(model, Piloted(pilots=lambda name: pilot))
        reads = Reads()
        with watched(reads):
            sample("wan", model)
        counts.append(reads.count)
        restore(model)
    assert counts[0] == counts[2] < counts[1], counts


# -- a calibration -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench():
    pipe = wan_pipeline()
    made = Bench(pipe, ["transformer"], [run(1), run(2)], Reporter(None), Kept(None, None))
    made.fly_dense()
    made.gains(3)
    return made


@pytest.fixture(scope="module")
def shared(bench, tmp_path_factory):
    """Files of a plan without levels, and of one with them, as a calibration makes them."""
    paths, levels = [], tuple(0.5 if step in (3, 9) else 0.0 for step in range(STEPS))
    for name, more in (("plain", ()), ("levels", levels)):
        measured = bench.improve((0, 1, 2, 5, 8), 1, more)
        facts = {"form": 2, "levels": [{"share": 0.5, "time": 0.6, "left": 0.9, "plans": int(bool(more))}]}
        experts = _experts([measured], bench, _identities(bench.pipe), facts if more else {"form": 2})
        found = Calibration("auto", bench.sampler, STEPS, 2, experts, guidance=3.0)
        number = experts["transformer"].numbers["speedup"]
        number.fill_(2.0)  # of so small a model none is faster
        paths.append(str(tmp_path_factory.mktemp("levels") / f"{name}.safetensors"))
        write_calibration(found, paths[-1])
    return paths


def test_a_file_keeps_the_levels_and_they_are_run(shared):
    pipe = wan_pipeline()
    for path, wanted in zip(shared, ("FFFccFccFccc", "FFFpcFccFpcc"), strict=True):
        accelerate_pipeline(pipe, "auto", schedule=path, speedup=2, guard=inf)
        run(3)(pipe)
        assert set(decisions(pipe)) == {wanted}
    assert "levels" not in read_calibration(shared[0]).experts["transformer"].numbers
    assert ("half of the tokens", "0.60 of a step's time, leaves 0.90 of the error: used in 1 plan") in describe(
        read_calibration(shared[1])
    )


@pytest.mark.parametrize("wrong", [lambda x: x + 0.5, lambda x: 3.0 * x, lambda x: -x, lambda x: x[:, :-1]])
def test_levels_that_cannot_be_are_refused(wrong, shared, tmp_path):
    known, path = read_calibration(shared[1]), tmp_path / "wrong.safetensors"
    expert = known.experts["transformer"]
    numbers = {**expert.numbers, "levels": wrong(expert.numbers["levels"]).contiguous()}
    write_calibration(replace(known, experts={"transformer": replace(expert, numbers=numbers)}), path)
    with pytest.raises(ScheduleFileError, match=r"damaged: .*levels"):
        accelerate_pipeline(wan_pipeline(), "auto", schedule=str(path))


def test_costs_and_what_is_left_are_measured_and_dear_levels_are_dropped(bench):
    dear = Levels(bench, (0.5,), 3, dear=0.0)
    assert dear.findings[0].time > 0.0
    assert (dear.findings[0].left, dear.offer) == (None, None)
    assert told(dear.facts)[1][1].endswith("of a step's time: not used")
    looked_at = Levels(bench, (0.5,), 3, dear=inf)
    assert 0.0 < looked_at.findings[0].left < 1.0  # on random weights, which are hard to predict
    assert looked_at.offer.levels[0].price > 0.0
    assert looked_at.better(Landscape(bench.evidence), {}, 0) == []
    assert Levels(bench, (), 3).facts == Levels(bench, (0.5,), 0).facts == {}


def test_a_plan_that_is_slower_than_it_was_reckoned_is_dropped(bench):
    levels = Levels(bench, (0.5,), 3, dear=0.0)
    levels.findings = [Finding(0.5, time=0.05, left=0.05)]  # which this model does not do
    plain = bench.improve((0, 3, 6), 0)
    made, improve = [], bench.improve
    bench.improve = lambda *args: made.append(improve(*args)) or made[-1]
    try:
        found = levels.better(Landscape(bench.evidence), {3.0: plain}, 0)
    finally:
        del bench.improve
    assert all(any(m.plan.levels) for m in made)
    assert found == [m for m in made if m.speedup >= 2.94 and sum(m.psnr) > sum(plain.psnr)]


def test_every_level_takes_its_turn_and_what_it_needs_is_held_before():
    for steps, number in product((12, 13, 14, 50), (0, 1)):
        turns = _turns(steps, (0.25, 0.5), number)
        assert len(turns) == steps
        assert {kind for _, kind in turns} == {"bare", "held", "level 0.25", "level 0.5"}
        plan = Plan(steps, tuple(s for s, (share, _) in enumerate(turns) if not share), {}, ())
        plan = replace(plan, levels=tuple(share for share, _ in turns))
        assert all(plan.holds(s) == (turns[s][1] == "held") for s in plan.computed)


def test_what_is_held_is_paid_by_the_steps_that_need_it():
    """A computed step costs what a bare one does, and no time is lost."""
    plan = plan_with({6: 0.5})
    segment = SegmentStats("x", "all", "FFccFcpcFccc", 4, 7, 1, 0.5, 0.5, 4.2, 0.8, 0)
    compute, other, _ = _costs([segment], plan, 0.2)
    assert compute == pytest.approx(1.0)
    assert 4 * compute + 8 * other == pytest.approx(5.0)
    assert _costs([segment], replace(plan, levels=()), 0.2)[0] == pytest.approx(1.05)


def test_a_calibration_says_what_it_found(tmp_path):
    labels = []
    options = dict(speedups=[2], rounds=0, probes=2, trials=0)
    progress = lambda label, done, total: labels.append(label)  # noqa: E731
    found = calibrate(wan_pipeline(), "auto", [run(1), run(2)], progress=progress, levels=[0.5], **options)
    assert any(label.startswith("time of levels") for label in labels)
    assert [name for name, _ in describe(found)][-1] == "half of the tokens"
    labels.clear()
    assert (
        "levels"
        not in calibrate(wan_pipeline(), "auto", [run(1), run(2)], progress=progress, levels=[], **options)
        .experts["transformer"]
        .facts
    )
    assert not any(label.startswith("time of levels") for label in labels)
    for wrong in ([1.5], 0.5, ["a"], [0]):
        with pytest.raises(ConfigError, match="levels: must be a list of shares of the tokens"):
            calibrate(wan_pipeline(), "auto", [run(1), run(2)], levels=wrong)


def test_on_a_trained_model_a_level_takes_error_off_a_plan():
    """Half of the tokens of tiny-dit at some predicted steps, against the same plan without."""
    pipe = load_pipeline("tiny-dit")
    pipe.set_progress_bar_config(disable=True)

    def sampled():
        call = dict(class_labels=[1], num_inference_steps=20, guidance_scale=4.0, output_type="np")
        return torch.from_numpy(pipe(**call, generator=torch.Generator().manual_seed(5)).images)

    dense, errors = sampled(), []
    for shares in ({}, {3: 0.5, 4: 0.5}):
        accelerate_pipeline(pipe, following(plan_with(shares, (0, 1, 2, *range(5, 20)), 20)))
        errors.append(float((sampled() - dense).norm()))
        assert isinstance(next(iter(pipe.diffcache.hooks.values()))[1].site, LevelSite) == bool(shares)
        restore(pipe)
    assert errors[1] < 0.9 * errors[0]
