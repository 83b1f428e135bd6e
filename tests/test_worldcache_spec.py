"""Faithful worldcache against the specification's own numbers, and against a plain restatement of its sections 1-2."""

from __future__ import annotations

import math

import pytest
import torch

from diffcache import accelerate_model, denoising
from diffcache.kernels import combine
from diffcache.methods import make_config
from diffcache.predictors import Heterogeneous, History, Horizon, TokenLayout, measure, weights
from diffcache.predictors.hermite import group_names
from diffcache.predictors.scores import curvature, turning
from diffcache.schedules import ChaoticSkipping, chaotic_drift

from .models import FAMILIES, decisions, normal, sample
from .test_schedules import trace

Y2 = torch.tensor([[[0.0, 0], [1, 0], [0, 2], [3, 1], [-1, 1]]])
Y1 = torch.tensor([[[1.0, 0], [1, 1], [0, 2.5], [3, 1.2], [-2, 1]]])
Y0 = torch.tensor([[[3.0, 0], [0.5, 2], [0, 4], [3.2, 1.2], [-2, 3]]])


def fitted(values, steps, predictor):
    history = History(3)
    for value, step in zip(values, steps, strict=True):
        history.push(value, float(step))
    moments = measure(history.values, history.gaps, history.gaps, TokenLayout(-1))
    return history, moments, predictor.fit(moments)


def planned(fit, moments, n):
    k = torch.arange(1.0, n + 1).reshape(-1, *[1] * moments.sums[0].dim())
    return released(fit, moments, Horizon(k, k, n))


def released(fit, moments, horizon):
    """The drift that the faithful recipe plans with."""
    drift = make_config("worldcache", faithful=True).recipe().drift
    return drift(fit, moments, fit.slopes(horizon), horizon)


def guess(history, fit, k, n):
    slopes = fit.slopes(Horizon(float(k), float(k), n))
    return combine(history.values, weights(slopes, history.gaps))


# -- 1.5: the golden case ----------------------------------------------------------------------------------------------


def test_golden_case():
    history, moments, fit = fitted([Y2, Y1, Y0], [7, 8, 10], Heterogeneous(0.3, 0.6))
    kappa = curvature(moments).flatten()
    torch.testing.assert_close(kappa, torch.tensor([0, 0.894427, 0.222222, 11.180329, 0.707107]), rtol=1e-5, atol=1e-6)
    levels = torch.quantile(kappa, torch.tensor([0.3, 0.6]))
    torch.testing.assert_close(levels, torch.tensor([0.319199, 0.782035]), rtol=1e-5, atol=1e-6)
    assert group_names(fit).flatten().tolist() == [0, 2, 0, 2, 1]
    wanted = {
        1: [[3, 0], [0.375, 2.75], [0, 4], [3.25, 1.3], [-2, 4]],
        2: [[3, 0], [0.5, 4], [0, 4], [3.2, 1.6], [-2, 5]],
    }
    for k, tokens in wanted.items():
        torch.testing.assert_close(guess(history, fit, k, 2)[0], torch.tensor(tokens), rtol=1e-6, atol=1e-6)
    drift = planned(fit, moments, 2)
    torch.testing.assert_close(drift, torch.tensor([0.386014, 0.904795]), rtol=1e-5, atol=1e-6)
    share = fit.chaotic.mean()
    torch.testing.assert_close(drift / share, torch.tensor([0.965036, 2.261987]), rtol=1e-5, atol=1e-6)


# -- 2.3: the reference traces -----------------------------------------------------------------------------------------

TRACES = [
    (20, 5, 6, 0.0, 1.0, "FFFFFccccccFccccccFF"),
    (20, 5, 6, 0.4, 1.0, "FFFFFcccFcccFcccFccF"),
    (20, 5, 6, 1e9, 1.0, "FFFFFcFcFcFcFcFcFcFF"),
    (12, 3, 2, 0.0, 1.0, "FFFccFccFccF"),  # w = 0: three outputs are needed first
    (4, 10, 2, 0.0, 1.0, "FFFF"),
]


@pytest.mark.parametrize(("total", "warmup", "n", "drift", "eta", "wanted"), TRACES)
def test_reference_trace(total, warmup, n, drift, eta, wanted):
    assert trace(ChaoticSkipping(eta, warmup, n), total, lambda k: drift) == wanted


@pytest.mark.parametrize(("w", "n", "never", "always"), [(10, 2, 24, 30), (5, 6, 12, 28)])
def test_range_of_computed_steps_of_the_presets(w, n, never, always):
    assert trace(ChaoticSkipping(1.0, w, n), 50, lambda k: 0.0).count("F") == never
    assert trace(ChaoticSkipping(1.0, w, n), 50, lambda k: 1e9).count("F") == always


def test_no_threshold_computes_everything():
    assert trace(ChaoticSkipping(0.0, 3, 6), 12, lambda k: 0.0) == "F" * 12


def test_warmup_zero_still_computes_three_outputs():
    model = accelerate_model(FAMILIES["wan"].build(0), "worldcache", faithful=True, warmup=0, max_skip=2, threshold=1e9)
    sample("wan", model, 12)
    assert decisions(model)[0] == "FFFccFccFccF"


# -- 2.2: the closed form ----------------------------------------------------------------------------------------------


def direct_drift(y2, y1, y0, d1, d2, mask, n):
    """Section 2.1 as it reads: predict, measure the move, weigh by kappa."""
    v_c, v_p = (y0 - y1) / d2, (y1 - y2) / d1
    kappa = ((v_c - v_p) / d2).norm(dim=-1) / (v_c.norm(dim=-1) ** 2 + 1e-8)
    energies, last = [], y0
    for k in range(1, n + 1):
        x = min(k / n, 1.0)
        alpha = 3 * x**2 - 2 * x**3
        now = y0 + k * ((1 - alpha) * v_c + alpha * v_p)
        energies.append((kappa * (now - last).norm(dim=-1) * mask).mean())
        last = now
    return torch.stack(energies)


@pytest.mark.parametrize("n", [1, 2, 6])
@pytest.mark.parametrize(("d1", "d2"), [(1, 1), (1, 7), (3, 2)])
def test_the_planned_drift_equals_the_simulated_one(d1, d2, n):
    values = [normal(2, 50, 8, seed=s) for s in range(3)]
    _, moments, fit = fitted(values, [0, d1, d1 + d2], Heterogeneous())
    mask = fit.chaotic.squeeze(-1).double()
    wanted = direct_drift(*(v.double() for v in values), d1, d2, mask, n)
    torch.testing.assert_close(planned(fit, moments, n).double(), wanted, rtol=1e-5, atol=1e-5)


def test_the_drift_is_the_same_at_every_scale():
    values = [normal(2, 50, 8, seed=s) for s in range(3)]
    drifts = []
    for scale in (2.0**-6, 1.0, 2.0**6):
        _, moments, fit = fitted([v * scale for v in values], [0, 1, 3], Heterogeneous())
        drifts.append(planned(fit, moments, 4))
    torch.testing.assert_close(drifts[0], drifts[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(drifts[2], drifts[1], rtol=1e-4, atol=1e-5)


def test_the_drift_is_the_same_under_a_uniform_stretch_of_the_steps():
    values = [normal(2, 50, 8, seed=s) for s in range(3)]
    found = []
    for gap in (1, 2, 5):
        _, moments, fit = fitted(values, [0, gap, 2 * gap], Heterogeneous())
        k = torch.arange(1.0, 4.0).reshape(-1, 1, 1, 1)
        found.append(released(fit, moments, Horizon(k, k * gap, 3)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0], found[2], rtol=1e-4, atol=1e-5)


def test_only_chaotic_tokens_count_and_all_tokens_divide():
    values = [normal(1, 50, 8, seed=s) for s in range(3)]
    _, moments, fit = fitted(values, [0, 1, 2], Heterogeneous())
    k = torch.arange(1.0, 4.0).reshape(-1, 1, 1, 1)
    slopes = fit.chaotic_slopes(Horizon(k, k, 3))
    one, none = torch.ones_like(fit.chaotic), torch.zeros_like(fit.chaotic)
    everything = chaotic_drift(moments, slopes, fit.score, one)
    parts = [chaotic_drift(moments, slopes, fit.score, m) for m in (fit.chaotic, one - fit.chaotic)]
    torch.testing.assert_close(parts[0] + parts[1], everything)
    assert torch.equal(chaotic_drift(moments, slopes, fit.score, none), torch.zeros(3))


# -- 7.7: the edges ----------------------------------------------------------------------------------------------------


def test_a_constant_history_is_reused_without_drift():
    value = normal(2, 20, 8, seed=1)
    history, moments, fit = fitted([value] * 3, [0, 1, 3], Heterogeneous())
    assert torch.equal(planned(fit, moments, 4), torch.zeros(4))
    for k in (1, 2, 3):
        torch.testing.assert_close(guess(history, fit, k, 4), value, rtol=1e-6, atol=1e-6)
    assert torch.equal(turning(moments), torch.zeros_like(turning(moments)))


def test_a_linear_history_is_extrapolated_by_both_rules_alike():
    """v_p = v_c makes the damped rule the linear one; a constant kappa calls every token chaotic."""
    a, b = torch.full((1, 8, 4), 2.0), torch.full((1, 8, 4), 0.5)
    history, moments, fit = fitted([a, a + b, a + 3 * b], [0, 1, 3], Heterogeneous())
    assert set(group_names(fit).flatten().tolist()) == {2}
    for k in (1, 2, 3, 6):
        torch.testing.assert_close(guess(history, fit, k, 6), a + (3 + k) * b)
    assert planned(fit, moments, 6).abs().max() < 1e-6


def test_group_sizes_are_the_quantiles():
    values = [normal(2, 500, 8, seed=s) for s in range(3)]
    _, _, fit = fitted(values, [0, 1, 2], Heterogeneous(0.3, 0.6))
    names = group_names(fit).flatten()
    assert [int((names == g).sum()) for g in (0, 1, 2)] == [300, 300, 400]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_go_in_and_come_out(dtype):
    values = [normal(2, 50, 8, seed=s).to(dtype) for s in range(3)]
    history, moments, fit = fitted(values, [0, 1, 2], Heterogeneous())
    assert guess(history, fit, 2, 4).dtype == dtype
    assert planned(fit, moments, 4).dtype == torch.float32
    wide = [v.float() for v in values]
    other, _, same = fitted(wide, [0, 1, 2], Heterogeneous())
    assert torch.equal(guess(history, fit, 2, 4), guess(other, same, 2, 4).to(dtype))


def test_turning_is_bounded_symmetric_and_scale_free():
    values = [normal(2, 50, 8, seed=s) for s in range(3)]
    _, moments, _ = fitted(values, [0, 1, 2], Heterogeneous())
    score = turning(moments)
    assert ((score >= 0) & (score <= 1)).all()
    _, back, _ = fitted(values[::-1], [0, 1, 2], Heterogeneous())
    torch.testing.assert_close(turning(back), score, rtol=1e-3, atol=1e-3)
    _, large, _ = fitted([1024 * v for v in values], [0, 1, 2], Heterogeneous())
    torch.testing.assert_close(turning(large), score, rtol=1e-4, atol=1e-4)


def test_rounding_noise_is_not_motion():
    """Outputs that differ by less than their own rounding turn hardly at all, however wildly the noise points."""
    base = normal(1, 200, 16, seed=1)
    noise = [base + normal(1, 200, 16, seed=s, scale=2.0**-11) * base.abs() for s in (2, 3, 4)]
    _, moments, _ = fitted([v.to(torch.bfloat16) for v in noise], [0, 1, 2], Heterogeneous())
    _, moving, _ = fitted(
        [normal(1, 200, 16, seed=s).to(torch.bfloat16) for s in (2, 3, 4)], [0, 1, 2], Heterogeneous()
    )
    assert turning(moments).mean() < 0.6 * turning(moving).mean()


# -- batch -------------------------------------------------------------------------------------------------------------


def rows(model, batch, steps=12, scale=(1.0, 1.0)):
    kind = FAMILIES["wan"]
    conditioning = {k: torch.cat([v, 5.0 * v]) for k, v in kind.conditioning(1, 1).items()}
    outputs = []
    with torch.no_grad(), denoising(model, steps):
        for step in range(steps):
            level = 1.0 - step / steps
            x = torch.cat([kind.latents(0, 1, 2), kind.latents(1, 1, 2)]) * level
            outputs.append(
                model(
                    hidden_states=x[batch],
                    timestep=kind.time(level).expand(len(batch)),
                    encoder_hidden_states=conditioning["encoder_hidden_states"][batch],
                ).sample
            )
    return outputs


@pytest.mark.parametrize("method", ["worldcache", "powerlaw", "interval"])
def test_a_sample_does_not_depend_on_its_neighbours(method):
    """The default method on a fixed placement: everything but the shared decision is a sample's own."""
    settings = dict(threshold=math.inf) if method == "worldcache" else {}
    model = (
        accelerate_model(FAMILIES["wan"].build(0), method, computed=0.4, **settings)
        if method != "interval"
        else (accelerate_model(FAMILIES["wan"].build(0), method, predictor="trend"))
    )
    both = rows(model, [0, 1])
    for i in range(2):
        for alone, together in zip(rows(model, [i]), both, strict=True):
            torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)
    assert "c" in decisions(model)[0]


def test_a_still_neighbour_hides_nobody():
    """The guard of a batch decides like its most restless sample."""
    counts = {}
    for batch in ([0], [1], [0, 1]):
        model = accelerate_model(FAMILIES["wan"].build(0), "worldcache", threshold=0.12, computed=0.3)
        rows(model, batch, 24)
        counts[len(batch), batch[0]] = decisions(model)[0].count("F")
    assert counts[2, 0] >= max(counts[1, 0], counts[1, 1]) - 1


# -- guidance as two calls or as one batch -----------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [dict(threshold=0.1), dict(threshold=0.3), dict(threshold=math.inf)])
def test_equal_branches_decide_like_one_batch(settings):
    """With cond = uncond both forms see the same numbers, so they must decide alike."""
    kind = FAMILIES["wan"]
    letters = []
    for form in ("separate", "batched", "none"):
        model = accelerate_model(kind.build(0), "worldcache", computed=0.3, **settings)
        prompt = kind.conditioning(1, 1)["encoder_hidden_states"]
        with torch.no_grad(), denoising(model, 24):
            for step in range(24):
                x, t = kind.latents(0, 1, 2) * (1 - step / 24), kind.time(1 - step / 24)[None]
                if form == "batched":
                    model(torch.cat([x, x]), t.expand(2), torch.cat([prompt, prompt]))
                else:
                    for label in ("cond", "uncond")[: 2 if form == "separate" else 1]:
                        with model.cache_context(label):
                            model(x, t, prompt)
        letters.append(decisions(model)[0])
    assert letters[0] == letters[1] == letters[2]


@pytest.mark.parametrize("family", ["wan", "flux"])
def test_a_fixed_placement_gives_one_result_for_both_forms_of_guidance(family):
    runs = []
    for cfg in ("separate", "batched"):
        model = accelerate_model(FAMILIES[family].build(0), "worldcache", threshold=math.inf, computed=0.4)
        runs.append(sample(family, model, 12, cfg=cfg))
        assert "c" in decisions(model)[0]
    torch.testing.assert_close(runs[0].latents, runs[1].latents, rtol=1e-3, atol=1e-4)


# -- end to end against a plain restatement ----------------------------------------------------------------------------


def plain_worldcache(model, steps, w, n, eta, p_s, p_c):
    """Sections 1 and 2 as a loop, one branch, patches of 1 x 2 x 2 as tokens of the unpatchified output."""
    kind = FAMILIES["wan"]
    prompt = kind.conditioning(100, 1)
    x, stored, letters, outputs = kind.latents(0, 1, 2), [], "", []
    accumulated, kappa = 0.0, None

    def tokens(y):  # [1, C, F, H, W] -> [tokens, C * 4]
        _, c, f, h, wd = y.shape
        return y.reshape(c, f, h // 2, 2, wd // 2, 2).permute(1, 2, 4, 0, 3, 5).reshape(-1, c * 4)

    def image(t, like):
        _, c, f, h, wd = like.shape
        return t.reshape(f, h // 2, wd // 2, c, 2, 2).permute(3, 0, 1, 4, 2, 5).reshape(1, c, f, h, wd)

    for s in range(steps):
        level = 1.0 - s / steps
        full = s < w or s == steps - 1 or kappa is None or accumulated >= eta or s - stored[-1][0] > n
        if full:
            with torch.no_grad():
                y = model(hidden_states=x, timestep=kind.time(level)[None], **prompt).sample
            stored = [*stored, (s, tokens(y))][-3:]
            accumulated = 0.0
            if len(stored) == 3:
                (s2, y2), (s1, y1), (s0, y0) = stored
                v_c, v_p = (y0 - y1) / (s0 - s1), (y1 - y2) / (s1 - s2)
                kappa = ((v_c - v_p) / (s0 - s1)).norm(dim=1) / (v_c.norm(dim=1) ** 2 + 1e-8)
                q_s, q_c = torch.quantile(kappa, p_s), torch.quantile(kappa, p_c)
                chaotic, stable, last = kappa >= q_c, kappa < q_s, y0
        else:
            k = s - stored[-1][0]
            u = min(k / n, 1.0)
            alpha = 3 * u**2 - 2 * u**3
            blend = y0 + k * ((1 - alpha) * v_c + alpha * v_p)
            t = torch.where(chaotic[:, None], blend, torch.where(stable[:, None], y0, y0 + k * v_c))
            accumulated += float((kappa * (blend - last).norm(dim=1) * chaotic).mean())
            last, y = blend, image(t, x)
        letters += "F" if full else "c"
        outputs.append(y)
        x = x - y / steps
    return letters, outputs


@pytest.mark.parametrize(
    ("w", "n", "eta"), [(3, 2, 0.2), (5, 6, 1.0), (3, 4, 0.5), (4, 6, 2.0), (3, 6, 1e9), (10, 2, 0.2)]
)
def test_faithful_equals_the_plain_restatement(w, n, eta):
    model = FAMILIES["wan"].build(0)
    letters, outputs = plain_worldcache(model, 24, w, n, eta, 0.3, 0.6)
    accelerate_model(model, "worldcache", faithful=True, warmup=w, max_skip=n, threshold=eta)
    run = sample("wan", model, 24, cfg="none")
    assert decisions(model) == [letters]
    assert "c" in letters
    for found, wanted in zip(run.outputs, outputs, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def plain_aether(model, steps, w, n, eta, p_s, p_c, widths):
    """The same on CogVideoX: each latent pixel of each modality is a token, all are ranked together.

    The drift is the mean over all of them.
    """
    kind = FAMILIES["cogvideox"]
    prompt = kind.conditioning(100, 1)
    x, stored, letters, outputs = kind.latents(0, 1, 2), [], "", []

    def parts(y):  # [1, F, C, H, W] -> one [tokens, width] a modality
        return [part.movedim(2, -1).flatten(0, -2) for part in y.split(widths, dim=2)]

    def image(groups, like):
        _, f, _, h, wd = like.shape
        return torch.cat([g.reshape(1, f, h, wd, -1).movedim(-1, 2) for g in groups], dim=2)

    ready, accumulated = False, 0.0
    for s in range(steps):
        level = 1.0 - s / steps
        full = s < w or s == steps - 1 or not ready or accumulated >= eta or s - stored[-1][0] > n
        if full:
            with torch.no_grad():
                y = model(hidden_states=x, timestep=kind.time(level)[None], **prompt).sample
            stored, accumulated = [*stored, (s, parts(y))][-3:], 0.0
            if len(stored) == 3:
                (s2, y2), (s1, y1), (s0, y0) = stored
                v_c = [(a - b) / (s0 - s1) for a, b in zip(y0, y1, strict=True)]
                v_p = [(a - b) / (s1 - s2) for a, b in zip(y1, y2, strict=True)]
                kappa = [
                    ((c - p) / (s0 - s1)).norm(dim=1) / (c.norm(dim=1) ** 2 + 1e-8)
                    for c, p in zip(v_c, v_p, strict=True)
                ]
                q_s, q_c = torch.quantile(torch.cat(kappa), torch.tensor([p_s, p_c]))
                last, ready = y0, True
        else:
            k = s - stored[-1][0]
            u = min(k / n, 1.0)
            alpha = 3 * u**2 - 2 * u**3
            blend = [b + k * ((1 - alpha) * c + alpha * p) for b, c, p in zip(y0, v_c, v_p, strict=True)]
            chosen = [
                torch.where((g >= q_c)[:, None], m, torch.where((g < q_s)[:, None], b, b + k * c))
                for g, m, b, c in zip(kappa, blend, y0, v_c, strict=True)
            ]
            moves = [g * (m - before).norm(dim=1) * (g >= q_c) for g, m, before in zip(kappa, blend, last, strict=True)]
            accumulated += float(torch.cat(moves).mean())
            last, y = blend, image(chosen, x)
        letters += "F" if full else "c"
        outputs.append(y)
        x = x - y / steps
    return letters, outputs


@pytest.mark.parametrize("settings", [{}, dict(warmup=4, max_skip=6, threshold=1e9), dict(warmup=4, max_skip=6)])
@pytest.mark.parametrize("widths", [(4,), (2, 1, 1)])
def test_aether_takes_latent_pixels_of_every_modality_as_tokens(widths, settings):
    wanted = dict(warmup=10, max_skip=2, threshold=0.2) | settings
    model = FAMILIES["cogvideox"].build(0)
    letters, outputs = plain_aether(
        model, 24, wanted["warmup"], wanted["max_skip"], wanted["threshold"], 0.3, 0.6, list(widths)
    )
    accelerate_model(model, "worldcache:aether", modalities=widths, **settings)
    run = sample("cogvideox", model, 24, cfg="none")
    assert decisions(model) == [letters]
    assert "c" in letters
    for found, y in zip(run.outputs, outputs, strict=True):
        torch.testing.assert_close(found, y, rtol=1e-5, atol=1e-5)


def test_presets_are_the_papers():
    aether, voyager = make_config("worldcache:aether"), make_config("worldcache:voyager")
    assert (aether.warmup, aether.max_skip, aether.threshold, aether.stable, aether.chaotic) == (10, 2, 0.2, 0.3, 0.6)
    assert (voyager.warmup, voyager.max_skip, voyager.threshold, voyager.stable) == (5, 6, 1.0, 0.3)
    assert aether.faithful
    assert voyager.faithful
