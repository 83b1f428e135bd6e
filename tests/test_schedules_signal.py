"""Schedules that hear a signal: FBCache, TeaCache, EasyCache, and how their signals are measured."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diffcache.schedules import (
    POLYNOMIALS,
    EasyCache,
    FirstBlock,
    Interval,
    Schedule,
    TeaCache,
    expected_change,
    relative_change,
    transformation_rate,
)

from .models import normal

SIGNALS = {"first": FirstBlock, "modulated": TeaCache, "rate": EasyCache}


def heard(schedule, drifts):
    """The decisions when each undecided step hears the number of its place."""
    schedule.start(len(drifts))
    letters = ""
    for step, drift in enumerate(drifts):
        compute = schedule.judge(step, drift) if schedule.undecided(step) else schedule.wants_compute(step)
        if compute:
            schedule.computed(step)
        letters += "F" if compute else "c"
    return letters


# -- who decides -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signal", SIGNALS)
def test_a_step_is_undecided_where_nothing_forces_or_plans_it(signal):
    schedule = SIGNALS[signal](1.0, warmup=2, cooldown=1, max_skip=3)
    assert schedule.signal == signal
    schedule.start(10)
    assert [schedule.undecided(step) for step in range(3)] == [False, False, False]  # warm-up, then no reference
    schedule.computed(1)
    assert [schedule.undecided(step) for step in range(2, 6)] == [True, True, True, False]  # max_skip
    schedule.limit(1)
    assert [schedule.undecided(step) for step in range(2, 4)] == [True, False]  # planned
    schedule.computed(7)
    assert [schedule.undecided(step) for step in (8, 9)] == [True, False]  # cool-down
    assert all(schedule.wants_compute(step) for step in (0, 1, 9))


@pytest.mark.parametrize("signal", SIGNALS)
def test_without_a_reference_a_step_is_computed(signal):
    schedule = SIGNALS[signal](1.0, warmup=0)
    schedule.start(10)
    assert schedule.wants_compute(0)
    assert not schedule.undecided(0)


def test_a_schedule_without_a_signal_leaves_nothing_undecided():
    for schedule in (Schedule(), Interval(3)):
        schedule.start(10)
        assert schedule.signal is None
        assert not any(schedule.undecided(step) for step in range(10))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("threshold", [0.1, math.inf])
@pytest.mark.parametrize("signal", SIGNALS)
def test_a_signal_that_is_no_number_computes(signal, threshold, bad):
    assert heard(SIGNALS[signal](threshold, warmup=1), [0, 0.01, bad, 0.01, 0.01, 0]) == "FcFccF"


@pytest.mark.parametrize("signal", SIGNALS)
def test_an_infinite_threshold_never_computes_and_a_smaller_one_never_computes_less(signal):
    drifts = [0.1 + 0.05 * math.sin(step) for step in range(40)]
    traces = [heard(SIGNALS[signal](t, warmup=1), drifts) for t in (math.inf, 1.0, 0.3, 0.14, 0.1, 0.0)]
    counts = [trace.count("F") for trace in traces]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (2, 40)


# -- FBCache -----------------------------------------------------------------------------------------------------------


def test_first_block_compares_each_step_with_the_threshold_alone():
    assert heard(FirstBlock(0.08, warmup=1), [0, 0.05, 0.07, 0.09, 0.07, 0.2, 0]) == "FccFcFF"


def test_first_block_at_the_boundary():
    """diffusers computes above the threshold, cache-dit from it on."""
    drifts = [0, 0.25, 0.25, 0]
    assert heard(FirstBlock(0.25, warmup=1), drifts) == "FccF"
    assert heard(FirstBlock(0.25, warmup=1, inclusive=True), drifts) == "FFFF"
    assert heard(FirstBlock(0.0, warmup=1), [0] * 4) == "FccF"
    assert heard(FirstBlock(0.0, warmup=1, inclusive=True), [0] * 4) == "FFFF"


# -- TeaCache ----------------------------------------------------------------------------------------------------------


def test_teacache_sums_until_the_threshold_and_starts_again():
    # 0.25, 0.5, 0.75 | 1.0: computed at the step that reaches 1; then 0.5, 0.75, and 1.25 passes it
    drifts = [0, 0.25, 0.25, 0.25, 0.25, 0.5, 0.25, 0.5, 0]
    assert heard(TeaCache(1.0), drifts) == "FcccFccFF"


def test_teacache_rescales_each_distance_before_it_sums():
    # 2 d^2 - d + 0.5: 0.5 for d = 0.5, 0.375 for d = 0.25, and twice 0.375 is below 0.8, 1.25 is not
    schedule = TeaCache(0.8, polynomial=(2.0, -1.0, 0.5))
    assert [schedule.rescale(d) for d in (0.0, 0.5, 0.25)] == [0.5, 0.5, 0.375]
    assert heard(schedule, [0, 0.25, 0.25, 0.5, 0.5, 0]) == "FccFcF"


def test_teacache_may_go_down_where_its_polynomial_is_negative():
    # 0.75, 0.25 (d = 0 gives -0.5), 1.0
    assert heard(TeaCache(1.0, polynomial=(1.0, -0.5)), [0, 1.25, 0.0, 1.25, 0]) == "FccFF"


def test_a_forced_step_ends_the_sum():
    assert heard(TeaCache(1.0, max_skip=2), [0, 0.4, 0.4, 9.9, 0.4, 0.4, 0]) == "FccFccF"


def test_the_sum_does_not_outlive_the_segment():
    schedule = TeaCache(1.0)
    assert heard(schedule, [0, 0.9, 0]) == heard(schedule, [0, 0.9, 0]) == "FcF"
    schedule.start(9)
    assert schedule.sum == 0


def test_teacache_refuses_a_polynomial_without_coefficients():
    with pytest.raises(ValueError, match="polynomial"):
        TeaCache(1.0, polynomial=())


@pytest.mark.parametrize("name", POLYNOMIALS)
def test_published_polynomials_are_read_from_the_highest_power(name):
    polynomial = POLYNOMIALS[name]
    schedule = TeaCache(1.0, polynomial=polynomial.coefficients)
    for drift in (0.0, 0.02, 0.1, 0.5):
        assert schedule.rescale(drift) == pytest.approx(np.poly1d(polynomial.coefficients)(drift))
    if polynomial.measured == "modulated":  # what a step of a usual length adds
        assert all(0 < schedule.rescale(drift) < 1 for drift in (0.01, 0.05, 0.1))


def test_published_polynomial_of_flux_by_hand():
    # at 0.1: 0.0498651651 - 0.283781631 + 0.558554382 - 0.382021401 + 0.264230861
    schedule = TeaCache(1.0, polynomial=POLYNOMIALS["flux"].coefficients)
    assert schedule.rescale(0.1) == pytest.approx(0.2068473761)


# -- EasyCache ---------------------------------------------------------------------------------------------------------


def test_easycache_sums_the_expected_changes():
    # tau = 5 %: 2 + 2 % are below, 2 + 2 + 2 % are not
    assert heard(EasyCache(0.05, warmup=2), [0, 0, 0.02, 0.02, 0.02, 0.02, 0.02, 0.02, 0]) == "FFccFccFF"


def test_easycache_by_hand():
    """Scalars x and v: k = |6 - 2| / |5 - 3| = 2 at the computed step, so 0.25 in the input is 0.5 of 4 in v."""
    x, v = torch.tensor([[3.0], [5.0], [5.25]]), torch.tensor([[2.0], [6.0]])
    rate = transformation_rate((x[1:2], x[:1]), (v[1:2], v[:1]))
    assert rate.tolist() == [2.0]
    eps = expected_change(rate, x[2:], x[1:2], v[1:2])
    assert eps.item() == pytest.approx(2 * 0.25 / 6)


def test_the_rate_predicts_the_change_of_a_linear_denoiser():
    """v = 3 x: the expected change is the true one, at every step size."""
    x = [normal(1, 4, 5, seed=s) for s in range(3)]
    rate = transformation_rate((x[1], x[0]), (3 * x[1], 3 * x[0]))
    torch.testing.assert_close(expected_change(rate, x[2], x[1], 3 * x[1]), relative_change(3 * x[2], 3 * x[1]))


# -- measuring ---------------------------------------------------------------------------------------------------------


def test_relative_change_by_hand():
    before = torch.tensor([[1.0, -3.0]])
    now = torch.tensor([[2.0, -3.5]])
    assert relative_change(now, before).item() == pytest.approx(1.5 / 4)  # means 0.75 and 2


def test_the_moving_sample_is_not_hidden_by_the_still_ones():
    before = normal(16, 6, 4, seed=1)
    now = before.clone()
    now[7] += 0.5 * before[7]
    changes = relative_change(now, before).tolist()
    assert changes.pop(7) == pytest.approx(0.5)
    assert set(changes) == {0.0}
    assert relative_change(now, before, pooled=True).item() < 0.1
    alone = relative_change(now[7:8], before[7:8], pooled=True)
    torch.testing.assert_close(alone, relative_change(now, before)[7:8])


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_signals_know_no_absolute_size(scale):
    x, y = normal(2, 6, 4, seed=1), normal(2, 6, 4, seed=2)
    torch.testing.assert_close(relative_change(scale * y, scale * x), relative_change(y, x))
    rate = transformation_rate((x, y), (scale * y, scale * x))
    torch.testing.assert_close(rate, torch.full((2,), scale))


def test_nothing_over_nothing_is_no_number_and_computes():
    zero = torch.zeros(2, 3, 4)
    still = normal(2, 3, 4, seed=1)
    assert all(map(math.isnan, relative_change(zero, zero)))
    assert all(map(math.isinf, relative_change(still, zero)))
    assert math.isnan(transformation_rate((still, still), (zero, zero))[0].item())
    half = torch.cat([zero[:1], still[1:]])
    assert [math.isnan(change) for change in relative_change(half, half)] == [True, False]


def test_signals_are_measured_in_fp32():
    before = torch.full((1, 4096), 300.0, dtype=torch.float16)
    assert relative_change(before + 150, before).item() == pytest.approx(0.5)
