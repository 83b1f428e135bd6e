"""The laws on a tiny model of every transformer denoiser that diffusers exports, at every site, for every signal."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from diffcache import accelerate_model, denoising, restore
from diffcache.hooks.anatomy import find_block_lists
from diffcache.hooks.passes import Replaying

from .denoisers import DENOISERS
from .denoisers.base import TEXT
from .denoisers.conformance import outcome
from .denoisers.running import (
    LISTENING,
    METHODS,
    SAME_CACHES,
    SAME_HOOKS,
    STEPS,
    bare,
    equal,
    fresh,
    letters,
    method_on,
    model_of,
    run,
    run_constant,
)
from .models import normal
from .reads import Reads, ignore_inside, watched
from .states import attributes, forward_hooks

# trajectories of one or two steps, and steps that must be computed
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*nothing was skipped"),
    pytest.mark.filterwarnings("ignore:flex_attention called without"),
]

classes = pytest.mark.parametrize("name", DENOISERS)
sites = pytest.mark.parametrize("site", METHODS)


def _one_of_each(alike):
    """Every site; those that are like another one with the slow tests."""
    return pytest.mark.parametrize(
        "site", [pytest.param(site, marks=pytest.mark.slow if site in alike else ()) for site in METHODS]
    )


#: what concerns hooks and lifetimes alone
hooks = _one_of_each(SAME_HOOKS)
#: what concerns what is kept, and what is read of it
caches = _one_of_each(SAME_CACHES)


@pytest.fixture(autouse=True)
def _accepted(request):
    """A class that refuses a site is named in docs/support.md; there is nothing to check then."""
    parameters = getattr(request.node, "callspec", None)
    if parameters is not None and {"name", "site"} <= set(parameters.params):
        reason = outcome(parameters.params["name"], parameters.params["site"]).refusal
        if reason is not None:
            pytest.skip(reason)


@sites
@classes
def test_law_1_never_skipping_is_bit_identical(name, site):
    assert outcome(name, site).exact


@hooks
@classes
def test_law_2_restore_leaves_nothing(name, site):
    wanted, model = bare(name), model_of(name)
    before = attributes(model)
    with method_on(name, site):
        run(name)
        assert METHODS[site].letter in letters(model)
        restore(model)
        assert attributes(model) == before
        assert forward_hooks(model) == 0
    assert equal(run(name), wanted)


@hooks
@classes
def test_law_3_no_state_crosses_trajectories_or_shapes(name, site):
    outputs, decided = fresh(name, site)
    with method_on(name, site) as model:
        run(name, seed=1, size=2)
        assert equal(run(name), outputs)
        assert letters(model) == decided


@hooks
@classes
def test_law_3_a_new_shape_in_mid_trajectory_recomputes(name, site):
    wider, due = DENOISERS[name].trajectory(0, 2), fresh(name, site)[1].index(METHODS[site].letter)

    def widened(step, arguments):
        return wider(1.0 - step / STEPS) if step >= due else arguments

    with method_on(name, site) as model:
        outputs = run(name, before=widened)
        decided = {segment.decisions[due] for segment in model.diffcache.stats().segments}
    assert decided <= {"F", "-"}  # other conditioning, or sizes among the arguments: another branch
    assert equal(outputs[due : due + 1], bare(name, 0, 2)[due : due + 1])


@caches
@classes
def test_law_4_the_host_reads_once_for_a_computed_step_and_never_for_a_predicted_one(name, site):
    reads, per_step = Reads(), []
    model = ignore_inside(model_of(name), reads)

    def note(step, arguments):
        per_step.append(reads.count)
        return arguments

    try:
        with method_on(name, site):
            run(name, steps=1)  # a model's first step proves its body, with a read of its own
            with watched(reads):
                run(name, before=note)
            decided = letters(model)
    finally:
        del model.forward
    counts = [b - a for a, b in zip(per_step, [*per_step[1:], reads.count], strict=True)]
    assert METHODS[site].letter in decided
    listens = METHODS[site].listens  # then a step is decided by what is read
    for letter, count in zip(decided, counts, strict=True):
        assert count <= (letter in "Fp" or listens), (decided, counts, reads.names)


@caches
@classes
def test_law_5_no_prediction_comes_from_what_is_not_finite(name, site):
    clean, decided = fresh(name, site)
    due = decided.index(METHODS[site].letter)

    def poisoned(step, arguments):
        return {**arguments, **_broken(name, arguments)} if step == due - 1 else arguments

    with method_on(name, site) as model:
        run(name, steps=1)
        outputs = run(name, before=poisoned)
        assert not all(part.isfinite().all() for part in outputs[due - 1])
        assert letters(model)[due] == "F"
        assert equal(outputs[due : due + 1], bare(name)[due : due + 1])
        assert all(part.isfinite().all() for output in outputs[due:] for part in output)
        assert equal(run(name), clean)


def _broken(name, arguments):
    """The noisy inputs with a value that is not finite."""

    def spoil(value):
        if isinstance(value, (list, tuple)):
            return type(value)(spoil(part) for part in value)
        value = value.clone()
        value.view(-1)[0] = math.nan
        return value

    return {key: spoil(arguments[key]) for key in DENOISERS[name].noisy(0, 1)}


class Stop(Exception):
    pass


@hooks
@classes
def test_law_5_an_exception_leaves_the_next_generation_clean(name, site):
    def fail(*_):
        raise Stop

    def breaking(step, arguments):
        if step == STEPS - 1:  # which is computed
            handles.extend(b.register_forward_pre_hook(fail) for bs in find_block_lists(model).values() for b in bs)
        return arguments

    handles, (clean, _) = [], fresh(name, site)
    with method_on(name, site) as model:
        with pytest.raises(Stop):
            run(name, seed=1, before=breaking)
        for handle in handles:
            handle.remove()
        assert equal(run(name), clean)


@sites
@classes
def test_law_6_constant_input_reproduces_the_dense_output(name, site):
    found = outcome(name, site)
    assert found.skipped
    assert found.deviation <= found.within


#: a limit that only what stands still keeps
SMALLEST = 1e-9


@pytest.mark.parametrize("site", LISTENING)
@classes
def test_a_signal_is_heard_from_what_moves(name, site):
    """At the smallest threshold a moving sample is computed at every step, and one that stands still is reused."""
    with method_on(name, site, threshold=SMALLEST) as model:
        run(name)
        assert letters(model) == "F" * STEPS
        run_constant(name, METHODS[site].still)
        assert letters(model) == "FFccF"


#: what of the blocks runs on tokens where every attention and feed-forward is predicted
LEFT = {
    "HunyuanDiT2DModel": "projections of skip connections",
    "LuminaNextDiT2DModel": "the projection of both attentions' sum",
    "WanVACETransformer3DModel": "projections of the control branch",
    "RFD4ProteinaTransformer": "norms and gates of each residue",
}


@classes
def test_site_module_leaves_nothing_of_the_blocks_to_run(name):
    assert bool(outcome(name, "module").running) == (name in LEFT), outcome(name, "module").running


#: what a block adds whatever its weights are
CONSTANT = {
    "CosmosTransformer3DModel": "positions, in every block",
    "HunyuanDiT2DModel": "a skipped block's features, in place of the stream",
    "WanVACETransformer3DModel": "the stream to the control branch, in the first block",
}


@pytest.mark.parametrize(
    ("name", "site"), [(n, s) for n in DENOISERS for s in ("block", "module") if s == "module" or n not in CONSTANT]
)
def test_what_a_part_without_weights_adds_is_nothing(name, site):
    """So what is stored is what the part adds: no stream, no residual connection, no gate is in it."""
    _check_nothing(name, site, DENOISERS[name].trajectory())


def _check_nothing(name, site, arguments):
    way = METHODS[site]
    model = accelerate_model(_without_weights(name), way.method, **way.settings)
    ((_, hook),) = model.diffcache.hooks.values()
    with torch.no_grad(), denoising(model, STEPS):
        for level in (1.0, 0.8):  # the first step shows which results are which streams
            model(**arguments(level))
        (branch,) = hook.segment.branches.values()
        assert branch.cache.slots
        assert not any(value.any() for value in branch.cache.held())


def _without_weights(name):
    """The class's tiny model, with blocks that add nothing."""
    model = DENOISERS[name].tiny()
    with torch.no_grad():
        for blocks in find_block_lists(model).values():
            for parameter in blocks.parameters():
                parameter.zero_()
    return model


#: what the model adds between or after its blocks, so that passing its input through them does not give the base
ADDS = {
    "ConsisIDTransformer3DModel": "face features",
    "LatteTransformer3DModel": "positions in time",
    "LongCatAudioDiTTransformer": "the embedding once more, after the blocks",
    "WanAnimateTransformer3DModel": "face features",
}


class Idle(Replaying):
    """A replay with nothing to add; notes how far the model's own value is from the base."""

    def __init__(self, plan, residuals):
        super().__init__(plan, residuals)
        self.distances = []

    def exit(self, index, value):
        if self._armed[index] and self._values is not None:
            self.distances.append(float((value - self._values[index]).abs().max()))
        return super().exit(index, value)


@pytest.mark.parametrize("name", [name for name in DENOISERS if name not in ADDS])
def test_the_base_of_the_body_is_what_stands_at_its_end_when_no_block_changes_anything(name):
    if outcome(name, "body").refusal is not None:
        pytest.skip("refused")
    _check_base(name, DENOISERS[name].trajectory()(0.5))


#: classes with as many text tokens as picture tokens
ALIKE = {
    "SD3Transformer2DModel": 8,
    "CogView3PlusTransformer2DModel": 8,
    "CogView4Transformer2DModel": 8,
    "QwenImageTransformer2DModel": 8,
    "EasyAnimateTransformer3DModel": 24,
    "JoyImageEditTransformer3DModel": 24,
}


def _alike(name):
    arguments = DENOISERS[name].trajectory()
    text = {"encoder_hidden_states": normal(1, ALIKE[name], TEXT, seed=1)}
    if "encoder_hidden_states_mask" in arguments(1.0):
        text["encoder_hidden_states_mask"] = torch.ones(1, ALIKE[name], dtype=torch.bool)
    return lambda level: {**arguments(level), **text}


@pytest.mark.parametrize("name", ALIKE)
def test_streams_of_one_shape_are_not_mistaken_for_each_other(name):
    _check_base(name, _alike(name)(0.5))
    _check_nothing(name, "block", _alike(name))


def _check_base(name, arguments):
    with method_on(name, "body") as model, torch.no_grad():
        ((_, hook),) = model.diffcache.hooks.values()
        body, forward = hook.site.body, partial(hook.fn_ref.original_forward, **arguments)
        _, residuals = body.compute(forward)
        if not body.plan.exits:
            return  # the last block's own results: its input and output are one stream
        idle = Idle(body.plan, [torch.zeros_like(residual) for residual in residuals])
        body._under(idle, forward)
    assert idle.distances
    assert max(idle.distances) == 0.0
