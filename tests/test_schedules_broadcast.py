"""PAB: one interval for each kind of attention, within a window of timesteps."""

from __future__ import annotations

import math

import pytest

from diffcache.schedules import Broadcast, pyramid

from .test_schedules import trace

EVERY_50 = [1000 - 50 * step for step in range(20)]  # 1000, 950, ..., 50


def test_placement_by_hand():
    """Inside 450 < t < 800 lie the steps 5 (750) to 10 (500); of these the even ones are computed at interval 2."""
    letters = trace(Broadcast(2, (450, 800)), 20, timesteps=EVERY_50)
    assert letters == "FFFFF" + "cFcFcF" + "FFFFFFFFF"
    letters = trace(Broadcast(4, (450, 800)), 20, timesteps=EVERY_50)
    assert letters == "FFFFF" + "cccFcc" + "FFFFFFFFF"  # step 8


def test_the_window_is_open_at_both_ends():
    letters = trace(Broadcast(99, (100, 800)), 20, timesteps=EVERY_50)
    assert letters == "FFFFF" + "c" * 13 + "FF"  # 800 is step 4, 100 is step 18


def test_a_run_never_exceeds_the_interval():
    for interval in (1, 2, 3, 7):
        letters = trace(Broadcast(interval, (-math.inf, math.inf)), 50)
        assert "c" * interval not in letters
        assert letters.count("F") in (len(range(0, 50, interval)), len(range(0, 50, interval)) + 1)  # the last step


@pytest.mark.parametrize("timesteps", [[], [math.nan] * 20])
def test_unknown_timesteps_compute_everything(timesteps):
    assert trace(Broadcast(4), 20, timesteps=timesteps) == "F" * 20


def test_nothing_is_broadcast_before_something_is_computed():
    schedule = Broadcast(4, (0, 2000))
    schedule.start(20, EVERY_50)
    assert schedule.wants_compute(3)
    schedule.computed(3)
    assert not schedule.wants_compute(5)


def test_pyramid_has_a_schedule_for_each_kind_that_is_broadcast():
    kinds = pyramid()
    assert {kind: schedule.interval for kind, schedule in kinds.items()} == {"spatial": 2, "temporal": 4, "cross": 6}
    assert all(schedule.wants_timesteps for schedule in kinds.values())
    assert set(pyramid(temporal=None)) == {"spatial", "cross"}
    counts = [trace(kinds[kind], 50).count("F") for kind in ("spatial", "temporal", "cross")]
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) == 3
