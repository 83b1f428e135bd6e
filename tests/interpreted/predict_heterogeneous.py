"""H in the interpreter: each token by its group, wherever the channels are."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from diffcache.kernels import counting
from diffcache.kernels.dispatch import interpreted
from diffcache.kernels.predict_heterogeneous import _predict_heterogeneous

from .common import DTYPES, both, close, randn

RULES = [[1.0, 0.0, 0.0], [1.75, -0.75, 0.0], [1.5, 0.25, -0.75]]
SLACK = 2e-6


def groups(shape, channel_dim, count=3):
    shape = list(shape)
    shape[channel_dim] = 1
    return torch.randint(count, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("shape", "channel_dim"),
    [((2, 37, 5), 2), ((2, 8, 64), 2), ((2, 5, 3, 4, 5), 1), ((1, 3, 7, 2, 3), 2), ((3, 1), 1)],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_reference(dtype, shape, channel_dim):
    values = [randn(*shape, dtype=dtype, seed=s) for s in range(3)]
    group, out = groups(shape, channel_dim), torch.zeros(shape, dtype=dtype)
    flat = [c for row in RULES for c in row]
    wide = [v.float() for v in values], group, torch.zeros(shape), flat, channel_dim
    _predict_heterogeneous.reference(*wide)
    with interpreted(), counting() as fallbacks:
        _predict_heterogeneous.op(values, group, out, flat, channel_dim)
    assert not fallbacks
    assert close(out, wide[2], SLACK)
    reused = (group == 0).expand(shape)
    assert torch.equal(out[reused], values[0][reused])  # reuse is a copy


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_values_and_groups_between_canaries(count):
    shape = (1, 9, 4)
    values, group = [randn(*shape, seed=s) for s in range(count)], groups(shape, 2, count)
    flat = [c for row in RULES[:count] for c in row[:count]]
    wide, guarded = both(_predict_heterogeneous, values, group, torch.zeros(shape), flat, 2)
    assert close(guarded[2].view, wide[2], SLACK)


def test_a_channel_range_is_a_view():
    whole = [randn(2, 8, 3, 5, seed=s) for s in range(3)]
    values, group, out = [w[:, 2:5] for w in whole], groups((2, 3, 3, 5), 1), torch.zeros(2, 8, 3, 5)
    flat, want = [c for row in RULES for c in row], torch.zeros(2, 3, 3, 5)
    _predict_heterogeneous.reference(values, group, want, flat, 1)
    with interpreted(), counting() as fallbacks:
        _predict_heterogeneous.op(values, group, out[:, 2:5], flat, 1)
    assert not fallbacks
    assert close(out[:, 2:5], want, SLACK)
    assert not out[:, :2].any()
    assert not out[:, 5:].any()


def test_a_token_does_not_read_what_its_group_does_not_need():
    values = [torch.ones(1, 4, 3), torch.full((1, 4, 3), torch.nan), torch.full((1, 4, 3), torch.inf)]
    out = torch.zeros(1, 4, 3)
    with interpreted():
        flat = [c for row in RULES for c in row]
        _predict_heterogeneous.op(values, torch.zeros(1, 4, 1, dtype=torch.uint8), out, flat, 2)
    assert torch.equal(out, values[0])


def test_what_it_does_not_take_is_counted_and_right():
    shape, flat = (2, 4, 6), [c for row in RULES for c in row]
    values = [randn(*shape, seed=s) for s in range(3)]
    group, out = groups(shape, 2), torch.zeros(shape)
    odd = [values[0], values[1].transpose(0, 1).contiguous().transpose(0, 1), values[2]]
    with interpreted(), counting() as fallbacks:
        _predict_heterogeneous.op(odd, group, out, flat, 2)
    assert fallbacks == {("predict_heterogeneous", "values of different strides or dtypes"): 1}
    want = torch.zeros(shape)
    _predict_heterogeneous.reference(values, group, want, flat, 2)
    assert torch.equal(out, want)


def test_operator():
    values = [randn(1, 3, 2, seed=s) for s in range(2)]
    with interpreted():
        arguments = (values, groups((1, 3, 2), 2, 2), torch.zeros(1, 3, 2), [1.0, 0.0, 2.0, -1.0], 2)
        opcheck(torch.ops.diffcache.predict_heterogeneous.default, arguments)
