"""What a call computes more than once is computed once, bit for bit, and whatever is in doubt runs."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers.hooks import ModelHook
from diffusers.models.embeddings import Timesteps
from torch import nn

from diffcache import accelerate_model, denoising, restore
from diffcache.hooks.attach import HOOK_NAME, attach, detach
from diffcache.hooks.repeats import Repeats

from .models import FAMILIES, normal, sample
from .reads import Reads, called
from .states import attributes, forward_hooks

STEPS = 5
#: a DiT of two blocks asks for its sinusoids three times a call: in both blocks, and in the first one's for its head
ASKED = 3


def dit(kind=None):
    """A random DiT, its sinusoids made by modules of another kind."""
    model = FAMILIES["dit"].build(0)
    for block in model.transformer_blocks if kind is not None else ():
        block.norm1.emb.time_proj = kind(256, True, 1)
    return model


def put(model, method="interval:max_skip=0", **settings):
    return accelerate_model(model, method, **settings)


def saved(model):
    (segment,) = model.diffcache.stats().segments
    return segment.exact_calls


def run(model, seed=0, steps=STEPS, between=lambda step: None):
    """One generation's outputs."""
    label, outputs = torch.tensor([1, 2]), []
    with torch.no_grad(), denoising(model, steps):
        for step in range(steps):
            between(step)
            time = torch.tensor([999 - 100 * step]).expand(2)
            outputs.append(model(normal(2, 4, 8, 8, seed=seed + step), time, label).sample)
    return outputs


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def sinusoids(model):
    return [block.norm1.emb.time_proj for block in model.transformer_blocks]


def counted():
    """A kind of sinusoids, and a list that gets an entry for each of its runs."""
    runs = []

    class Counted(Timesteps):
        def forward(self, timesteps):
            runs.append(0)
            return super().forward(timesteps)

    return Counted, runs


# -- what is saved -----------------------------------------------------------------------------------------------------


def test_blocks_that_repeat_one_another_are_answered_bit_for_bit():
    model, bare = put(dit()), dit()
    assert same(run(model), run(bare))
    assert saved(model) == (STEPS - 1) * (ASKED - 1)  # the first call shows what is the same
    for seed in (7, 8):
        assert same(run(model, seed), run(bare, seed))
        assert saved(model) == STEPS * (ASKED - 1)


@pytest.mark.parametrize("cfg", ["none", "batched", "separate"])
def test_other_shapes_are_looked_at_anew(cfg):
    model, bare = put(dit()), dit()
    for size in (2, 3, 2):
        assert sample("dit", model, 6, size=size, cfg=cfg).equals(sample("dit", bare, 6, size=size, cfg=cfg))
        assert all(segment.exact_calls for segment in model.diffcache.stats().segments)


def test_generations_of_two_shapes_may_take_turns():
    kind, runs = counted()
    model, bare = put(dit(kind)), dit()
    for _ in range(2):
        assert sample("dit", model, 4, size=2, cfg="none").equals(sample("dit", bare, 4, size=2, cfg="none"))
        assert sample("dit", model, 4, size=3, cfg="batched").equals(sample("dit", bare, 4, size=3, cfg="batched"))
    assert len(runs) == 4 * 4 + 2 * (ASKED - 1)  # each shape is looked at once


def test_each_run_that_is_left_out_is_one_that_the_model_does_not_make():
    kind, runs = counted()
    model = put(dit(kind))
    run(model)
    assert len(runs) == STEPS * ASKED - saved(model) == ASKED + STEPS - 1


@pytest.mark.parametrize(
    ("method", "settings", "has"), [("none", {}, False), ("fora", {}, True), ("fora", dict(exact=False), False)]
)
def test_every_method_has_it_and_the_control_has_not(method, settings, has):
    model = put(dit(), method, **settings)
    run(model)
    assert bool(saved(model)) is has


def test_predictions_are_the_same_with_and_without():
    with_it, without = put(dit(), "fbcache", threshold=0.7), put(dit(), "fbcache", threshold=0.7, exact=False)
    for seed in (0, 5):
        assert same(run(with_it, seed, 8), run(without, seed, 8))
        assert "c" in with_it.diffcache.stats().segments[0].decisions
    assert saved(with_it)
    assert not saved(without)


def test_a_predicted_step_that_runs_one_of_them_tells_nothing():
    model, without = (put(dit(), "interval:interval=2,warmup=0,site=body", exact=exact) for exact in (True, False))
    run(model, steps=9)  # the first call is watched for what holds for a trajectory, the second one is predicted
    assert saved(model)
    assert same(run(model, 3, 9), run(without, 3, 9))


def test_stats_say_so_without_numbers_that_are_nothing():
    model = put(dit())
    run(model)
    text = str(model.diffcache.stats())
    assert f"{saved(model)} module calls from memory, bit-exact" in text
    assert "GFLOP" not in text


def test_no_host_read_is_added():
    model, reads = put(dit()), Reads()
    with called(reads):  # whoever watches what is dispatched would see every run
        run(model)
        run(model)
    assert saved(model)
    assert reads.count == 0


def test_nothing_is_held_between_calls():
    model = put(dit())
    ((_, hook),) = model.diffcache.hooks.values()

    def look(step):
        assert all(group.first is None for group in hook.repeats._groups)

    run(model, between=look)
    assert hook.repeats._groups


# -- what is in doubt --------------------------------------------------------------------------------------------------


class Random(Timesteps):
    def forward(self, timesteps):
        return super().forward(timesteps) + torch.rand(256)


class Counting(Timesteps):
    calls = 0

    def forward(self, timesteps):
        self.calls += 1
        return super().forward(timesteps) * self.calls


class Remembering(Timesteps):
    seen = []

    def forward(self, timesteps):
        Remembering.seen.append(0)
        return super().forward(timesteps) * len(Remembering.seen)


class Writing(Timesteps):
    def forward(self, timesteps):
        result = super().forward(timesteps)
        timesteps.copy_(timesteps + 1)
        return result


class Reading(Timesteps):
    def forward(self, timesteps):
        return super().forward(timesteps) * (1.0 if float(timesteps[0]) > 500 else 2.0)


class Uninitialised(Timesteps):
    def forward(self, timesteps):
        return torch.empty(len(timesteps), 256).copy_(super().forward(timesteps))


class Handed(Timesteps):
    """Returns what it was given before."""

    def forward(self, timesteps):
        self.kept = getattr(self, "kept", None)
        self.kept = super().forward(timesteps) if self.kept is None else self.kept
        return self.kept


class Short(Timesteps):
    def forward(self, timesteps):
        return timesteps[:, None].expand(-1, 256).float()


class Holding(Timesteps):
    def __init__(self, *args):
        super().__init__(*args)
        self.table = [1.0]

    def forward(self, timesteps):
        return super().forward(timesteps) * self.table[0]


ODD = [Random, Counting, Remembering, Writing, Reading, Uninitialised, Handed, Short, Holding]


@pytest.mark.parametrize("kind", ODD)
def test_a_module_that_is_no_function_of_its_argument_alone_always_runs(kind):
    def once(model):
        Remembering.seen.clear()
        label, outputs = torch.tensor([1, 2]), []
        with torch.random.fork_rng(devices=[]), torch.no_grad(), denoising(model, STEPS):
            torch.manual_seed(0)
            for step in range(STEPS):
                time = torch.tensor([999 - 100 * step] * 2)
                outputs.append(model(normal(2, 4, 8, 8, seed=step), time, label).sample)
        return outputs

    model = put(dit(kind))
    assert same(once(model), once(dit(kind)))
    assert not saved(model)
    ((_, hook),) = model.diffcache.hooks.values()
    assert not hook.repeats._groups
    assert not any("_diffusers_hook" in vars(module) for module in sinusoids(model))


def test_modules_that_differ_are_no_twins():
    model, bare = dit(), dit()
    for each in (model, bare):
        sinusoids(each)[1].scale = 2
    put(model)
    assert same(run(model), run(bare))
    assert not saved(model)


def test_one_that_is_changed_is_found_when_the_next_generation_begins():
    model, bare = put(dit()), dit()
    assert same(run(model), run(bare))
    for each in (model, bare):
        sinusoids(each)[1].scale = 2
    assert same(run(model), run(bare))
    assert not saved(model)


def test_one_that_is_replaced_runs():
    model, bare = put(dit()), dit()

    def replace(each):
        def between(step):
            if step == 3:
                each.transformer_blocks[1].norm1.emb.time_proj = Timesteps(256, True, 1, scale=2)

        return between

    assert same(run(model, between=replace(model)), run(bare, between=replace(bare)))


def test_what_the_model_writes_to_is_its_own():
    def build():
        model = dit()
        for block in model.transformer_blocks:
            block.norm1.emb.timestep_embedder.register_forward_pre_hook(lambda module, args: (args[0].mul_(1.5),))
        return model

    model = put(build())
    assert same(run(model), run(build()))


def test_hooks_of_others_see_every_call():
    def count(model):
        seen = []
        for module in sinusoids(model):
            module.register_forward_hook(lambda module, args, result: seen.append(0))
        outputs = run(model)
        return outputs, len(seen)

    (a, seen), (b, wanted) = count(put(dit())), count(dit())
    assert same(a, b)
    assert seen == wanted


@pytest.mark.parametrize("how", ["inference", "autocast"])
def test_where_torch_counts_no_writes_and_under_autocast_everything_runs(how):
    model, bare = put(dit()), dit()
    context = torch.inference_mode if how == "inference" else lambda: torch.autocast("cpu", torch.bfloat16)
    with context():
        assert same(run(model), run(bare))
    assert not saved(model)
    assert same(run(model), run(bare))


def test_gradients_flow_as_ever():
    def gradient(model):
        x = normal(2, 4, 8, 8, seed=0).requires_grad_()
        time = torch.tensor([900.0, 900.0], requires_grad=True)
        with denoising(model, 2):
            model(x, time, torch.tensor([1, 2])).sample.sum().backward()
        return x.grad, time.grad

    for ours, theirs in zip(gradient(put(dit())), gradient(dit()), strict=True):
        assert torch.equal(ours, theirs)


def test_whoever_watches_operations_sees_them_all():
    from torch.utils.flop_counter import FlopCounterMode

    model = put(dit())
    run(model)
    before = saved(model)
    with FlopCounterMode(display=False):
        run(model)
    assert before
    assert not saved(model)


def test_a_model_that_is_compiled_is_let_alone():
    model = put(dit())
    run(model)
    repeats = next(iter(model.diffcache.hooks.values()))[1].repeats
    assert repeats._groups
    model.transformer_blocks[0].compile(backend="eager")
    try:
        run(model)
        assert not repeats._groups
    finally:
        torch.compiler.reset()


# -- lifetime ----------------------------------------------------------------------------------------------------------


def test_an_exception_inside_leaves_the_next_generation_clean():
    model, calls = put(dit()), []

    def fail(module, args):
        calls.append(0)
        if len(calls) == 3:
            raise RuntimeError("out of memory")

    handle = model.transformer_blocks[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(model)
    handle.remove()
    assert same(run(model, 3), run(dit(), 3))
    assert saved(model)


def test_restore_and_a_copy_leave_nothing():
    model = dit()
    before = attributes(model)
    put(model)
    run(model)
    twin = copy.deepcopy(model)
    restore(model)
    assert attributes(model) == before
    assert forward_hooks(model) == 0
    assert same(run(twin), run(dit()))
    assert saved(twin)


def test_a_module_that_two_hooks_of_ours_leave_is_bare_whichever_goes_first():
    for first, second in (("repeat", "exact"), ("exact", "repeat")):
        module = Timesteps(8, True, 1)
        before = set(vars(module))
        for name in ("repeat", "exact"):
            attach(module, Passing(), name=f"{HOOK_NAME}_{name}")
        for name in (first, second):
            assert torch.equal(module(torch.ones(1)), Timesteps(8, True, 1)(torch.ones(1)))
            detach(module, f"{HOOK_NAME}_{name}")
        assert set(vars(module)) == before


class Passing(ModelHook):
    def new_forward(self, module, *args, **kwargs):
        return self.fn_ref.original_forward(*args, **kwargs)


def test_a_group_of_one_is_none():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = Timesteps(8, True, 1), Timesteps(4, True, 1)

    repeats = Repeats(Plain())
    repeats.look()
    assert not repeats._groups
