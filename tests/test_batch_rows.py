"""Which arguments of a call carry the batch, taking samples out of them, and who decides for which sample."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from diffcache import accelerate_model
from diffcache.hooks.anatomy import inspect_denoiser
from diffcache.hooks.batch import Batches
from diffcache.hooks.jury import Jury
from diffcache.hooks.rows import ENTRIES, Rows, batch_axis, find_places
from diffcache.schedules import FirstBlock, TeaCache

from .batches import MOVING, Sample, collate, walk
from .denoisers import DENOISERS
from .denoisers.running import model_of
from .models import normal


def choices(value, size, likely=False, sure=False):
    return {place.path[1:]: place.choices for place in find_places(("a",), value, size, likely, sure)}


# -- proposals ---------------------------------------------------------------------------------------------------------


def test_a_tensor_that_is_as_long_as_the_batch_may_carry_it():
    assert choices(torch.zeros(3, 7), 3) == {(): (0, None)}
    assert choices(torch.zeros(3, 7), 3, likely=True) == {(): (0,)}
    assert choices(torch.zeros(3, 3, 7), 3, sure=True) == {(): (0,)}
    assert choices(torch.zeros(7, 3), 3) == choices(torch.tensor(1.0), 3) == choices(torch.zeros(1), 3) == {}


def test_features_of_several_layers_have_the_batch_behind():
    assert choices(torch.zeros(4, 3, 5, 8), 3, likely=True) == {(): (1, None)}
    assert choices(torch.zeros(4, 3, 5, 8), 3) == {(): (None, 1)}


def test_a_list_may_have_one_entry_a_sample():
    captions = [torch.zeros(n, 8) for n in (4, 5, 6)]
    assert choices(captions, 3) == {(): (ENTRIES, None)}
    assert choices([[(1, 2, 4)]] * 3, 3)[()] == (ENTRIES, None)
    assert choices([torch.zeros(3, 8)] * 3, 3)[()] == (None, ENTRIES)  # residuals of a ControlNet
    assert choices([torch.zeros(3, 8)] * 3, 3, sure=True)[()] == (ENTRIES,)
    cosine_and_sine = (torch.zeros(6, 8), torch.zeros(6, 8))
    assert choices(cosine_and_sine, 2) == {(): (None, ENTRIES)}


def test_what_is_held_in_a_dictionary_is_found():
    held = {"inner": {"image": torch.zeros(3, 8), "scale": 0.5}}
    assert choices(held, 3) == {("inner", "image"): (0, None)}


def test_an_axis_that_no_other_argument_has_is_no_batch():
    """Kandinsky takes one film of [frames, height, width, channels]: its frames are no samples."""
    name = "Kandinsky5Transformer3DModel"
    batches = Batches(inspect_denoiser(model_of(name)), outputs=False)
    lonely = dict(hidden_states=normal(3, 8, 8, 4, seed=0), timestep=torch.zeros(1))
    batch, _ = batches.of(partial(model_of(name), **lonely))
    assert batch.size == 1


# -- taking and putting ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 5), (8, 5, 2), (6, 4, 2)])
def test_rows_are_cut_and_put_back(shape):
    """Once a sample, several times in a row, or behind the tokens."""
    value, rows = normal(*shape, seed=1), Rows(4, [3, 1])
    part = rows.cut(value)
    axis = batch_axis(value, 4)
    assert part.shape[axis] * 4 == value.shape[axis] * 2
    assert torch.equal(part.unflatten(axis, (2, -1)).select(axis, 0), value.unflatten(axis, (4, -1)).select(axis, 3))
    target = torch.zeros_like(value)
    rows.put(target, part)
    others = Rows(4, [0, 2])
    assert torch.equal(rows.cut(target), part)
    assert not others.cut(target).any()


def test_results_are_merged_whatever_holds_them():
    rows, whole, part = Rows(3, [2]), torch.zeros(3, 2), torch.ones(1, 2)
    (merged,) = rows.merge((whole,), (part,))
    assert merged.tolist() == [[0, 0], [0, 0], [1, 1]]
    assert not whole.any()
    listed = rows.merge(([torch.zeros(2)] * 3, None), ([torch.ones(2)], None))[0]
    assert [bool(t.any()) for t in listed] == [False, False, True]


def test_what_does_not_fit_is_not_put():
    held = [torch.zeros(3, 5)]
    assert not Rows(3, [0]).replace(held, [torch.ones(1, 6)])
    assert not Rows(3, [0]).replace(held, [torch.ones(2, 5)])
    assert not Rows(3, [0]).replace(held, [])
    assert not held[0].any()
    assert Rows(3, [0]).replace(held, [torch.ones(1, 5)])
    assert held[0].sum() == 5


# -- the proof ---------------------------------------------------------------------------------------------------------


def test_a_table_that_is_as_long_as_the_batch_is_found_out():
    """Eight pictures of eight tokens: the position ids are no samples, and the proof tells."""
    name = "FluxTransformer2DModel"
    samples = [Sample(name, seed, MOVING if seed == 2 else ()) for seed in range(8)]
    call = collate([sample(0) for sample in samples])
    assert len(call["img_ids"]) == len(call["hidden_states"]) == 8
    model = accelerate_model(DENOISERS[name].tiny(), "fbcache", threshold=1e-3, warmup=2, cooldown=1)
    walk(model, [samples])
    (segment,) = model.diffcache.stats().segments
    assert segment.decisions == "FFcpcpccF", segment.together
    ((_, hook),) = model.diffcache.hooks.values()
    (cut,) = hook.site.batches.known.values()
    assert cut["img_ids",] is None
    assert cut["hidden_states",] == 0


def test_a_form_is_proved_once_whatever_the_size(monkeypatch):
    name = "WanTransformer3DModel"
    model = accelerate_model(DENOISERS[name].tiny(), "fbcache", threshold=1e-3, warmup=2, cooldown=1)
    ((_, hook),) = model.diffcache.hooks.values()
    shares = []
    for count in (2, 3, 5):
        walk(model, [[Sample(name, 0, MOVING), *(Sample(name, seed) for seed in range(1, count))]])
        (segment,) = model.diffcache.stats().segments
        shares.append(segment.block_share - 2 / (9 * count))  # two moves of one sample
    assert len(hook.site.batches.known) == 1
    assert shares[0] == pytest.approx(shares[1] + 1 / 9)  # the proof: one run of the whole batch
    assert shares[1] == pytest.approx(shares[2])


# -- who decides -------------------------------------------------------------------------------------------------------


def seated(schedule, size, folds, total=9):
    schedule.start(total)
    jury = Jury(schedule)
    jury.computed(0)
    jury.part(size, folds)
    return jury


def test_a_group_hears_the_worst_of_its_rows():
    jury = seated(FirstBlock(0.1, warmup=1), 6, 2)
    assert jury.rows([1]) == [1, 4]
    assert jury.hear(1, [[0.0], [0.0], [0.0], [0.0], [0.2], [0.0]]) == {1}
    assert jury.hear(1, [[0.0, 0.3], [0.0], [0.0], [0.0], [0.0], [math.nan]]) == {0, 2}
    jury.computed(1, {1})
    assert jury.letters(1) == "cFc"


def test_each_group_sums_for_itself():
    jury = seated(TeaCache(1.0), 2, 1)
    trace = []
    for step in range(1, 7):
        wanted = jury.hear(step, [[0.3], [0.6]])
        jury.computed(step, wanted)
        trace.append(jury.letters(step))
    # 0.3, 0.6, 0.9, 1.2 and 0.6, 1.2 | 0.6, 1.2
    assert trace == ["cc", "cF", "cc", "FF", "cc", "cF"]


def test_without_groups_the_worst_of_all_decides():
    schedule = FirstBlock(0.1, warmup=1)
    schedule.start(9)
    jury = Jury(schedule)
    jury.computed(0)
    assert jury.hear(1, [[0.0], [0.0], [0.2]]) == {0}
    assert jury.hear(1, [[0.0, 0.0], [0.05]]) == set()
    assert jury.schedules == [schedule]
