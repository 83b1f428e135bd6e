"""Predictors whose coefficients follow from times alone, and HiCache's scaled Hermite basis."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from diffcache.kernels import combine
from diffcache.predictors import Hermite, Heterogeneous, Horizon, ScaledHermite, Taylor, Trend, weights
from diffcache.predictors.scaled_hermite import backward_differences, scaled_hermite

from .models import normal
from .test_predictors import fitted, predict

STATIC = {
    "reuse": lambda: Taylor(0),
    "linear": lambda: Taylor(1),
    "taylor 2": lambda: Taylor(2),
    "taylor 4": lambda: Taylor(4),
    "hermite": Hermite,
    "hicache 1": lambda: ScaledHermite(1),
    "hicache 2": ScaledHermite,
    "hicache 4": lambda: ScaledHermite(4, 0.7),
}
TIMES = [0.0, 1.0, 3.0, 4.0, 6.0]


def gaps_of(times, depth):
    newest = times[::-1][:depth]
    return [a - b for a, b in itertools.pairwise(newest)]


def scalar(values):
    return [torch.full((1, 1, 1), float(value)) for value in values]


# -- coefficients without tensors --------------------------------------------------------------------------------------


def test_who_needs_moments():
    assert all(make().static for make in STATIC.values())
    assert not Trend().static
    assert not Heterogeneous().static


@pytest.mark.parametrize("name", STATIC)
def test_coefficients_are_floats_and_sum_to_one(name):
    predictor = STATIC[name]()
    for ahead in (1.0, 2.0, 5.0):
        found = predictor.weights(gaps_of(TIMES, predictor.depth), Horizon(ahead, ahead, 4))
        assert all(type(w) is float for w in found)
        assert len(found) == predictor.depth
        assert sum(found) == pytest.approx(1.0)


@pytest.mark.parametrize("name", STATIC)
@pytest.mark.parametrize("times", [TIMES, [-1.0, -0.9, -0.5, -0.45, -0.2]])
def test_coefficients_are_those_of_the_fit(name, times):
    predictor = STATIC[name]()
    values = [normal(2, 5, 4, seed=s) for s in range(5)]
    history, _, fit = fitted(predictor, values, times, TIMES)
    horizon = Horizon(2.0, 2.0 if times is TIMES else 0.17, 4)
    direct = predictor.weights(history.gaps, horizon)
    assert direct == pytest.approx(weights(fit.slopes(horizon), history.gaps), rel=1e-6)
    torch.testing.assert_close(
        combine(history.values[: len(direct)], direct),
        combine(history.values[: len(direct)], weights(fit.slopes(horizon), history.gaps)),
    )


@pytest.mark.parametrize("name", STATIC)
def test_more_stored_than_used_changes_nothing(name):
    predictor = STATIC[name]()
    horizon = Horizon(2.0, 2.0, 4)
    assert predictor.weights(gaps_of(TIMES, 9), horizon) == predictor.weights(gaps_of(TIMES, predictor.depth), horizon)


def test_too_few_stored_values_are_refused_or_lower_the_order():
    horizon = Horizon(2.0, 2.0, 4)
    with pytest.raises(ValueError, match="Hermite needs 3 stored values, got 2"):
        Hermite().weights([1.0], horizon)
    for predictor in (Taylor(3), ScaledHermite(3)):
        assert predictor.weights([], horizon) == [1.0]
        assert predictor.weights([2.0], horizon) == type(predictor)(1).weights([2.0], horizon)


# -- HiCache -----------------------------------------------------------------------------------------------------------


def test_order_one_by_hand():
    """sigma H_1(sigma k) = 2 sigma^2 k: 1.5 at k = 3, half of linear extrapolation at sigma = 0.5.

    y(0) = 1, y(2) = 5: D_1 = 2, so 5 + 1.5 * 2 = 8; over the values 1 + 1.5/2 and -1.5/2.
    """
    assert predict(ScaledHermite(1), scalar([1, 5]), [0, 2], 3).item() == pytest.approx(8.0)
    assert ScaledHermite(1).weights([2.0], Horizon(3.0, 3.0, 4)) == pytest.approx([1.75, -0.75])


def test_order_two_by_hand():
    """sigma^2 H_2(sigma k) = 4 sigma^4 k^2 - 2 sigma^2: 1.75 at k = 3.

    y(0) = 1, y(2) = 2, y(4) = 5: D_1 = 1.5, before it 0.5, so D_2 = 0.5 and 5 + 1.5 * 1.5 + 1.75 / 2 * 0.5 = 7.6875.
    """
    assert predict(ScaledHermite(2), scalar([1, 2, 5]), [0, 2, 4], 3).item() == pytest.approx(7.6875)
    found = ScaledHermite(2).weights([2.0, 2.0], Horizon(3.0, 3.0, 4))
    assert found == pytest.approx([1.96875, -1.1875, 0.21875])


def test_order_two_at_uneven_gaps_by_hand():
    """y(0) = 1, y(3) = 4, y(4) = 7: D_1 = 3, before it 1, and one step between: D_2 = 2.

    k = 1: h_1 = 0.5, h_2 = -0.25, so 7 + 0.5 * 3 - 0.125 * 2 = 8.25.
    """
    assert predict(ScaledHermite(2), scalar([1, 4, 7]), [0, 3, 4], 1).item() == pytest.approx(8.25)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("x", [0.0, 1.0, 2.5, 6.0])
def test_the_basis_is_the_definition(sigma, x):
    z = sigma * x
    physicists = [1, 2 * z, 4 * z**2 - 2, 8 * z**3 - 12 * z, 16 * z**4 - 48 * z**2 + 12]
    assert scaled_hermite(4, x, sigma) == pytest.approx([sigma**n * h for n, h in enumerate(physicists)])


def test_the_basis_at_root_half_is_the_probabilists():
    x = 1.7
    assert scaled_hermite(3, x, math.sqrt(0.5)) == pytest.approx([1, x, x**2 - 1, x**3 - 3 * x])


def test_differences_at_even_gaps_are_binomial():
    """Velocities of a gap N: D_3 = (v1 - 2 v2 + v3) / N^2."""
    assert backward_differences([2.0, 2.0, 2.0]) == [[1.0, 0.0, 0.0], [0.5, -0.5, 0.0], [0.25, -0.5, 0.25]]
    assert backward_differences([]) == []


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("unit", [-0.02, 0.5, 30.0])
def test_a_step_is_a_step_on_every_time_axis(order, unit):
    """Sigma or index: the same steps give the same coefficients."""
    gaps = gaps_of(TIMES, order + 1)
    plain = ScaledHermite(order).weights(gaps, Horizon(3.0, 3.0, 4))
    scaled = ScaledHermite(order).weights([unit * gap for gap in gaps], Horizon(3.0, 3.0 * unit, 4))
    assert scaled == pytest.approx(plain)


def test_horizons_with_a_leading_axis_equal_one_at_a_time():
    values = [normal(2, 6, 8, seed=s) for s in range(5)]
    _, _, fit = fitted(ScaledHermite(3), values, TIMES)
    k = torch.arange(1.0, 4.0).reshape(-1, 1, 1, 1)
    together = fit.slopes(Horizon(k, k, 3))
    for i in range(3):
        single = fit.slopes(Horizon(i + 1.0, i + 1.0, 3))
        assert [b[i].item() for b in together] == pytest.approx(single, rel=1e-5)


@pytest.mark.parametrize("order", range(5))
def test_hicache_keeps_a_constant(order):
    value = normal(2, 5, 4, seed=1)
    torch.testing.assert_close(predict(ScaledHermite(order), [value] * 5, TIMES, 3), value)


@pytest.mark.parametrize(("name", "value"), [("order", -1), ("order", 5), ("sigma", 0.0), ("sigma", 1.5)])
def test_hicache_refuses_values_out_of_range(name, value):
    with pytest.raises(ValueError, match=name):
        ScaledHermite(**{name: value})
