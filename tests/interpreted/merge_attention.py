"""M in the interpreter: two parts are the whole, and an empty one is not there."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from diffcache.kernels.dispatch import interpreted
from diffcache.kernels.merge_attention import _merge_attention

from .common import DTYPES, Guarded, both, close, randn

SLACK = 2e-6


def parts(dtype, shape=(2, 3, 7, 24)):
    a, b = (randn(*shape, dtype=dtype, seed=s) for s in range(2))
    lse_a, lse_b = (5 * randn(*shape[:-1], seed=s) for s in (2, 3))
    return a, lse_a, b, lse_b, torch.zeros(shape, dtype=dtype), torch.zeros(shape[:-1])


@pytest.mark.parametrize("shape", [(2, 3, 7, 24), (1, 2, 37, 128), (1, 1, 1, 1), (2, 1, 5, 3)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_reference(dtype, shape):
    wide, guarded = both(_merge_attention, *parts(dtype, shape))
    assert close(guarded[4].view, wide[4], SLACK)
    assert close(guarded[5].view, wide[5], SLACK)


def test_empty_parts():
    args = parts(torch.float32)
    a, lse_a, b, lse_b, *_ = args
    lse_a[0, 0], a[0, 0] = -torch.inf, torch.nan  # its values may be anything
    lse_b[0, 1], b[0, 1] = -torch.inf, torch.inf
    lse_a[1, 2] = lse_b[1, 2] = -torch.inf
    wide, guarded = both(_merge_attention, *args)
    out, lse = guarded[4].view, guarded[5].view
    assert close(out, wide[4], SLACK)
    assert torch.equal(out[0, 0], b[0, 0])
    assert torch.equal(out[0, 1], a[0, 1])
    assert not out[1, 2].any()
    assert (lse[1, 2] == -torch.inf).all()
    assert torch.equal(lse[0, 0], lse_b[0, 0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_place(dtype):
    a, lse_a, b, lse_b, out, lse_out = parts(dtype)
    wide, _ = both(_merge_attention, a, lse_a, b, lse_b, out, lse_out)
    first, sums = Guarded(a), Guarded(lse_a)
    with interpreted():
        _merge_attention.run(first.view, sums.view, b, lse_b, first.view, sums.view)
    assert close(first.view, wide[4], SLACK)
    assert close(sums.view, wide[5], SLACK)
    assert first.intact()
    assert sums.intact()


def test_huge_sums_do_not_overflow():
    a, lse_a, b, lse_b, out, lse_out = parts(torch.float32)
    wide, guarded = both(_merge_attention, a, lse_a + 1e4, b, lse_b + 1e4, out, lse_out)
    assert close(guarded[4].view, wide[4], SLACK)
    assert guarded[4].view.isfinite().all()


def test_operator():
    with interpreted():
        opcheck(torch.ops.diffcache.merge_attention.default, parts(torch.float32, (1, 2, 3, 8)))
