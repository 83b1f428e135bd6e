"""Straight-through learning of a keep table: measured gains against the true loss, and what is taken of them."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffcache.learn import calibrate
from diffcache.learn.decoding import decoded, direction
from diffcache.learn.effects import measure_effects
from diffcache.learn.losses import measure, unlikeness
from diffcache.learn.refining import Ground, levels_of, refine
from diffcache.learn.student import measure_gains, reach
from diffcache.learn.work import Bill, Work

from .models import dit_pipeline, run_dit
from .test_diffsparse import LEVELS, drawn, gentle, trials_of
from .test_law_restore import attributes, forward_hooks


@pytest.fixture(scope="module")
def dits():
    return trials_of(dit_pipeline(), run_dit, 1, "token", 8)


def test_gains_tell_which_cells_lower_the_true_loss(dits):
    """Of the changes that are said to matter most, made one by one; guidance is within the batch."""
    before = attributes(dits.pipe.transformer), forward_hooks(dits.pipe.transformer)
    keep = drawn(dits, 1)
    gains = measure_gains(dits, keep, 0, measure_effects(dits), LEVELS)
    assert (attributes(dits.pipe.transformer), forward_hooks(dits.pipe.transformer)) == before
    now = np.take_along_axis(gains[:, :-1], levels_of(keep, LEVELS)[..., None], -1)
    change = (gains[:, :-1] - now)[1:]
    cells = np.unravel_index(np.argsort(-np.abs(change), axis=None)[:24:2], change.shape)
    base, said, true = math.log(dits.loss(keep, [0])), [], []
    for step, unit, level in zip(*cells, strict=True):
        other = keep.copy()
        other[step + 1, unit] = LEVELS[level]
        said.append(change[step, unit, level])
        true.append(math.log(dits.loss(other, [0])) - base)
    assert np.corrcoef(said, true)[0, 1] > 0.6


@pytest.mark.parametrize("order", [0, 1])
def test_reach_is_the_derivative_of_what_a_forecast_leads_to(order):
    effect, active = np.random.default_rng(0).normal(size=9), [0, 1, 4, 6]

    def end(outputs):
        total = 0.0
        for step in range(9):
            last = max(s for s in active if s <= step)
            before = [s for s in active if s < last][-1:]
            slope = (outputs[last] - outputs[before[0]]) / (last - before[0]) if before and order else 0.0
            total += effect[step] * (outputs[last] + (step - last) * slope)
        return total

    assert reach(effect, active, order) == pytest.approx([end(row) for row in np.eye(9)])


@pytest.mark.parametrize("tied", [False, True])
def test_a_table_near_another_one_keeps_the_budget_and_what_is_forced(tied):
    work = Bill((Work(LEVELS, np.outer([2.0, 1.0], LEVELS), 0.5, "ms"),), (5,))
    keep = np.array([[1.0, 1.0], [0.5, 0.5], [0.0, 0.0], [0.5, 0.5], [1.0, 1.0]])
    ground = Ground(work, work.of(keep), [0], wakes=False)
    cost = -np.random.default_rng(0).random((5, 3, 1)) * np.array(LEVELS)
    cost[3] *= 9.0
    near = [ground.solve(keep, cost, radius, tied) for radius in (1e3, 0.01)]
    assert (near[0] == keep).all()
    assert (near[1] != keep).any()
    assert work.of(near[1]) <= ground.room + 1e-9
    assert (near[1][[0, 2]] == keep[[0, 2]]).all()
    assert not tied or (near[1][:, 0] == near[1][:, 1]).all()


def test_learning_lowers_the_loss_and_ends_where_held_out_runs_say_no():
    rng = np.random.default_rng(1)
    worth = rng.random((6, 3)) ** 3
    keep = np.full((6, 3), 0.5)
    keep[0] = 1.0
    work = Bill((Work.in_tokens(LEVELS, 3),), (6,))
    ground = Ground(work, work.of(keep), [0], wakes=True)

    def loss(table):
        return float((worth * (1 - table) ** 2).sum())

    def gains(table):
        slope = -2 * worth * (1 - table)
        return np.concatenate([slope[..., None] * np.array(LEVELS), np.zeros((6, 1, len(LEVELS)))], 1)

    found = list(refine(keep, ground, gains, loss, loss, 5))
    losses = [loss(table) for table in (keep, *found)]
    assert len(found) > 1
    assert losses == sorted(losses, reverse=True)
    assert all(work.of(table) <= ground.room + 1e-9 for table in found)
    assert list(refine(keep, ground, gains, loss, lambda table: -loss(table), 5)) == []


def test_the_decoded_loss_has_a_gradient_by_the_final_sample():
    """A step along it lowers the loss by what it says; the decoder is given the sample, scaled."""
    vae = dit_pipeline().vae.float()
    generator = torch.Generator().manual_seed(0)
    wanted, error = (torch.randn(1, vae.config.latent_channels, 8, 8, generator=generator) for _ in range(2))
    error = 0.3 * error

    def loss(e):
        with torch.no_grad():
            pictures = [vae.decode((wanted + x) / 0.5, return_dict=False)[0] for x in (e, 0 * e)]
        return math.log(unlikeness(*pictures))

    pipe = SimpleNamespace(vae=vae)
    with decoded(pipe) as given:
        vae.decode((wanted + error) / 0.5)
    gradient = direction(pipe, given, error, wanted)
    step = 1e-3 * gradient / gradient.norm()
    assert loss(error + step) - loss(error - step) == pytest.approx(2 * float((gradient * step).sum()), rel=0.05)
    assert "decode" not in vae.__dict__


def test_the_decoded_loss_is_that_of_the_pictures_which_a_pipeline_returns():
    generator = np.random.default_rng(0)
    frames = generator.random((1, 3, 20, 28, 3), np.float32)  # a clip: batch, frames, height, width, channels
    near, far = (np.clip(frames + size * generator.normal(size=frames.shape), 0, 1) for size in (0.02, 0.2))
    sample = torch.zeros(1)
    losses = [measure("decoded", sample, (x,), sample, (frames,)) for x in (frames, near, far)]
    assert losses[0] == pytest.approx(0.0, abs=1e-6)
    assert 1e-4 < losses[1] < 0.1 < losses[2] < 1.0


def test_a_table_of_the_paper_s_site_is_learned_from_one_shot():
    runs = [lambda m, s=seed: gentle(m, 6, s) for seed in range(3)]
    model = dit_pipeline().transformer
    known = calibrate(model, "diffsparse", runs, site="token", evaluations=0, probes=1, iterations=1)
    losses = known.experts["denoiser"].facts["losses"]
    learned = [name for name in losses if "learned" in name]
    assert all(losses[name] <= losses[name.split(", learned")[0]] for name in learned)
