"""Laws of the schedules: pure decisions, without a model."""

from __future__ import annotations

import itertools
import math

import pytest

from diffcache.schedules import (
    Broadcast,
    ChaoticSkipping,
    EasyCache,
    Explicit,
    FirstBlock,
    Guarded,
    Interval,
    MagCache,
    PowerLaw,
    Schedule,
    TeaCache,
    power_law,
    streak,
)


def trace(schedule, total, drift=None, branches=1, error=math.nan, timesteps=None):
    """The decisions of a trajectory in which every computed step of three or more makes a plan.

    ``drift`` is what is heard and planned with, as a function of the distance to the last computed step.
    """
    schedule.start(total, [1000 - 1000 * step / total for step in range(total)] if timesteps is None else timesteps)
    letters, computed = "", 0
    for step in range(total):
        compute = schedule.wants_compute(step)
        if schedule.undecided(step):
            compute = schedule.judge(step, drift(step - schedule.last))
        if compute:
            schedule.computed(step)
            computed += 1
            letters += "F"
            if schedule.wants_drift and computed >= 3:
                ahead = schedule.reach(step)
                if ahead:
                    drifts = [[drift(k) for k in range(1, ahead + 1)]] * branches
                    schedule.plan(drifts, [error] * branches)
        else:
            letters += "c"
    return letters


ALL = {
    "interval": lambda **k: Interval(3, **k),
    "explicit": lambda **k: Explicit([4, 9], **k),
    "powerlaw": lambda **k: PowerLaw(0.3, 1.5, **k),
    "chaotic": lambda **k: ChaoticSkipping(1.0, **{"warmup": 3, "max_skip": 99, **k}),
    "guarded": lambda **k: Guarded(0.3, 1.5, 0.5, **{"warmup": 3, **k}),
    "first block": lambda **k: FirstBlock(0.25, **k),
    "teacache": lambda **k: TeaCache(0.5, **k),
    "easycache": lambda **k: EasyCache(0.5, **k),
    "magcache": lambda **k: MagCache([1.0, 0.99, 0.97, 0.9], 0.2, **{"max_skip": 99, **k}),
    "broadcast": lambda **k: Broadcast(4, **k),
}


@pytest.mark.parametrize("total", [1, 2, 3, 7, 20, 50])
@pytest.mark.parametrize("name", ALL)
def test_warmup_cooldown_and_max_skip_are_kept(name, total):
    for warmup in (1, 3, 6):
        for cooldown in (0, 1, 4):
            for max_skip in (0, 1, 2, 5):
                schedule = ALL[name](warmup=warmup, cooldown=cooldown, max_skip=max_skip)
                letters = trace(schedule, total, lambda k: 0.1)
                assert set(letters[:warmup]) <= {"F"}
                assert set(letters[total - cooldown :] if cooldown else "") <= {"F"}
                assert "c" * (max_skip + 1) not in letters


@pytest.mark.parametrize("name", ALL)
def test_an_unknown_total_computes_everything(name):
    schedule = ALL[name]()
    schedule.start(None)
    for step in range(30):
        assert schedule.wants_compute(step)
        assert not schedule.undecided(step)
        schedule.computed(step)
        assert schedule.reach(step) == 0


@pytest.mark.parametrize("name", ALL)
def test_reach_is_the_run_that_follows_without_a_plan(name):
    schedule = ALL[name](warmup=3)
    schedule.start(30, [1000 - 33 * step for step in range(30)])
    for step in range(30):
        if schedule.wants_compute(step):
            schedule.computed(step)
            reach, last = schedule.reach(step), step
        else:
            assert step - last <= reach
        if step - last == reach and step + 1 < 30:
            assert schedule.wants_compute(step + 1)


@pytest.mark.parametrize("name", ALL)
def test_a_restarted_schedule_decides_alike(name):
    schedule = ALL[name]()
    first = trace(schedule, 30, lambda k: 0.2)
    trace(schedule, 17, lambda k: 3.0, error=5.0)
    assert trace(schedule, 30, lambda k: 0.2) == first


def test_the_base_schedule_skips_all_but_the_edges():
    assert trace(Schedule(2, 1), 6) == "FFcccF"


@pytest.mark.parametrize("interval", [1, 2, 3, 7])
def test_interval(interval):
    letters = trace(Interval(interval, warmup=2, cooldown=0), 40)
    computed = [i for i, letter in enumerate(letters) if letter == "F"]
    assert all(b - a == interval for a, b in itertools.pairwise(computed[1:]))


def test_explicit_computes_the_listed_steps_and_no_other():
    assert trace(Explicit([0, 4, 5]), 8) == "FcccFFcF"


def test_a_listed_step_that_does_not_exist_is_named():
    with pytest.warns(UserWarning, match="steps: 8, 99 cannot be computed, the denoiser runs 8 steps here: .* 0 to 7"):
        assert trace(Explicit([0, 4, 99, 8]), 8) == "FcccFccF"


@pytest.mark.parametrize("total", [1, 2, 5, 12, 20, 50, 1000])
@pytest.mark.parametrize("alpha", [0.3, 1.0, 1.5, 4.0, 10.0])
@pytest.mark.parametrize("warmup", [1, 3, 10])
def test_power_law_places_what_was_asked_for(total, alpha, warmup):
    for computed in (1, 2, 4, 9, 15, 60, 0.1, 0.3, 0.9):
        steps = power_law(total, computed, alpha, warmup)
        count = round(computed * total) if computed < 1 else computed
        first = min(warmup, total)
        assert len(steps) == min(max(count, first), total)
        assert steps == sorted(set(steps))
        assert steps[:first] == list(range(first))
        assert steps[-1] < total
        if count > first:
            assert steps[-1] == total - 1


def test_alpha_one_is_even_and_larger_alpha_is_earlier():
    even = power_law(50, 15, 1.0, 3)
    gaps = [b - a for a, b in itertools.pairwise(even[2:])]
    assert max(gaps) - min(gaps) <= 1
    sums = [sum(power_law(50, 15, alpha, 3)) for alpha in (0.7, 1.0, 1.5, 2.0, 3.0)]
    assert sums == sorted(sums, reverse=True)
    late = power_law(50, 15, 1.7, 3)
    gaps = [b - a for a, b in itertools.pairwise(late[2:])]
    assert all(b - a >= -1 for a, b in itertools.pairwise(gaps))


def test_streak_is_the_smallest_sum_that_reaches_the_threshold():
    assert streak([0.4] * 4, 1.0) == 3
    assert streak([0.1] * 4, 1.0) == 4
    assert streak([5.0] * 4, 1.0) == 1
    assert streak([], 1.0) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_drift_that_is_no_number_ends_the_run_before_it(bad):
    assert streak([0.1, bad, 0.1], 1.0) == 1
    guarded = Guarded(0.1, 1.5, 0.5, warmup=3)
    guarded.start(30)
    for step in range(3):
        guarded.computed(step)
    guarded.plan([[0.1, bad] + [0.1] * 5], [math.nan])
    assert not guarded.wants_compute(3)
    assert guarded.wants_compute(4)


# -- the guard ---------------------------------------------------------------------------------------------------------


def test_the_guard_only_ever_adds_computed_steps():
    placed = trace(Guarded(0.3, 1.5, math.inf, warmup=3), 40, lambda k: 9.0)
    guarded = trace(Guarded(0.3, 1.5, 0.5, warmup=3), 40, lambda k: 0.2 * k)
    assert all(b == "F" for a, b in zip(placed, guarded, strict=True) if a == "F")
    assert guarded.count("F") > placed.count("F")
    assert trace(PowerLaw(0.3, 1.5, warmup=3), 40) == placed


def test_a_smaller_threshold_never_computes_less():
    counts = [
        trace(Guarded(0.2, 1.5, threshold, warmup=3), 50, lambda k: 0.1 * k).count("F")
        for threshold in (math.inf, 1.0, 0.5, 0.3, 0.2, 0.1, 0.0)
    ]
    assert counts == sorted(counts)
    assert counts[-1] == 50


def test_a_larger_measured_error_never_computes_less():
    counts = [
        trace(Guarded(0.2, 1.5, 0.5, warmup=3), 50, lambda k: 0.1 * k, error=error).count("F")
        for error in (0.05, 0.2, 1.0, 5.0)
    ]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


@pytest.mark.parametrize("error", [0.02, 0.2, 1.0])
def test_a_branch_that_is_a_copy_of_another_changes_no_decision(error):
    """Separate guidance with two equal branches decides like the one branch: the gain of a plan is about one run."""
    drift = lambda k: 0.1 * k**1.5  # noqa: E731
    one = trace(Guarded(0.2, 1.5, 0.5, warmup=3), 50, drift, branches=1, error=error)
    two = trace(Guarded(0.2, 1.5, 0.5, warmup=3), 50, drift, branches=2, error=error)
    assert one == two


def test_the_error_is_compared_with_the_drift_that_foretold_it():
    """Two branches: the second one's error belongs to the run that ended, not to the plan its neighbour just made."""
    guard = Guarded(0.2, 1.5, 0.5, warmup=3)
    guard.start(50)
    for step in range(3):
        guard.computed(step)
    guard.plan([[0.1] * guard.reach(2)] * 2, [math.nan] * 2)
    step = 3
    while not guard.wants_compute(step):
        step += 1
    guard.computed(step)
    # the error is what the drift foretold; the next run is foretold to be ten times worse
    guard.plan([[1.0] * guard.reach(step)] * 2, [0.1] * 2)
    believed = Guarded.prior * Guarded.weight
    assert guard.gain == pytest.approx((believed + 0.1) / (Guarded.weight + 0.1))


def test_a_run_that_looked_straight_by_chance_does_not_rule_the_guard():
    """Drift near zero and an ordinary error: a ratio of the two would forbid every prediction from then on."""
    guard = Guarded(0.2, 1.5, 0.2, warmup=3)
    guard.start(50)
    for step in range(3):
        guard.computed(step)
    guard.plan([[1e-6] * guard.reach(2)], [math.nan])
    step = 3
    while not guard.wants_compute(step):
        step += 1
    guard.computed(step)
    guard.plan([[0.01] * guard.reach(step)], [0.04])
    assert not guard.wants_compute(step + 1)


def run(guard, total, drift, error):
    """The decisions where each run is measured: ``drift`` foretells its step k, ``error`` is found where it ends."""
    guard.start(total)
    letters = ""
    for step in range(total):
        compute = guard.wants_compute(step)
        letters += "F" if compute else "c"
        if compute:
            skipped = step - guard.last - 1
            guard.computed(step)
            if step >= 2 and guard.reach(step):
                ahead = range(1, guard.reach(step) + 1)
                guard.plan([[drift(k) for k in ahead]], [error(step, skipped) if skipped else math.nan])
    return letters


@pytest.mark.parametrize("computed", [0.1, 0.2, 0.4, 0.6])
@pytest.mark.parametrize("noise", [lambda step, skipped: 1.35, lambda step, skipped: 0.3 * skipped])
def test_a_path_that_looks_straight_and_is_not_is_computed(noise, computed):
    """New noise at every step: no drift, and errors far above the threshold."""
    traces = [
        run(Guarded(computed, 1.5, threshold, warmup=3, max_skip=8), 50, lambda k: 0.0, noise)
        for threshold in (math.inf, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.0)
    ]
    counts = [letters.count("F") for letters in traces]
    assert counts == sorted(counts)
    assert traces[1].count("c") > 2 * traces[4].count("c")  # or what was measured has decided nothing
    assert traces[-2][16:].count("c") <= 1  # 0.02: what the first runs showed lasts


def test_a_wary_guard_tries_again_and_lets_runs_grow_with_what_it_measures():
    errors = lambda step, skipped: 1.35 if step < 12 else 0.01  # noqa: E731
    letters = run(Guarded(0.2, 1.5, 0.5, warmup=3, max_skip=8), 60, lambda k: 0.0, errors)
    placed = run(Guarded(0.2, 1.5, math.inf, warmup=3, max_skip=8), 60, lambda k: 0.0, errors)
    first = letters.index("cF") + 2
    again = letters.index("c", first)
    assert letters[first:again] == "F" * 10  # 1.35 * 0.9**10 is below 0.5
    assert letters[again + 1] == "F"
    assert letters[again + 2 :] == placed[again + 2 :]


def test_a_run_that_nobody_measured_keeps_the_guard_wary():
    guard = Guarded(1, 1.5, 0.5, warmup=3)
    guard.start(60)
    for step in (0, 1, 2):
        guard.computed(step)
    guard.plan([[0.0] * guard.reach(2)], [math.nan])
    guard.computed(4)
    guard.plan([[0.0] * guard.reach(4)], [0.6])
    assert guard.wants_compute(5)
    for step in (5, 6):
        guard.computed(step)
    guard.plan([[0.0] * guard.reach(6)], [math.nan])
    assert not guard.wants_compute(7)
    guard.computed(8)
    guard.plan([[0.0] * guard.reach(8)], [math.nan])
    assert guard.wants_compute(9)


def test_an_error_that_the_drift_foretold_changes_the_gain_alone():
    """Above the threshold, but not by surprise: the calibration answers it, as it does on deterministic samplers."""
    guard = Guarded(0.2, 1.5, 0.5, warmup=3)
    guard.start(50)
    for step in range(3):
        guard.computed(step)
    guard.plan([[0.15] * guard.reach(2)], [math.nan])
    step = 3
    while not guard.wants_compute(step):
        step += 1
    guard.computed(step)
    guard.plan([[0.01] * guard.reach(step)], [0.6])
    assert guard.heard[step + 1] == pytest.approx(0.01 * guard.gain)
    assert guard.gain * 0.01 < 0.1
