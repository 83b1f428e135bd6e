"""Samples of a batch decide apart: those that moved are computed by themselves, and each gets what it gets alone."""

from __future__ import annotations

import threading

import pytest
import torch
from diffusers import WanTransformer3DModel

from diffcache import accelerate_model, restore

from .batches import MOVING, STEPS, STILL, Sample, walk
from .denoisers import DENOISERS
from .denoisers.running import model_of
from .models import decisions, normal, randomise, seeded
from .reads import Reads, ignore_inside, watched

#: a threshold that whoever moves passes, and who stands still does not
SITES = {
    "first": ("fbcache", dict(threshold=1e-3, warmup=2, cooldown=1)),
    "modulated": ("teacache", dict(threshold=1e-3, warmup=2, polynomial=(1.0, 0.0))),
    "rate": ("easycache", dict(threshold=1e-3, warmup=2)),
}
WAN = "WanTransformer3DModel"
#: class -> the sites that are tried on it: one sequence, two streams, tokens first, frames among the samples, lists
TRIED = {
    "DiTTransformer2DModel": SITES,
    "PixArtTransformer2DModel": SITES,
    "FluxTransformer2DModel": SITES,
    WAN: SITES,
    "CogVideoXTransformer3DModel": SITES,
    "SD3Transformer2DModel": ("first",),
    "ZImageTransformer2DModel": SITES,  # noise and captions in lists
    "HiDreamImageTransformer2DModel": ("first",),  # text features of several layers, the batch behind
    "LatteTransformer3DModel": ("first", "modulated"),  # frames among the samples
    "ErnieImageTransformer2DModel": ("first", "modulated"),  # tokens before samples
    "QwenImageTransformer2DModel": ("modulated",),  # shapes in a list
    "LTX2VideoTransformer3DModel": ("rate",),  # a film and its sound
    "QwenImage21Transformer2DModel": ("rate",),  # an output longer than the noise
}
CASES = [(name, site) for name, sites in TRIED.items() for site in sites]


def put_on(model, site, **settings):
    method, usual = SITES[site]
    return accelerate_model(model, method, **{**usual, **settings})


@pytest.fixture
def on():
    """Puts a site's method on the shared model of a class; bare again afterwards."""
    models = []

    def put(name, site, **settings):
        models.append(put_on(model_of(name), site, **settings))
        return models[-1]

    yield put
    for model in models:
        restore(model)


def close(found, wanted):
    return bool((found - wanted).norm() <= 1e-5 * wanted.norm())


def segment(model):
    (found,) = model.diffcache.stats().segments
    return found


def alone(model, samples, steps=STEPS):
    """Outputs and decisions of each sample in a batch of its own."""
    found = []
    for sample in samples:
        (outputs,) = walk(model, [[sample]], steps)
        found.append(([rows[0] for rows in outputs], decisions(model)[0]))
    return found


# -- each as if alone --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "site"), CASES)
def test_each_sample_of_a_batch_gets_what_it_gets_alone(on, name, site):
    samples = [Sample(name, 1), Sample(name, 2, MOVING), Sample(name, 3)]
    model = on(name, site)
    (together,) = walk(model, [samples])
    stats = segment(model)
    (again,) = walk(model, [samples])  # the proof is done
    singles = alone(model, samples)
    assert stats.decisions == "FFcpcpccF", stats.together
    assert stats.samples == [letters for _, letters in singles] == ["FFccccccF", "FFcFcFccF", "FFccccccF"]
    for row, (outputs, _) in enumerate(singles):
        for step in range(STEPS):
            assert close(together[step][row], outputs[step]), (row, step)
            assert torch.equal(together[step][row], again[step][row])


@pytest.mark.parametrize("site", SITES)
def test_fifteen_still_samples_do_not_hide_one_that_moves_nor_are_they_computed_for_it(on, site):
    samples = [Sample(WAN, seed) for seed in range(1, 16)]
    samples.insert(7, Sample(WAN, 20, MOVING))
    model = on(WAN, site)
    (together,) = walk(model, [samples])
    letters = segment(model).samples
    assert letters.pop(7) == "FFcFcFccF"
    assert set(letters) == {"FFccccccF"}
    for row in (0, 7, 15):
        ((outputs, _),) = alone(model, [samples[row]])
        assert all(close(together[step][row], outputs[step]) for step in range(STEPS))


def test_samples_that_move_at_different_steps(on):
    moves = [(3,), (4,), (3, 4), (), (6,)]
    model = on(WAN, "first")
    walk(model, [[Sample(WAN, seed, m) for seed, m in enumerate(moves)]])
    for letters, m in zip(segment(model).samples, moves, strict=True):
        assert {step for step in range(2, STEPS - 1) if letters[step] == "F"} == set(m)


def test_each_sample_has_its_own_longest_run(on):
    samples = [Sample(WAN, 1), Sample(WAN, 2, (3,))]
    model = on(WAN, "first", max_skip=2)
    walk(model, [samples])
    # runs of two: the one that moved at step 3 counts from there
    assert segment(model).samples == ["FFccFccFF", "FFcFccFcF"]
    assert segment(model).decisions == "FFcppcppF"


def test_exact_savings_stay_right(on):
    samples = [Sample(WAN, 1), Sample(WAN, 2, MOVING), Sample(WAN, 3)]
    model = on(WAN, "first", exact=False)
    walk(model, [samples])
    (without,) = walk(model, [samples])
    restore(model)
    on(WAN, "first", exact=True)
    walk(model, [samples])
    (saving,) = walk(model, [samples])
    assert segment(model).exact_calls > 0
    for a, b in zip(saving, without, strict=True):
        assert all(map(torch.equal, a, b))


# -- guidance ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("folds", [2, 3])
def test_what_carries_the_same_noise_decides_together(on, site, folds):
    """Two prompts under fused guidance: rows are (prompt 1, prompt 2) once a condition."""
    prompts = list(enumerate((STILL, MOVING)))
    rows = [Sample(WAN, 10 * fold + i, moves, noise=i) for fold in range(folds) for i, moves in prompts]
    model = on(WAN, site)
    walk(model, [rows])
    assert segment(model).samples == ["FFccccccF", "FFcFcFccF"]
    assert segment(model).decisions == "FFcpcpccF"


@pytest.mark.parametrize("site", SITES)
def test_one_prompt_under_fused_guidance_is_one_decision_and_costs_no_proof(on, site):
    rows = [Sample(WAN, seed, MOVING, noise=1) for seed in (1, 2)]
    model = on(WAN, site)
    walk(model, [rows])
    assert segment(model).samples == []
    assert segment(model).decisions == "FFcFcFccF"
    ((_, hook),) = model.diffcache.hooks.values()
    assert not hook.site.batches.known


def conditioned():
    """A Wan that takes four noisy channels with four of a condition behind them."""
    with seeded(0):
        model = WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=12, in_channels=8, out_channels=4, text_dim=16, freq_dim=16,
            ffn_dim=32, num_layers=2, rope_max_seq_len=32, patch_size=(1, 2, 2),
        )  # fmt: skip
    return randomise(model)


class Conditioned(Sample):
    """The noise stands still, and the condition of one row is another one from step 3 on."""

    def __init__(self, seed, noise, changes):
        super().__init__(WAN, seed, noise=noise)
        self._changes, self._seed = changes, seed

    def __call__(self, step):
        call = super().__call__(step)
        condition = normal(1, 4, 3, 8, 4, seed=self._seed + (500 if self._changes and step >= 3 else 0))
        return {**call, "hidden_states": torch.cat([call["hidden_states"], condition], 1)}


@pytest.mark.parametrize("half", [0, 2])
@pytest.mark.parametrize("site", ["first", "modulated"])
def test_each_half_is_judged_and_the_pair_decides_together(site, half):
    rows = [Conditioned(seed, noise, seed == half) for seed, noise in enumerate((0, 1, 0, 1))]
    model = put_on(conditioned(), site)
    walk(model, [rows])
    assert segment(model).samples == ["FFcFccccF", "FFccccccF"]


def test_under_separate_guidance_the_branches_decide_together(on):
    first = [Sample(WAN, seed, moves) for seed, moves in enumerate((STILL, (3,), STILL))]
    second = [Sample(WAN, 10 + seed, moves) for seed, moves in enumerate((STILL, STILL, (5,)))]
    model = on(WAN, "first")
    walk(model, [first, second])
    before, after = model.diffcache.stats().segments
    # The second sample moves in the first branch at step 3. The third moves in the second branch at step 5, which is
    # read with what the first branch hears at step 6: one read a step.
    assert before.samples == after.samples == ["FFccccccF", "FFcFccccF", "FFccccFcF"]


@pytest.mark.parametrize("site", SITES)
def test_two_branches_are_read_once_a_step(site):
    reads, counts = Reads(), []
    model = put_on(ignore_inside(DENOISERS[WAN].tiny(), reads), site)

    class Counting(Sample):
        def __call__(self, step):
            counts.append(reads.count)
            return super().__call__(step)

    branches = [[Counting(WAN, 1), Sample(WAN, 2, MOVING)], [Sample(WAN, 11), Sample(WAN, 12, MOVING)]]
    walk(model, branches)
    counts.clear()
    with watched(reads):
        walk(model, branches)
    letters = [s.decisions for s in model.diffcache.stats().segments]
    assert letters[0] == letters[1]
    assert "p" in letters[0]
    steps = [b - a for a, b in zip(counts, [*counts[1:], reads.count], strict=True)]
    assert max(steps) <= 1, (steps, reads.names)


# -- laws --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", SITES)
def test_never_skipping_is_bit_identical_in_a_batch(on, site):
    samples = [Sample(WAN, 1), Sample(WAN, 2, MOVING)]
    (bare,) = walk(model_of(WAN), [samples])
    model = on(WAN, site, max_skip=0)
    (found,) = walk(model, [samples])
    assert all(torch.equal(a, b) for x, y in zip(found, bare, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("site", SITES)
def test_who_stands_still_beside_one_that_moves_gets_the_dense_output(on, site):
    samples = [Sample(WAN, 1), Sample(WAN, 2, MOVING)]
    (bare,) = walk(model_of(WAN), [samples])
    (found,) = walk(on(WAN, site), [samples])
    assert all(close(found[step][0], bare[step][0]) for step in range(STEPS))
    assert all(close(found[step][1], bare[step][1]) for step in range(STEPS))  # between its moves it stands still, too


@pytest.mark.parametrize("site", SITES)
def test_a_step_is_read_at_most_once_after_the_proof(site):
    reads, counts = Reads(), []
    model = put_on(ignore_inside(DENOISERS[WAN].tiny(), reads), site)

    class Counting(Sample):
        def __call__(self, step):
            counts.append(reads.count)
            return super().__call__(step)

    samples = [Counting(WAN, 1), Sample(WAN, 2, MOVING), Sample(WAN, 3)]
    walk(model, [samples])
    counts.clear()
    with watched(reads):
        walk(model, [samples])
    assert "p" in segment(model).decisions
    steps = [b - a for a, b in zip(counts, [*counts[1:], reads.count], strict=True)]
    assert max(steps) <= 1, (steps, reads.names)
    assert sum(steps) <= STEPS - 3  # two of warm-up and one of cool-down decide without being asked


@pytest.mark.parametrize("site", SITES)
def test_a_batch_holds_what_its_samples_hold_alone(on, site):
    samples = [Sample(WAN, 1), Sample(WAN, 2, MOVING), Sample(WAN, 3)]
    model = on(WAN, site)
    (outputs,) = walk(model, [samples])
    assert "p" in segment(model).decisions
    held = segment(model).cached_bytes
    if site == "rate":  # difference, last computed input and output, input of the step before; and the rates
        assert held == 4 * sum(output.numel() * 4 for output in outputs[0]) + 4 * 3
    else:  # residual and reference, of 24 tokens with 24 features a sample
        assert held == 2 * (3 * 24 * 24) * 4
    alone(model, [samples[1]])
    assert held == 3 * segment(model).cached_bytes or site == "rate"


@pytest.mark.parametrize("site", SITES)
def test_the_share_in_the_stats_is_the_rows_that_went_through_the_blocks(site):
    model = put_on(DENOISERS[WAN].tiny(), site)
    rows = []
    samples = [Sample(WAN, 1), Sample(WAN, 2, MOVING), Sample(WAN, 3)]
    walk(model, [samples])
    proof = segment(model).block_share
    for block in model.blocks:
        block.ffn.register_forward_pre_hook(lambda m, args: rows.append(len(args[0])))
    walk(model, [samples])
    stats = segment(model)
    assert stats.block_share == stats.token_share == pytest.approx(sum(rows) / (3 * len(model.blocks) * STEPS))
    assert stats.block_share < segment_of_worst(site).block_share
    assert proof == pytest.approx(stats.block_share + 1 / STEPS)  # one step in full


def segment_of_worst(site):
    """All samples move when one does."""
    model = put_on(DENOISERS[WAN].tiny(), site)
    walk(model, [[Sample(WAN, seed, MOVING) for seed in (1, 2, 3)]])
    return segment(model)


def test_what_moves_alone_is_computed_alone(on):
    """The work of a step with one moving sample of 16 does not grow with the others."""
    model = put_on(DENOISERS[WAN].tiny(), "modulated")
    samples = [Sample(WAN, seed) for seed in range(15)] + [Sample(WAN, 20, (3,))]
    walk(model, [samples])
    seen = []
    model.blocks[1].register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(len((*args, *kwargs.values())[0])), with_kwargs=True
    )
    walk(model, [samples])
    assert [n for n in seen if n < 16] == [1]


# -- in doubt together -------------------------------------------------------------------------------------------------


class Mixing(WanTransformer3DModel):
    """A denoiser whose samples see each other."""

    def forward(self, hidden_states, timestep, encoder_hidden_states, return_dict=True, **kwargs):
        mixed = hidden_states + 0.5 * hidden_states.mean(0, keepdim=True)
        return super().forward(mixed, timestep, encoder_hidden_states, return_dict=return_dict, **kwargs)


@pytest.mark.parametrize("site", SITES)
def test_samples_that_see_each_other_decide_together_and_the_reason_is_told_once(site):
    with seeded(0):
        model = Mixing(
            num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=16,
            ffn_dim=32, num_layers=2, rope_max_seq_len=32, patch_size=(1, 2, 2),
        )  # fmt: skip
    put_on(randomise(model), site, threshold=0.02)
    samples = [Sample(WAN, 1), Sample(WAN, 2, MOVING), Sample(WAN, 3)]
    for attempt in range(2):
        walk(model, [samples])
        stats = segment(model)
        assert "p" not in stats.decisions, attempt
        assert stats.decisions[3] == stats.decisions[5] == "F"
    if site == "rate":  # in the others the mean has moved every sample
        assert "does not return the same for samples that run by themselves" in stats.together
        assert str(model.diffcache.stats()).count("decide together") == 1


def test_another_batch_in_mid_trajectory_is_computed_and_grouped_anew(on):
    samples = [Sample(WAN, 1), Sample(WAN, 2, (3, 6)), Sample(WAN, 3, (7,))]
    model = on(WAN, "first")
    with model.cache_context("cond"):
        walk(model, [lambda step: samples[: 3 if step < 5 else 2]])
    stats = segment(model)
    assert stats.decisions == "FFcpcFpcF"
    assert stats.fallbacks[0].step == 5


@pytest.mark.parametrize("site", SITES)
def test_a_sample_that_is_not_finite_is_computed_and_the_others_are_not(on, site):
    class Broken(Sample):
        def __call__(self, step):
            call = super().__call__(step)
            return {**call, "hidden_states": call["hidden_states"] * (float("nan") if step == 4 else 1.0)}

    samples = [Sample(WAN, 1), Broken(WAN, 2), Sample(WAN, 3, (3,))]
    model = on(WAN, site)
    (outputs,) = walk(model, [samples])
    letters = segment(model).samples
    assert letters[0] == "FFccccccF"
    assert letters[1][4:6] == "FF"
    assert letters[2] == "FFcFccccF"
    assert all(outputs[step][0].isfinite().all() for step in range(STEPS))


@pytest.mark.parametrize("site", ["first", "modulated"])
def test_what_is_not_finite_is_not_reused_for_the_sample_that_it_is_about(on, site):
    """The last block overflows on one row of a computed step: the signal does not show it."""
    model = put_on(DENOISERS[WAN].tiny(), site)
    samples = [Sample(WAN, 1), Sample(WAN, 2, (3,)), Sample(WAN, 3)]
    walk(model, [samples])
    state = {"calls": 0}

    def overflow(module, args, output):
        state["calls"] += 1
        if len(output) == 1:  # only the sample that moved, computed by itself
            return torch.full_like(output, float("inf"))
        return output

    handle = model.blocks[1].ffn.register_forward_hook(overflow)
    walk(model, [samples])
    handle.remove()
    stats = segment(model)
    assert stats.samples[1][3:5] == "FF"
    assert stats.samples[0] == stats.samples[2] == "FFccccccF"
    assert any("not finite" in f.reason for f in stats.fallbacks)


# -- isolation ---------------------------------------------------------------------------------------------------------


def test_a_trajectory_forgets_the_groups_of_the_last_one(on):
    model = on(WAN, "first")
    plain = [Sample(WAN, seed, moves) for seed, moves in enumerate((STILL, MOVING))]
    fused = [Sample(WAN, seed, MOVING, noise=1) for seed in (1, 2)]
    (wanted,) = walk(model, [plain])
    walk(model, [fused])
    assert segment(model).samples == []
    (found,) = walk(model, [plain])
    assert segment(model).samples == ["FFccccccF", "FFcFcFccF"]
    assert all(torch.equal(a, b) for x, y in zip(found, wanted, strict=True) for a, b in zip(x, y, strict=True))


def test_two_models_in_two_threads_give_what_they_give_alone():
    models = [put_on(DENOISERS[WAN].tiny(), site) for site in ("first", "rate")]
    batches = [[Sample(WAN, 1), Sample(WAN, 2, moves)] for moves in ((3,), (4, 5))]
    wanted = [walk(m, [b]) for m, b in zip(models, batches, strict=True)]
    letters = [segment(m).samples for m in models]
    found, barrier = {}, threading.Barrier(2)

    def work(i):
        barrier.wait()
        found[i] = walk(models[i], [batches[i]])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    for i, model in enumerate(models):
        assert segment(model).samples == letters[i]
        for x, y in zip(found[i][0], wanted[i][0], strict=True):
            assert all(map(torch.equal, x, y))
