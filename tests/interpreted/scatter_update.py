"""S and F in the interpreter: the cache gets bits, the stream one rounding, and F is G after S."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from diffcache.kernels import inverse
from diffcache.kernels.dispatch import interpreted
from diffcache.kernels.gather_norm import _gather_norm
from diffcache.kernels.scatter_gather_norm import _scatter_gather_norm
from diffcache.kernels.scatter_update import _scatter_update

from .common import DTYPES, both, chosen, randn, rounded, ulp

SIZES = [(19, 7, 72), (8, 8, 64), (9, 1, 1152), (6, 0, 16), (5, 3, 1)]


def setup(dtype, n, k, d, gate="sample", ranked=False, shared=False):
    index = chosen(1 if shared else 2, n, n if ranked else k)
    rows = {"sample": 1, "token": n, None: 0}[gate]
    gates = randn(2, rows, d, dtype=dtype, seed=3) if gate else None
    x, cache = randn(2, n, d, dtype=dtype), randn(2, n, d, dtype=dtype, seed=2)
    return x, randn(2, k, d, dtype=dtype, seed=1), cache, index, None, gates, ranked


@pytest.mark.parametrize("ranked", [False, True], ids=["dense", "ranked"])
@pytest.mark.parametrize(("n", "k", "d"), SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_reference_bit_for_bit(dtype, n, k, d, ranked):
    args = setup(dtype, n, k, d, "token" if n == 19 else "sample", ranked, shared=n == 8)
    _, fresh, cache, index, *_ = args
    wide, guarded = both(_scatter_update, *args)
    want = cache.clone()
    for b in range(2):
        want[b, index[b % len(index), :k]] = fresh[b]
    assert torch.equal(guarded[2].view, want)  # bits, and no other row
    assert torch.equal(guarded[0].view, rounded(wide[0], dtype))
    assert torch.equal(guarded[1].view, fresh)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_the_order_of_eager_operators(dtype):
    """Half an ulp of the product, half one of the sum, and one for the interpreter's truncating store."""
    x, fresh, cache, index, _, gate, _ = args = setup(dtype, 11, 11, 72)
    _, guarded = both(_scatter_update, *args)
    after = cache.scatter(1, index[..., None].expand_as(fresh), fresh)
    product = gate * after
    eager = x + product
    bound = 0.5 * ulp(product, dtype) + 1.5 * ulp(eager, dtype)
    assert ((guarded[0].view.float() - eager.float()).abs() <= bound).all()


def test_no_gate_no_index_and_a_given_inverse():
    x, fresh, cache, index, *_ = setup(torch.float32, 9, 4, 24)
    wide, guarded = both(_scatter_update, x, fresh, cache, index, inverse(index, 9), None, False)
    assert torch.equal(guarded[0].view, wide[0])
    full = randn(2, 9, 24, seed=9)
    wide, guarded = both(_scatter_update, x, full, cache, None, None, None, False)
    assert torch.equal(guarded[0].view, x + full)
    assert torch.equal(guarded[2].view, full)


def test_the_order_of_the_rows_does_not_matter():
    x, fresh, cache, index, _, gate, _ = args = setup(torch.bfloat16, 19, 7, 24)
    order = torch.randperm(7)
    _, straight = both(_scatter_update, *args)
    _, shuffled = both(_scatter_update, x, fresh[:, order], cache, index[:, order], None, gate, False)
    assert torch.equal(straight[0].view, shuffled[0].view)
    assert torch.equal(straight[2].view, shuffled[2].view)


@pytest.mark.parametrize("ranked", [False, True], ids=["dense", "ranked"])
@pytest.mark.parametrize(
    ("dtype", "n", "k", "following", "d"),
    [
        *((dtype, 6, 3, 4, 72) for dtype in DTYPES),
        *((torch.bfloat16, *size) for size in ((11, 7, 5, 24), (8, 8, 8, 64), (5, 1, 1, 1152), (6, 2, 0, 8))),
    ],
    ids=str,
)
def test_one_pass_is_two(dtype, n, k, following, d, ranked):
    """F equals G after S, both in Triton: stream and cache to the bit, rows to the bit as well."""
    args = setup(dtype, n, k, d, ranked=ranked)
    after = None if ranked else chosen(2, n, following, torch.int32, seed=5)
    scale, shift = randn(2, 1, d, dtype=dtype, seed=6), randn(2, n, d, dtype=dtype, seed=7)
    out = torch.zeros(2, following, d, dtype=dtype)
    _, one = both(_scatter_gather_norm, *args, after, None, None, None, scale, shift, out, 1e-6, False)
    _, two = both(_scatter_update, *args)
    assert torch.equal(one[0].view, two[0].view)
    assert torch.equal(one[2].view, two[2].view)
    if following:
        rows, shifts = (two[0].view, shift) if after is not None else (two[0].view[:, :following], shift[:, :following])
        _, then = both(_gather_norm, rows, after, None, None, scale, shifts, out, 1e-6, False)
        assert torch.equal(one[13].view, then[6].view)


def test_operators():
    args = setup(torch.float32, 6, 2, 8)
    norm = (None, None, randn(2, 1, 8), None, torch.zeros(2, 3, 8), 1e-6, True)
    with interpreted():
        opcheck(torch.ops.diffcache.scatter_update.default, args)
        opcheck(torch.ops.diffcache.scatter_gather_norm.default, (*args, chosen(2, 6, 3), None, *norm))
