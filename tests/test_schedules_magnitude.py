"""MagCache: placement from magnitude ratios, and the ratios from norms."""

from __future__ import annotations

import math

import pytest
import torch

from diffcache.schedules import RATIOS, MagCache, ratios, resample, skip_error

from .models import normal
from .test_schedules import trace


def test_error_of_a_run_by_hand():
    """gamma 0.9, 0.8: |1 - 0.9| + |1 - 0.72|."""
    assert skip_error([]) == 0
    assert skip_error([0.9, 0.8]) == pytest.approx(0.38)
    assert skip_error([1.25, 0.8]) == pytest.approx(0.25)  # the second step is back at the stored magnitude


def test_placement_by_hand():
    # From each computed step: 0.5, then 0.5 + 0.75 = 1.25. So one step is predicted at 1.0, two at 1.25.
    halves = [1.0] + [0.5] * 9
    assert trace(MagCache(halves, 1.0, retention=0, max_skip=9, cooldown=0), 10) == "FcFcFcFcFc"
    assert trace(MagCache(halves, 1.25, retention=0, max_skip=9, cooldown=0), 10) == "FccFccFccF"
    assert trace(MagCache(halves, 1.25, retention=0, max_skip=1, cooldown=0), 10) == "FcFcFcFcFc"


def test_the_threshold_itself_is_still_allowed():
    assert trace(MagCache([1.0, 0.5, 0.5], 0.5, retention=0, cooldown=0), 3) == "FcF"
    assert trace(MagCache([1.0, 0.5, 0.5], 0.49, retention=0, cooldown=0), 3) == "FFF"


def test_a_residual_that_keeps_its_size_is_reused_up_to_max_skip():
    assert trace(MagCache([1.0], 0.0, retention=0, max_skip=3), 10) == "FcccFcccFF"


@pytest.mark.parametrize(("total", "retained"), [(28, 6), (50, 10), (10, 2), (12, 2), (13, 3)])
def test_retention_is_a_share_of_the_steps_rounded(total, retained):
    letters = trace(MagCache([1.0], 1.0, retention=0.2, max_skip=2), total)
    assert letters.startswith("F" * retained + "c")


def test_retention_and_warmup_the_larger_holds_in_every_segment():
    schedule = MagCache([1.0], 1.0, warmup=4, retention=0.2, max_skip=2)
    assert trace(schedule, 50).startswith("F" * 10 + "c")
    assert trace(schedule, 10).startswith("F" * 4 + "c")
    assert schedule.warmup == 4


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("threshold", [1.0, math.inf])
def test_a_ratio_that_is_no_number_computes(bad, threshold):
    gammas = [1.0, 1.0, bad, 1.0, 1.0, 1.0]
    assert trace(MagCache(gammas, threshold, retention=0, max_skip=9), 6) == "FcFccF"


def test_a_smaller_threshold_never_computes_less():
    for gammas in RATIOS.values():
        traces = [trace(MagCache(gammas, t, max_skip=9), 50) for t in (math.inf, 0.24, 0.12, 0.06, 0.01, 0.0)]
        counts = [letters.count("F") for letters in traces]
        assert counts == sorted(counts)


def test_flux_as_released():
    """K 5, threshold 0.24, retention 0.1 of 28 steps: the first run by hand, gamma from step 3 on.

    1.07812 and 1.07812 * 1.0625 = 1.1455: 0.0781 + 0.1455 is below 0.24; the third, 1.1903, is not.
    """
    letters = trace(MagCache(RATIOS["flux"], 0.24, max_skip=5, retention=0.1, cooldown=0), 28)
    assert letters.startswith("FFFccF")
    assert "c" * 6 not in letters


def test_published_ratios_begin_with_one_and_end_falling():
    for gammas in RATIOS.values():
        assert gammas[0] == 1
        assert list(gammas[-5:]) == sorted(gammas[-5:], reverse=True)
    assert [len(gammas) for gammas in RATIOS.values()] == [28, 50, 50]


# -- another number of steps -------------------------------------------------------------------------------------------


def test_resampling_takes_the_nearest_step():
    line = [float(i) for i in range(28)]
    assert resample(line, 28) == line
    assert resample(line, 1) == [27.0]
    assert resample(line, 2) == [0.0, 27.0]
    assert resample(line, 0) == []
    assert resample([0.0, 1.0, 2.0], 5) == [0.0, 0.0, 1.0, 2.0, 2.0]  # 0, 0.5, 1, 1.5, 2: halves go to even
    assert resample([0.9], 3) == [0.9] * 3


@pytest.mark.parametrize("total", [2, 3, 10, 28, 50, 100])
def test_resampling_keeps_order_and_ends(total):
    found = resample(range(28), total)
    assert (len(found), found[0], found[-1]) == (total, 0, 27)
    assert found == sorted(found)


def test_flux_and_its_resampling_are_those_of_diffusers():
    peer = pytest.importorskip("diffusers.hooks.mag_cache")
    torch.testing.assert_close(torch.tensor(RATIOS["flux"]), peer.FLUX_MAG_RATIOS)
    for total in (1, 2, 7, 20, 28, 50):
        wanted = peer.nearest_interp(peer.FLUX_MAG_RATIOS, total)
        torch.testing.assert_close(torch.tensor(resample(RATIOS["flux"], total)), wanted)


# -- calibration -------------------------------------------------------------------------------------------------------


def test_ratios_by_hand():
    """Two tokens, 4 -> 2 and 1 -> 1: the mean of the ratios 0.5 and 1, not the ratio of the means."""
    assert ratios(torch.tensor([[4.0, 1.0], [2.0, 1.0], [2.0, 2.0]])) == [1.0, 0.75, 1.5]


def test_ratios_of_one_step_are_one():
    assert ratios(torch.ones(1, 5)) == [1.0]


def test_ratios_know_no_absolute_size_and_take_any_token_axes():
    norms = normal(6, 2, 3, 4, seed=1).abs() + 0.1
    found = ratios(norms)
    assert ratios(8 * norms) == pytest.approx(found)
    assert ratios(norms.flatten(1)) == pytest.approx(found)


def test_a_token_without_a_residual_says_nothing():
    norms = torch.tensor([[4.0, 0.0], [2.0, 0.0], [1.0, 3.0]])
    assert ratios(norms) == [1.0, 0.5, 0.5]
    closed = ratios(torch.zeros(4, 3))
    assert all(math.isnan(gamma) for gamma in closed[1:])
    assert trace(MagCache(closed, 1.0, retention=0), 4) == "FFFF"


def test_magcache_refuses_no_ratios():
    with pytest.raises(ValueError, match="ratios"):
        MagCache([], 0.1)
