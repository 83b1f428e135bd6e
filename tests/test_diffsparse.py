"""Method ``diffsparse``: what runs under a table, what a table is refused for, and what a calibration learns."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from diffcache import (
    ConfigError,
    ScheduleFileError,
    accelerate_model,
    accelerate_pipeline,
    accelerated,
    denoising,
    restore,
)
from diffcache.hooks.blend import BlendPass
from diffcache.hooks.cache import Moment
from diffcache.hooks.grid import Grid
from diffcache.hooks.outlook import prepare
from diffcache.hooks.selection import Selection
from diffcache.hooks.sparse import SparseForecast
from diffcache.learn import calibrate, describe, read_calibration, write_calibration
from diffcache.learn.latency import DENOISER, Stopwatch, measure_work, timed_run
from diffcache.learn.measuring import Reporter
from diffcache.learn.merging import shared
from diffcache.learn.probing import AGES, probe_cells
from diffcache.learn.skeleton import candidates, gap_errors, improve
from diffcache.learn.trials import Trial, Trials
from diffcache.learn.work import Bill, Budget, Work
from diffcache.methods.sparse import sparse_recipe
from diffcache.predictors import TokenLayout
from diffcache.schedules.placing import place, split_of, splits_for
from diffcache.schedules.selectors import Selector
from diffcache.schedules.sparsity import KeepTable, Tabled, count_tokens

from .models import decisions, dit_pipeline, run_dit, run_wan, wan, wan_pipeline, wan_two_experts
from .test_law_restore import attributes, forward_hooks

STEPS = 6
LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)


def trials_of(pipe, runner, seeds=3, site="output", steps=STEPS):
    calls = [lambda p, s=seed: runner(p, steps, seed=s) for seed in range(seeds)]
    return Trials(pipe, calls, site, Selector(), "latent", Reporter(None))


def gentle(model, steps, seed=0):
    """A loop in which input and time move little from step to step, as in a long trajectory."""
    generator = torch.Generator().manual_seed(seed)
    x, way = torch.randn(2, 1, 4, 8, 8, generator=generator)
    with torch.no_grad(), denoising(model, steps):
        for step in range(steps):
            label, time = torch.tensor([3]), torch.tensor([500 - 2 * step])
            output = model(x + 0.01 * step * way, timestep=time, class_labels=label).sample
    return output


@pytest.fixture(scope="module")
def dits():
    return trials_of(dit_pipeline().transformer, gentle)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A schedule file of the tiny random Wan pipeline."""
    path = tmp_path_factory.mktemp("schedules") / "sparse.safetensors"
    runs = [lambda p, s=seed: run_wan(p, STEPS, seed=s) for seed in range(3)]
    write_calibration(calibrate(wan_pipeline(), "diffsparse", runs, evaluations=2, probes=1, iterations=0), path)
    return str(path)


def drawn(trials, seed):
    """A table with every level in it; the first step is full."""
    keep = np.random.default_rng(seed).choice(LEVELS, (trials.course.steps, len(trials.course.units)))
    keep[trials.course.starts] = 1.0
    return keep


# -- what runs ---------------------------------------------------------------------------------------------------------


def test_a_table_says_which_steps_are_full_partial_and_idle(dits):
    keep = np.ones((STEPS, len(dits.course.units)))
    keep[2], keep[4, 0], keep[5] = 0.0, 0.5, 0.0
    (table,) = dits.course.tables(keep).values()
    assert (table.full, table.partial, table.idle) == ({0, 1, 3}, {4}, {2, 5})
    pipe = dits.pipe
    with accelerated(pipe, Trial(tables={"denoiser": table})):
        gentle(pipe, STEPS)
        assert decisions(pipe) == ["FFcFpc"]


@pytest.mark.parametrize("site", ["output", "token"])
def test_law_1_a_table_of_ones_is_the_dense_model_bit_for_bit(site):
    trials = trials_of(dit_pipeline().transformer, gentle, 1, site)
    ones = np.ones((STEPS, len(trials.course.units)))
    assert trials.losses(ones, [0]) == [0.0]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("site", ["output", "token"])
def test_law_6_any_table_gives_the_dense_output_while_nothing_moves(site, seed):
    """Cells of any level, and steps that are computed in part, in the history of the forecast."""
    model = dit_pipeline().transformer
    units = [f"transformer_blocks.{b}.{part}" for b in range(2) for part in ("attn1", "ff")]
    keep = np.random.default_rng(seed).choice(LEVELS, (STEPS, len(units)))
    keep[0], keep[3] = 1.0, 0.0
    table = KeepTable(tuple(units), tuple(map(tuple, keep.tolist())))
    accelerate_model(model, Trial(site=site, tables={"denoiser": table}))
    x, label = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3])
    with torch.no_grad(), denoising(model, STEPS):
        outputs = [model(x, timestep=torch.tensor([500]), class_labels=label).sample for _ in range(STEPS)]
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], rtol=1e-4, atol=1e-5)


def test_a_partial_step_moves_the_forecast_that_follows():
    """All units of step 3 compute all tokens but one unit, so its output is nearly the dense one, and is kept."""
    trials = trials_of(dit_pipeline().transformer, gentle, 1)
    without, part = (np.ones((STEPS, len(trials.course.units))) for _ in range(2))
    without[3:] = part[4:] = 0.0
    part[3, 0] = 0.0
    assert trials.loss(part, [0]) < trials.loss(without, [0])


@pytest.mark.parametrize("last", ["partial", "full"])
def test_each_token_is_forecast_through_its_own_last_two_computed_values(last):
    """Tokens are computed at times of their own; what was predicted meanwhile is far off and leaves no trace."""
    tokens, times = 6, [0, 1, 2, 4, 5, 7]
    truth = torch.randn(len(times), 1, 3, tokens, 1, generator=torch.Generator().manual_seed(0))
    seen = [[True] * 6, [True] * 6, [1, 0, 0, 1, 0, 1], [0, 1, 0, 1, 0, 0], [1, 1, 0, 0, 1, 0], [0, 1, 1, 0, 0, 1]]
    seen = torch.tensor(seen, dtype=torch.bool)
    cache = SparseForecast(sparse_recipe(Trial(), "output", Selector()))
    cache.grid, cache.layouts = Grid(1, (1, 1)), [TokenLayout(1)]
    for number, time in enumerate(times):
        moment = Moment(step=time, time=float(time), ahead=(time + 1.0,))
        if number < 2 or (last == "full" and number == 5):
            seen[number] = True
            cache.record([truth[number]], moment)
            prepare([cache])
        else:
            (guess,) = cache.predict(moment)
            merged = cache.merged(guess, truth[number], seen[number])
            cache.amend(guess, merged, seen[number], moment)
    (found,) = cache.predict(Moment(step=9, time=9.0, ahead=(9.0,)))
    for token in range(tokens):
        before, newest = [number for number in range(len(times)) if seen[number, token]][-2:]
        slope = (truth[newest] - truth[before]) / (times[newest] - times[before])
        wanted = truth[newest] + (9 - times[newest]) * slope
        torch.testing.assert_close(found[..., token, :], wanted[..., token, :])


def test_full_and_idle_steps_alone_hold_nothing_inside_the_denoiser(dits):
    keep = np.ones((STEPS, len(dits.course.units)))
    keep[3] = 0.0
    with accelerated(dits.pipe, Trial(tables=dits.course.tables(keep))):
        gentle(dits.pipe, STEPS)
        held = dits.pipe.diffcache.stats().segments[0].cached_bytes
    assert held == 2 * dits.course.finals[0].numel() * 4


@pytest.mark.parametrize(("share", "tokens", "count"), [(0.25, 64, 16), (0.25, 4096, 1024), (0.01, 4096, 64)])
def test_shares_carry_over_to_another_number_of_tokens(share, tokens, count):
    assert count_tokens(share, tokens) == count
    assert count_tokens(1.0, 1000) == 1000


def test_the_table_of_one_resolution_runs_at_another(file):
    pipe = accelerate_pipeline(wan_pipeline(), "diffsparse", schedule=file)
    run_wan(pipe, STEPS)
    small = decisions(pipe)
    run_wan(pipe, STEPS, size=4)
    assert decisions(pipe) == small


# -- what a file is refused for ----------------------------------------------------------------------------------------


def refused(pipe, file, runner, steps=STEPS, **more):
    try:
        accelerate_pipeline(pipe, "diffsparse", schedule=file)
        runner(pipe, steps, **more)
    except ScheduleFileError as error:
        return str(error)
    finally:
        restore(pipe)
    raise AssertionError("it was taken")


def test_other_models_samplers_and_numbers_of_steps_are_refused(file):
    other = wan_pipeline()
    other.transformer = wan(1, layers=3)
    assert "model: made for WanTransformer3DModel with blocks=2" in refused(other, file, run_wan)
    assert "model: made for WanTransformer3DModel" in refused(dit_pipeline(), file, run_dit)
    assert "steps: made for 6, but here it is 7" in refused(wan_pipeline(), file, run_wan, 7)


def test_other_timesteps_and_other_guidance_are_refused(file):
    shifted = wan_pipeline()
    shifted.scheduler = type(shifted.scheduler).from_config(shifted.scheduler.config, flow_shift=9.0, shift=9.0)
    assert "timesteps: made for" in refused(shifted, file, run_wan)
    text = refused(wan_pipeline(), file, run_wan, guidance=1.0)
    assert "guidance: made for guidance of 2 calls a step, but here it is no guidance" in text


def test_other_sublayers_are_refused():
    table = KeepTable(("blocks.0.attn1", "blocks.0.ffn"), ((1.0, 1.0),))
    with pytest.raises(ScheduleFileError, match=r"sublayers: made for 2 of them with blocks\.0\.ffn"):
        table.check_units(["blocks.0.attn1", "blocks.0.attn2", "blocks.0.ffn"])
    with pytest.raises(ScheduleFileError, match=r"timesteps: made for 999 at step 0, but here it is 990"):
        replace(table, timesteps=(999.0,)).check_timesteps([990.0])


@pytest.mark.parametrize(
    "change",
    [
        lambda e: replace(e, facts={}),
        lambda e: replace(e, facts={**e.facts, "sublayers": e.facts["sublayers"][1:]}),
        lambda e: replace(e, facts={**e.facts, "site": "nowhere"}),
        lambda e: replace(e, facts={**e.facts, "score": {"score": "luck"}}),
        lambda e: replace(e, numbers={"keep": e.numbers["keep"] * 2}),
        lambda e: replace(e, numbers={"keep": e.numbers["keep"][1:]}),
    ],
)
def test_a_damaged_table_is_refused(file, tmp_path, change):
    known = read_calibration(file)
    experts = {name: change(expert) for name, expert in known.experts.items()}
    write_calibration(replace(known, experts=experts), tmp_path / "damaged.safetensors")
    with pytest.raises(ScheduleFileError, match="damaged: "):
        accelerate_pipeline(wan_pipeline(), "diffsparse", schedule=tmp_path / "damaged.safetensors")


def test_without_a_file_the_command_is_named():
    with pytest.raises(ConfigError, match=r"schedule: diffsparse needs .* `diffcache calibrate --model MODEL"):
        accelerate_pipeline(dit_pipeline(), "diffsparse")


def test_a_table_with_full_steps_besides():
    schedule = Tabled(KeepTable(("a",), ((1.0,), (0.0,), (0.5,), (1.0,), (0.0,))), 1, 1, 64)
    schedule.start(5)
    assert [schedule.wants_compute(step) for step in range(5)] == [True, False, False, True, True]


# -- the blended pass and its probes -----------------------------------------------------------------------------------


def test_one_shot_costs_are_what_a_stale_cell_changes(dits):
    """The probes' expectation against the same change made: one unit kept from the step before, the others fresh."""
    probes, seed = 24, 0
    table = probe_cells(dits, np.ones(STEPS), probes, [seed], LEVELS)
    truth = changed_outputs(dits, seed)
    for (step, unit), cost in truth.items():
        assert table[step, unit, 0, 0] == pytest.approx(cost, rel=0.9)
        assert table[step, unit, 0, -1] == pytest.approx(0.0, abs=1e-6 * max(cost, 1.0))
    measured = np.array([table[step, unit, 0, 0] for step, unit in truth])
    assert np.corrcoef(np.log(measured), np.log([*truth.values()]))[0, 1] > 0.9


def changed_outputs(trials, seed):
    """(step, unit) -> squared change of the output by a unit whose values are those of the step before."""
    from diffcache.hooks.modules import find_units, unit_kinds
    from diffcache.hooks.outputs import tensors_in_order
    from diffcache.learn.measuring import Listening
    from diffcache.learn.probing import ProbeSite
    from diffcache.pipeline import handle_of

    found = {}

    class Changed(ProbeSite):
        def _probe(self, seen, output, past, step):
            if past:
                _, before = past[0]
                for number, unit in enumerate(self.units):
                    count = lambda name, *_: 0 if name == unit.name else seen.selection.tokens  # noqa: B023, E731
                    select = lambda stream: Selection(torch.arange(stream.shape[1]))  # noqa: E731
                    start = next(iter(self._lessons.values())).start
                    blend = BlendPass(seen.lessons, start, before, select, count)
                    (stale,) = tensors_in_order(self._within(blend, self.again))
                    change = (stale - output).detach().double().square()
                    found[step, number] = float(change.flatten(1).sum(1).mean())
            past.appendleft((seen.stream, seen.fresh))

        def compute(self, run, cache, moment):
            self.again = run
            return super().compute(run, cache, moment)

    with accelerated(trials.pipe, Listening(exact=False)):
        ((model, hook),) = handle_of(trials.pipe).hooks.values()
        hook.site = Changed(model, find_units(model, "module", unit_kinds("module")), trials.recipe(), 1, LEVELS)
        hook.site.install(model)
        trials.calls[seed](trials.pipe)
    return found


def test_a_probed_pipeline_is_as_it_was(dits):
    before = attributes(dits.pipe), forward_hooks(dits.pipe)
    table = probe_cells(dits, np.ones(STEPS), 1, [1], LEVELS)
    assert table.shape == (STEPS, len(dits.course.units), AGES, len(LEVELS))
    assert (table[1:] >= 0).all()
    assert (np.diff(table[1:], axis=-1)[..., -1] <= 0).all()
    assert (attributes(dits.pipe), forward_hooks(dits.pipe)) == before


# -- full steps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [0, 1])
def test_the_placement_is_the_best_of_all_under_its_model(order):
    rng = np.random.default_rng(order)
    outputs = np.cumsum(np.cumsum(rng.normal(size=(9, 5)), 0), 0)
    effect = rng.uniform(0.5, 1.5, 9)
    errors = gap_errors(outputs @ outputs.T, effect, order)

    def cost(steps):
        total = 0.0
        for before, last, after in zip((None, *steps), steps, (*steps[1:], 9), strict=False):
            gap = np.zeros(5)
            for step in range(last + 1, after):
                guess = outputs[last]
                if order and before is not None:
                    guess = guess + (step - last) / (last - before) * (outputs[last] - outputs[before])
                gap += effect[step] * (outputs[step] - guess)
            total += gap @ gap
        return total

    every = [(0, *rest) for rest in product(range(1, 9), repeat=3) if list(rest) == sorted(set(rest))]
    assert place(errors, 4)[4] == min(every, key=cost)


def test_forced_steps_are_in_every_candidate():
    for splits in (splits_for([11, 9], [1.0, 1.0], 7.0), splits_for([11, 9], [1.0, 2.0], 9.0)):
        for steps in candidates(np.eye(20), np.ones(20), 1, [0, 11], splits):
            assert {0, 11} <= set(steps)
            assert split_of(steps, [(0, 11), (11, 20)]) in splits


def test_the_search_never_leaves_a_better_place_and_keeps_forced_steps():
    target = {0, 3, 6, 7}

    def loss(steps):
        return float(sum(min(abs(s - t) for t in target) for s in steps))

    best, found = improve((0, 1, 6, 9), 10, [0, 6], loss, 60)
    assert {0, 6} <= set(best)
    assert found == loss(best) < loss((0, 1, 6, 9))


def test_late_full_steps_share_their_tokens_with_an_idle_neighbour():
    keep = np.repeat([[1.0], [0.0], [1.0], [1.0], [0.0], [0.0], [1.0]], 2, 1)
    assert shared(keep, 2, [0])[:, 0].tolist() == [1.0, 0.0, 1.0, 0.5, 0.5, 0.5, 0.5]
    assert shared(keep, 9, [0])[:, 1].tolist() == [1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert shared(keep, 1, [0]).mean() == keep.mean()


# -- a calibration -----------------------------------------------------------------------------------------------------


def test_a_calibration_keeps_the_budget_and_says_what_it_found(file):
    known = read_calibration(file)
    expert = known.experts["transformer"]
    keep = expert.numbers["keep"]
    assert keep.shape == (STEPS, len(expert.facts["sublayers"]))
    assert float(keep.mean()) <= 0.5 + 1e-9
    assert expert.branches == ("cond", "uncond")
    told = dict(describe(known))
    assert told["work"].endswith("of dense, 50.0% asked for")
    ((name, loss),) = expert.facts["calibration"]["partial"]
    assert loss == expert.facts["losses"][name] >= expert.quality["held_out"]
    assert told["partial"] == f"{loss:.3g}: {name}"


def test_two_experts_have_a_table_each(tmp_path):
    """One budget for the trajectory; each begins with a full step, and what was computed before is not its history."""
    pipe, path = wan_two_experts(), tmp_path / "sparse.safetensors"
    runs = [lambda p, s=seed: run_wan(p, 6, seed=s) for seed in range(3)]
    known = calibrate(pipe, "diffsparse", runs, evaluations=0, probes=1, iterations=1)
    high, low = known.experts["transformer"], known.experts["transformer_2"]
    assert [float(expert.numbers["keep"][0].min()) for expert in (high, low)] == [1.0, 1.0]
    assert (high.steps, low.steps) == (3, 3)
    assert sum(float(expert.numbers["keep"].sum()) for expert in (high, low)) <= 0.5 * 6 * high.numbers["keep"].shape[1]
    write_calibration(known, path)
    dense = run_wan(pipe, 6, seed=5)
    sample = run_wan(accelerate_pipeline(pipe, "diffsparse", schedule=path), 6, seed=5)
    words = [["F" if r.min() >= 1 else "c" if r.max() <= 0 else "p" for r in e.numbers["keep"]] for e in (high, low)]
    assert decisions(pipe) == [word for letters in words for word in ["".join(letters)] * 2]
    assert float((sample - dense).norm() / dense.norm()) < 0.1
    with pytest.raises(ScheduleFileError, match="steps of transformer: made for 3, but here it is 4"):
        run_wan(accelerate_pipeline(wan_two_experts(boundary=0.4), "diffsparse", schedule=path), 6)
    with pytest.raises(ScheduleFileError, match="model: made for transformer and transformer_2, but here it is trans"):
        accelerate_pipeline(wan_pipeline(), "diffsparse", schedule=path)
    with pytest.raises(ConfigError, match=r"calls: transformer never ran .* change the boundary between them"):
        calibrate(wan_two_experts(boundary=1.1), "diffsparse", runs)


def test_full_steps_are_paid_with_what_each_expert_costs():
    dear, cheap = (Work(LEVELS, np.outer([price], LEVELS), 0.5, "ms", idle=0.1) for price in (4.0, 1.0))
    bill = Bill((dear, cheap), (4, 5))
    assert bill.dense == 4 * 4.5 + 5 * 1.5
    for split in bill.splits(Budget.read("2x")):
        keep = np.repeat([1.0, 0.0, 1.0, 0.0], [split[0], 4 - split[0], split[1], 5 - split[1]])[:, None]
        assert bill.dense / 2 - 4.4 < bill.of(keep) <= bill.dense / 2
    assert bill.room(10.0, [0, 4, 5]) == pytest.approx(10.0 - 3 * 0.5 - 6 * 0.1)
    assert bill.weights[[3, 4], 0, -1].tolist() == [4.0, 1.0]
    with pytest.raises(ConfigError, match=r"must be in \[1x, 3.15x\], which is \[8.1ms, 25.5ms\]"):
        bill.splits(Budget.read("9x"))


def test_a_bare_denoiser_is_calibrated_by_what_its_runs_return():
    runs = [lambda m, s=seed: gentle(m, STEPS, s) for seed in range(3)]
    known = calibrate(dit_pipeline().transformer, "diffsparse", runs, evaluations=1, probes=1, iterations=1)
    assert known.experts["denoiser"].steps == STEPS


def test_an_interrupted_calibration_goes_on_from_where_it_was(tmp_path):
    model = dit_pipeline().transformer
    runs = [lambda m, s=seed: gentle(m, STEPS, s) for seed in range(3)]
    settings = dict(evaluations=2, probes=1, iterations=1)
    whole = calibrate(model, "diffsparse", runs, **settings)
    kept = tmp_path / "kept.partial"
    seen = []

    def interrupt(label, done, total):
        seen.append(label)
        if label.startswith("probes") and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(model, "diffsparse", runs, kept=kept, progress=interrupt, **settings)
    assert kept.exists()
    again = []
    note = lambda label, done, total: again.append(label)  # noqa: E731
    resumed = calibrate(model, "diffsparse", runs, kept=kept, progress=note, **settings)
    assert any(label.startswith("full steps") for label in seen)
    assert not any(label.startswith("full steps") and "held" not in label for label in again)
    assert not kept.exists()
    found = (known.experts["denoiser"].numbers["keep"] for known in (resumed, whole))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("seeds", "settings", "message"),
    [
        (2, {}, "seeds: 2 given, must be at least 3"),
        (3, {"budget": 0.1}, r"budget: 0.1 is infeasible, must be in \[0.333, 1\] of the dense work"),
        (3, {"budget": 2}, r"budget: 2 is out of range, must be a share of the dense work in \(0, 1\]"),
        (3, {"budget": "2"}, r"budget: '2' is not right, must be a share \(0.5\), a speed-up \(2x\) or a time"),
        (3, {"budget": "0.5x"}, "budget: 0.5x is out of range, must be at least 1x"),
        (3, {"site": "block"}, "site: unknown value 'block'"),
        (3, {"probes": -1}, "probes: -1 is out of range"),
    ],
)
def test_bad_input_is_told_what_would_be_right(seeds, settings, message):
    runs = [lambda p, s=seed: run_dit(p, STEPS, seed=s) for seed in range(seeds)]
    with pytest.raises(ConfigError, match=message):
        calibrate(dit_pipeline(), "diffsparse", runs, **settings)


# -- what it costs -----------------------------------------------------------------------------------------------------


def test_work_is_that_of_the_cells():
    work = Work(LEVELS, np.array([[0.0, 1.0, 2.0, 3.0, 4.0], [0.0, 0.5, 1.0, 1.5, 2.0]]), 1.0, "ms")
    assert work.step == 7.0
    assert work.of([[1.0, 1.0], [0.0, 0.0], [0.5, 0.0]]) == 7.0 + 1.0 + 2.0


class Flops(Stopwatch):
    """Moments in floating-point operations, which do not depend on what else the machine does."""

    def __init__(self, counter):
        self.counter = counter

    def now(self):
        return self.counter.get_total_flops()

    def between(self, begin, end):
        return float(end - begin)


def test_measured_work_is_what_a_table_then_takes():
    trials = trials_of(dit_pipeline().transformer, gentle, 1)
    keep = drawn(trials, 3)
    with FlopCounterMode(display=False) as counter:
        work = measure_work(trials, LEVELS, Flops(counter))
        times = timed_run(trials, trials.trial(keep), "table", Flops(counter))
    found = sum(spent for (step, name), spent in times.items() if step > 0 and name == DENOISER)
    (one,) = work.works
    feeding = one.weight[1]  # of the first feed-forward: rows alone count
    assert feeding == pytest.approx(feeding[-1] * np.array(LEVELS), rel=0.02)
    assert one.dense <= one.step
    assert work.of(keep) - one.step == pytest.approx(found, rel=0.1)


def test_a_budget_in_time_is_kept_and_an_infeasible_one_is_told_the_range():
    work = Work(LEVELS, np.outer([4.0, 2.0], LEVELS), 1.0, "ms", idle=0.5, bare=6.5)
    bill = Bill((work,), (10,))
    counts = {text: list(bill.splits(Budget.read(text))) for text in ("2x", "32.5ms", "1x")}
    assert counts == {"2x": [(4,)], "32.5ms": [(4,)], "1x": [(10,)]}
    assert work.of(np.repeat([[1.0], [0.0]], [4, 6], 0).repeat(2, 1)) == 4 * 6.5 + 6 * 0.5
    for text, known in (("9x", r"\[1x, 3.82x\], which is \[17ms, 65ms\]"), ("3ms", r"\[17ms, 65ms\], which is")):
        with pytest.raises(ConfigError, match=f"budget: {text} is infeasible, must be in {known}"):
            bill.splits(Budget.read(text))


def test_a_calibration_in_measured_time_tells_what_it_spends():
    runs = [lambda m, s=seed: gentle(m, STEPS, s) for seed in range(3)]
    known = calibrate(
        dit_pipeline().transformer, "diffsparse", runs, evaluations=0, probes=1, iterations=0, budget="1.5x"
    )
    (expert,) = known.experts.values()
    assert expert.numbers["latency_us"].shape == (len(expert.facts["sublayers"]), len(LEVELS))
    budget = expert.facts["budget"]
    assert budget["spent"] <= budget["value"] * budget["dense"] * (1 + 1e-9)
    assert dict(describe(known))["work"].endswith("ms (cpu), 1.5x asked for")
