"""A call is told at a glance only where the slow way would say that nothing has changed."""

import pytest
import torch

from diffcache.hooks.anatomy import Anatomy
from diffcache.hooks.conditioning import Conditioning
from diffcache.hooks.familiar import Likeness

ANATOMY = Anatomy(
    model_class="Some",
    parameters=("hidden_states", "timestep", "encoder_hidden_states", "ids", "mode", "scale", "return_dict"),
    sample="hidden_states",
    timestep="timestep",
    conditioning=("encoder_hidden_states",),
    block_lists=("blocks",),
    num_blocks=1,
    patch=(),
    channels=None,
)


def first_call(**changed):
    call = dict(
        hidden_states=torch.zeros(2, 4),
        timestep=torch.ones(2),
        encoder_hidden_states=torch.arange(4.0),
        ids=torch.zeros(3),
        mode="read",
        scale=0.5,
        return_dict=False,
    )
    return call | changed


def slow(before, now):
    same = Conditioning(ANATOMY.identity(before)).same_objects(Conditioning(ANATOMY.identity(now)))
    return same and ANATOMY.signature(before) == ANATOMY.signature(now)


CHANGES = {
    "another sample": (lambda c: c | {"hidden_states": torch.ones(2, 4)}, True),
    "another time": (lambda c: c | {"timestep": torch.zeros(2)}, True),
    "another scale": (lambda c: c | {"scale": 0.7}, True),
    "a view of the conditioning": (lambda c: c | {"encoder_hidden_states": c["encoder_hidden_states"].view(4)}, True),
    "a copy of the conditioning": (lambda c: c | {"encoder_hidden_states": torch.arange(4.0)}, False),
    "no conditioning": (lambda c: c | {"encoder_hidden_states": None}, False),
    "another shape": (lambda c: c | {"hidden_states": torch.zeros(2, 5)}, False),
    "another dtype": (lambda c: c | {"hidden_states": torch.zeros(2, 4).double()}, False),
    "ids of another shape": (lambda c: c | {"ids": torch.zeros(4)}, False),
    "another device": (lambda c: c | {"ids": torch.zeros(3, device="meta")}, False),
    "another word": (lambda c: c | {"mode": "write"}, False),
    "a flag in place of a word": (lambda c: c | {"mode": True}, False),
    "another kind of result": (lambda c: c | {"return_dict": True}, False),
    "one argument more": (lambda c: c | {"masks": [torch.zeros(1)]}, False),
    "one argument less": (lambda c: {n: v for n, v in c.items() if n != "ids"}, False),
}


@pytest.mark.parametrize(("change", "same"), CHANGES.values(), ids=CHANGES)
def test_a_glance_agrees_with_the_slow_way(change, same):
    before = first_call()
    like = Likeness.of(ANATOMY, before, 0)
    now = change(before)
    assert like.fits(before, 0)
    assert like.fits(now, 0) == same == slow(before, now)


def test_conditioning_that_was_written_to_is_another_one():
    call = first_call()
    like = Likeness.of(ANATOMY, call, 0)
    call["encoder_hidden_states"].add_(1.0)
    assert not like.fits(call, 0)


def test_arguments_by_position_are_another_form():
    call = first_call()
    assert not Likeness.of(ANATOMY, call, 0).fits(call, 1)


def test_containers_are_never_told_at_a_glance():
    assert Likeness.of(ANATOMY, first_call(encoder_hidden_states=[torch.zeros(2)]), 0) is None
    assert not Likeness.of(ANATOMY, first_call(), 0).fits(first_call(encoder_hidden_states=[torch.zeros(2)]), 0)
