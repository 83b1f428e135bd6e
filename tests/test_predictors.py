"""Laws of the predictors: what each is exact on, and that the forms of one prediction agree."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from diffcache.kernels import combine
from diffcache.methods import PREDICTORS
from diffcache.predictors import (
    Hermite,
    Heterogeneous,
    History,
    Horizon,
    Modality,
    SampleFit,
    SampleTrend,
    Sums,
    Taylor,
    TokenLayout,
    Trend,
    energy,
    measure,
    measure_all,
    weights,
)
from diffcache.schedules import sample_drift, turning_drift

from .models import normal


def fitted(predictor, values, times, steps=None):
    """(history, moments, fit) of values at times, oldest first."""
    history = History(predictor.depth)
    for value, time in zip(values, times, strict=True):
        history.push(value, time)
    steps = list(steps or times)[::-1][: predictor.depth]
    gaps = [float(a - b) for a, b in itertools.pairwise(steps)]
    return history, *fit_to(predictor, history, gaps, None)


def known(history, gaps):
    sums = Sums([history.values], TokenLayout(-1), history.gaps, gaps)
    return sums.read([part.flatten().tolist() for part in sums.parts])


def fit_to(predictor, history, gaps, before):
    """(moments or totals, fit) of what is stored."""
    if predictor.hosted:
        totals = known(history, gaps)
        return totals, predictor.learn(totals, before)[0]
    moments = measure(history.values, history.gaps, gaps, TokenLayout(-1))
    return moments, predictor.fit(moments) if before is None else predictor.refit(moments, before)[0]


def predict(predictor, values, times, ahead, limit=4, steps=None, steps_ahead=None):
    history, _, fit = fitted(predictor, values, times, steps)
    slopes = fit.slopes(Horizon(float(steps_ahead or ahead), float(ahead), limit))
    return combined(history, slopes)


def on_tokens(slope):
    """A slope as it multiplies values ``[samples, tokens, features]``."""
    return torch.tensor(slope)[:, None, None] if isinstance(slope, list) else slope


def combined(history, slopes):
    coefficients = weights([on_tokens(slope) for slope in slopes], history.gaps)
    return combine(history.values[: len(coefficients)], coefficients)


@pytest.mark.parametrize("times", [[0, 1, 2, 3, 4], [0, 1, 3, 4, 7], [-1.0, -0.9, -0.5, -0.45, -0.2]])
@pytest.mark.parametrize("order", range(5))
def test_taylor_is_exact_on_polynomials_at_any_times(order, times):
    rows = normal(order + 1, 2, 7, 3, seed=order).double()
    curve = lambda t: sum(row * t**p for p, row in enumerate(rows)).float()  # noqa: E731
    predictor = Taylor(order)
    for ahead in (0.1, 0.25) if times[0] < 0 else (1, 2, 3):
        found = predict(predictor, [curve(t) for t in times], times, ahead)
        wanted = curve(times[-1] + ahead)
        assert (found - wanted).norm() <= 2e-4 * wanted.norm()


@pytest.mark.parametrize("order", [1, 2, 3])
def test_taylor_is_no_better_than_its_order(order):
    curve = lambda t: torch.full((1, 1, 1), float(t ** (order + 1)))  # noqa: E731
    found = predict(Taylor(order), [curve(t) for t in range(5)], range(5), 2)
    assert abs(found.item() - 6 ** (order + 1)) > 1


def test_taylor_lowers_its_order_while_little_is_stored():
    values = [normal(1, 4, 3, seed=s) for s in range(2)]
    assert torch.equal(predict(Taylor(3), values[:1], [0], 2), values[0])
    torch.testing.assert_close(predict(Taylor(3), values, [0, 1], 2), 3 * values[1] - 2 * values[0])


@pytest.mark.parametrize("ratio", [0.2, 0.7, 0.95, 1.0])
def test_trend_is_exact_on_geometric_velocities(ratio):
    """v(s+1) = r v(s): the process that the predictor assumes."""
    start, velocity = normal(1, 5, 4, seed=1), normal(1, 5, 4, seed=2)
    position = lambda s: start + velocity * sum(ratio**j for j in range(s))  # noqa: E731
    for ahead in (1, 2, 5):
        found = predict(Trend(), [position(t) for t in range(3)], range(3), ahead)
        torch.testing.assert_close(found, position(2 + ahead), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gaps", [(2, 2), (3, 1), (1, 4)])
def test_trend_is_exact_on_lines_at_any_gaps(gaps):
    start, velocity = normal(1, 5, 4, seed=1), normal(1, 5, 4, seed=2)
    times = [0, gaps[0], gaps[0] + gaps[1]]
    found = predict(Trend(), [start + t * velocity for t in times], times, 3)
    torch.testing.assert_close(found, start + (times[-1] + 3) * velocity, rtol=1e-3, atol=1e-3)


def test_trend_reuses_what_turns_back_and_goes_on_with_what_goes_on():
    y = torch.zeros(1, 3, 2)
    step = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]])
    turn = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]])  # straight, back, at a right angle
    found = predict(Trend(share=0), [y, y + step, y + step + turn], [0, 1, 2], 2)
    wanted = (y + step + turn).clone()
    wanted[0, 0, 0] += 2.0
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3)


def test_trend_never_accelerates():
    """A velocity that grew is continued as it is, never blown up."""
    y = [torch.tensor([[[0.0]]]), torch.tensor([[[1.0]]]), torch.tensor([[[4.0]]])]
    for ahead in (1, 2, 5):
        assert predict(Trend(share=0), y, [0, 1, 2], ahead).item() <= 4.0 + 3.0 * ahead + 1e-5


LEARNING = {"token": Trend(feedback=True), "sample": SampleTrend()}


def learned(values, times, predictor):
    """The fit of the last computed step of a trajectory, each having seen the one before."""
    history, fit, steps = History(3), None, []
    for value, time in zip(values, times, strict=True):
        history.push(value, float(time))
        steps = [time, *steps][:3]
        if len(history) == 3:
            gaps = [float(a - b) for a, b in itertools.pairwise(steps)]
            _, fit = fit_to(predictor, history, gaps, fit)
    return history, fit


def trust(fit):
    return [pace.trust for pace in fit.paces] if isinstance(fit, SampleFit) else fit.trust.flatten().tolist()


def miss(history, fit, ahead, truth):
    slopes = fit.slopes(Horizon(float(ahead), float(ahead), 8))
    return (combined(history, slopes) - truth).norm().item()


PATHS = {
    "damped": lambda t: 1 - 0.7**t,
    "straight": lambda t: 0.3 * t,
    "speeding up": lambda t: 1.15**t - 1,
}


@pytest.mark.parametrize("per", LEARNING)
@pytest.mark.parametrize("path", PATHS)
def test_feedback_ends_near_the_better_of_line_and_trend(path, per):
    """Whatever the trajectory is like, a few computed steps teach which of the two to follow."""
    start, direction = normal(1, 6, 8, seed=1), normal(1, 6, 8, seed=2)
    at = lambda t: start + PATHS[path](t) * direction  # noqa: E731
    times = [0, 1, 2, 4, 6, 8, 10]
    history, fit = learned([at(t) for t in times], times, LEARNING[per])
    truth = at(12)
    values = [at(t) for t in times[-3:]]
    line = (predict(Taylor(1), values[1:], times[-2:], 2) - truth).norm().item()
    trend = (predict(Trend(), values, times[-3:], 2) - truth).norm().item()
    assert miss(history, fit, 2, truth) <= 1.1 * min(line, trend) + 1e-5


@pytest.mark.parametrize("per", LEARNING)
def test_feedback_is_a_sample_s_own_and_forgets_what_was_not_finite(per):
    damped, straight = PATHS["damped"], PATHS["straight"]
    start, direction = normal(2, 6, 8, seed=1), normal(2, 6, 8, seed=2)

    def at(t):
        return torch.stack([start[0] + damped(t) * direction[0], start[1] + straight(t) * direction[1]])

    times = [0, 1, 2, 4, 6, 8, 10, 12]
    values = [at(t) for t in times]
    _, fit = learned(values, times, LEARNING[per])
    assert trust(fit)[0] > 0.5 >= trust(fit)[1]
    values[3] = values[3] * float("nan")
    _, fit = learned(values, times, LEARNING[per])
    assert all(map(math.isfinite, trust(fit)))


def test_trend_with_infinite_share_has_one_ratio_a_sample():
    values = [normal(2, 9, 4, seed=s) for s in range(3)]
    _, _, fit = fitted(Trend(share=math.inf), values, [0, 1, 2])
    assert fit.ratio.numel() == 2
    _, _, alone = fitted(Trend(share=0), values, [0, 1, 2])
    assert alone.ratio.numel() == 18
    assert ((alone.ratio >= 0) & (alone.ratio[0] <= 1)).all()


def test_the_trend_per_sample_is_the_trend_with_one_ratio_a_sample():
    """Host and device agree on ratio, trust, error and drift, on uneven times."""
    values, times = [normal(2, 9, 4, seed=s) for s in range(5)], [0, 1, 3, 4, 6]
    _, host = learned(values, times, SampleTrend())
    _, device = learned(values, times, Trend(share=math.inf, feedback=True))
    for name in ("ratio", "trust"):
        ours = torch.tensor([getattr(pace, name) for pace in host.paces])
        torch.testing.assert_close(ours, getattr(device, name).flatten(), rtol=1e-4, atol=1e-5)


def test_the_error_on_the_host_is_the_error_on_the_device():
    values, times = [normal(2, 9, 4, seed=s) for s in range(5)], [0, 1, 3, 4, 6]
    errors = {}
    for name, predictor in {"host": SampleTrend(), "device": Trend(share=math.inf, feedback=True)}.items():
        before = fitted(predictor, values[:4], times[:4])[2]
        measured = fitted(predictor, values, times)[1]
        errors[name] = (predictor.learn if predictor.hosted else predictor.refit)(measured, before)[1]
    torch.testing.assert_close(torch.tensor(errors["host"]), errors["device"], rtol=1e-4, atol=1e-5)


def test_the_drift_on_the_host_is_the_drift_of_one_token_a_sample():
    values, times = [normal(2, 9, 4, seed=s) for s in range(4)], [0, 1, 3, 4]
    history, totals, fit = fitted(SampleTrend(), values, times)
    slopes = [fit.along(k) for k in (1.0, 2.0, 3.0)]
    moments = measure([v.flatten(1) for v in history.values], history.gaps, history.gaps, TokenLayout(-1))
    wanted = turning_drift(moments, (torch.tensor(slopes)[..., None],))
    torch.testing.assert_close(torch.tensor(sample_drift(totals, slopes)), wanted, rtol=1e-4, atol=1e-5)


def test_trend_shares_between_the_tokens_of_a_sample_only():
    values = [normal(2, 9, 4, seed=s) for s in range(3)]
    other = [torch.cat([v[:1], 100 * v[1:]]) for v in values]
    _, _, fit = fitted(Trend(), values, [0, 1, 2])
    _, _, changed = fitted(Trend(), other, [0, 1, 2])
    assert torch.equal(fit.ratio[0], changed.ratio[0])


@pytest.mark.parametrize("name", PREDICTORS)
def test_every_predictor_keeps_a_constant(name):
    value = normal(2, 5, 4, seed=1)
    found = predict(PREDICTORS[name](2), [value] * 5, [0, 1, 3, 4, 6], 3)
    assert found.isfinite().all()
    torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "taylor", "hermite", "trend"])
def test_every_forecaster_is_exact_on_a_line(name):
    a, b = normal(2, 5, 4, seed=1), normal(2, 5, 4, seed=2)
    times = [0, 1, 3, 4, 6]
    found = predict(PREDICTORS[name](2), [a + t * b for t in times], times, 3)
    torch.testing.assert_close(found, a + 9 * b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", PREDICTORS)
def test_a_prediction_scales_and_shifts_with_its_history(name):
    """f(c y + d) = c f(y) + d for a power of two c; no predictor knows an absolute size."""
    values = [normal(2, 6, 8, seed=s) for s in range(5)]
    times = [0, 1, 3, 4, 6]
    found = predict(PREDICTORS[name](2), values, times, 2)
    scaled = predict(PREDICTORS[name](2), [8 * v for v in values], times, 2)
    torch.testing.assert_close(scaled, 8 * found, rtol=1e-4, atol=1e-4)


def test_the_variance_foretold_on_the_host_is_that_of_the_prediction():
    values, times = [normal(2, 6, 8, seed=s) + 1 for s in range(4)], [0, 1, 3, 4]
    _, totals, fit = fitted(SampleTrend(), values, times)
    for ahead in (1.0, 2.0, 3.0):
        guess = predict(SampleTrend(), values, times, ahead).double()
        found = [s.energy(b) for s, b in zip(totals.samples, fit.along(ahead), strict=True)]
        torch.testing.assert_close(torch.tensor(found).double(), guess.var((1, 2), unbiased=False), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", [name for name in PREDICTORS if not PREDICTORS[name](2).hosted])
def test_horizons_with_a_leading_axis_equal_one_at_a_time(name):
    """The plan made at the computed step is about the predictions that are made later."""
    values = [normal(2, 6, 8, seed=s) for s in range(5)]
    _, moments, fit = fitted(PREDICTORS[name](2), values, [0, 1, 3, 4, 6])
    k = torch.arange(1.0, 4.0).reshape(-1, 1, 1, 1)
    together = fit.slopes(Horizon(k, k, 3))
    coming = energy(moments, together)
    for i in range(3):
        single = fit.slopes(Horizon(i + 1.0, i + 1.0, 3))
        for a, b in zip(together, single, strict=True):
            b = torch.as_tensor(b)
            torch.testing.assert_close(
                torch.as_tensor(a)[i].expand_as(b + 0 * torch.as_tensor(a)[i]),
                b.expand_as(b + 0 * torch.as_tensor(a)[i]),
            )
        guess = predict(PREDICTORS[name](2), values, [0, 1, 3, 4, 6], i + 1, limit=3)
        variance = guess.double().var((1, 2), unbiased=False).float()
        if coming.dim() == 1:  # reuse: one variance for all horizons
            torch.testing.assert_close(coming, variance, rtol=1e-4, atol=1e-4)
        else:
            torch.testing.assert_close(coming[i], variance, rtol=1e-4, atol=1e-4)


def test_weights_equal_slopes():
    values = [normal(2, 5, 4, seed=s) for s in range(4)]
    gaps = [2.0, 1.0, 3.0]
    slopes = [normal(2, 5, 1, seed=9), 0.7, normal(2, 5, 1, seed=8)]
    direct = values[0] + sum(b * (values[j] - values[j + 1]) / gaps[j] for j, b in enumerate(slopes))
    torch.testing.assert_close(combine(values, weights(slopes, gaps)), direct, rtol=1e-5, atol=1e-5)


def test_weights_sum_to_one():
    slopes = [normal(2, 5, 1, seed=9), 0.7, normal(2, 5, 1, seed=8)]
    total = sum(torch.as_tensor(w) for w in weights(slopes, [2.0, 1.0, 3.0]))
    torch.testing.assert_close(total, torch.ones_like(total))


def test_no_slopes_is_reuse_to_the_bit():
    value = normal(2, 5, 4, seed=1).to(torch.bfloat16)
    out = combine([value], weights((), []))
    assert torch.equal(out, value)
    assert out.data_ptr() != value.data_ptr()


# -- combine -----------------------------------------------------------------------------------------------------------

LAYOUTS = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    "channel view": lambda t: torch.cat([t, t], dim=1)[:, : t.shape[1]],
    "expanded": lambda t: t[:, :1].expand_as(t),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_combine_is_rounded_once(dtype, layout):
    values = [LAYOUTS[layout](normal(2, 4, 5, 3, seed=s).to(dtype)) for s in range(3)]
    scalars = [normal(2, 1, 5, 3, seed=7), 0.37, normal(2, 1, 5, 3, seed=8)]
    wanted = sum(v.double() * (w.double() if torch.is_tensor(w) else w) for v, w in zip(values, scalars, strict=True))
    out = combine(values, scalars)
    assert out.dtype == dtype
    # one rounding to dtype, and fp32 rounding of three terms
    unit = torch.finfo(dtype).eps
    bound = (
        unit / 2 * wanted.abs() + 4 * torch.finfo(torch.float32).eps * sum(v.double().abs() * 3 for v in values) + 1e-7
    )
    assert ((out.double() - wanted).abs() <= bound * 1.01).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_combine_writes_into_a_view_and_nothing_beside_it(dtype):
    values = [normal(2, 4, 5, seed=s).to(dtype) for s in range(3)]
    kept = [v.clone() for v in values]
    target = torch.full((2, 9, 5), 7.0, dtype=dtype)
    view = target.narrow(1, 3, 4)
    assert combine(values, [0.5, 0.25, 0.25], out=view).data_ptr() == view.data_ptr()
    assert torch.equal(view, combine(values, [0.5, 0.25, 0.25]))
    assert (target[:, :3] == 7).all()
    assert (target[:, 7:] == 7).all()
    assert all(torch.equal(a, b) for a, b in zip(values, kept, strict=True))


def test_combine_of_a_weight_that_is_zero_hides_no_nan():
    bad = torch.full((1, 2, 3), math.nan)
    assert not combine([torch.ones(1, 2, 3), bad], [1.0, torch.zeros(1, 2, 1)]).isfinite().any()


# -- history and layout ------------------------------------------------------------------------------------------------


def test_history_is_a_ring_of_copies():
    history = History(2)
    value = torch.ones(3)
    history.push(value, 0.0)
    value.zero_()
    assert torch.equal(history.values[0], torch.ones(3))
    pointers = set()
    for t in range(1, 9):
        history.push(torch.full((3,), float(t)), float(t))
        pointers |= {v.data_ptr() for v in history.values}
    assert [v[0].item() for v in history.values] == [8.0, 7.0]
    assert history.times == [8.0, 7.0]
    assert history.gaps == [1.0]
    assert len(pointers) == 2  # written in place: no allocation after the ring is full
    assert history.nbytes == 2 * 3 * 4
    history.clear()
    assert (len(history), history.nbytes) == (0, 0)


def test_history_refuses_no_depth():
    with pytest.raises(ValueError, match="depth"):
        History(0)


def test_taylor_refuses_an_order_out_of_range():
    with pytest.raises(ValueError, match="order"):
        Taylor(5)


@pytest.mark.parametrize("patch", [(), (1, 2, 2), (2, 2), (3, 1, 4), (1, 1, 1)])
def test_a_token_is_a_position_or_a_patch(patch):
    """The view's feature axes hold what one token consists of: sums over them are sums over windows."""
    x = normal(2, 4, 3, 6, 8, seed=1)
    layout = TokenLayout(1, patch=patch)
    (view,) = layout.split(x)
    found = view.sum(layout.features(x))
    full = (1,) * (3 - len(patch)) + patch
    pool = torch.nn.functional.avg_pool3d(x.sum(1, keepdim=True), full) * math.prod(full)
    torch.testing.assert_close(found.reshape(pool.shape), pool)


def test_layout_of_a_grid_without_whole_patches_counts_positions():
    x = normal(1, 4, 3, 5, 7, seed=1)
    layout = TokenLayout(1, patch=(1, 2, 2))
    assert layout.features(x) == (1,)
    assert layout.split(x)[0].shape == x.shape


def test_writing_to_the_views_of_a_patched_output_writes_to_the_output():
    x = normal(2, 4, 3, 6, 8, seed=1)
    for view in TokenLayout(1, (Modality("a", 0, 1), Modality("b", 1)), patch=(1, 2, 2)).split(x):
        view.zero_()
    assert not x.any()


def test_outputs_measured_together_are_measured_as_each_alone():
    """Branches and modalities of any widths follow each other as samples."""
    layout = TokenLayout(1, (Modality("a", 0, 1), Modality("b", 1)), patch=(2, 2))
    branches = [[normal(2, 4, 6, 8, seed=10 * b + s) for s in range(3)] for b in range(2)]
    together = measure_all(branches, [1.0, 2.0], [1.0, 2.0], layout)
    alone = [measure(values, [1.0, 2.0], [1.0, 2.0], layout) for values in branches]
    torch.testing.assert_close(together.table, torch.cat([m.table for m in alone], 1))
    torch.testing.assert_close(energy(together, ()), torch.cat([energy(m, ()) for m in alone]))
    for part, fit in zip(alone, (Trend().fit(together).rows(4 * b, 4) for b in range(2)), strict=True):
        torch.testing.assert_close(fit.ratio, Trend().fit(part).ratio)


def test_layout_splits_modalities_without_a_copy():
    x = normal(1, 7, 3, seed=1)
    parts = TokenLayout(1, (Modality("a", 0, 3), Modality("b", 3, None))).split(x)
    assert [p.shape[1] for p in parts] == [3, 4]
    assert all(p.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for p in parts)


def test_heterogeneous_and_hermite_need_three_outputs():
    assert Heterogeneous().least == Hermite().least == Trend().least == 3
    assert Taylor(2).least == 1
