"""G in the interpreter: packed rows are norm, scale and shift of the chosen ones, within the bounds."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from diffcache.kernels import counting
from diffcache.kernels.dispatch import interpreted
from diffcache.kernels.gather_norm import _gather_norm

from .common import DTYPES, both, chosen, close, randn


def slack(args):
    """1e-6 * (1 + |h (1 + s)| + |shift|)."""
    bare = list(args)
    bare[5], bare[6] = None, torch.zeros_like(args[6], dtype=torch.float32)
    _gather_norm.reference(*[a.float() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in bare])
    shift = 0.0 if args[5] is None else args[5].float().abs().max()
    return 1e-6 * (1.0 + bare[6].abs() + shift)


@pytest.mark.parametrize("rms", [False, True], ids=["layer", "rms"])
@pytest.mark.parametrize(("n", "k", "d"), [(37, 7, 72), (8, 8, 64), (9, 1, 1152), (5, 3, 1), (4, 2, 3)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_reference(dtype, n, k, d, rms):
    shared, each = k == 8, n == 37  # one index for all samples; modulation for each token
    index = chosen(1 if shared else 2, n, k, torch.int32 if shared else torch.int64)
    x, out = randn(2, n, d, dtype=dtype), torch.zeros(2, k, d, dtype=dtype)
    modulation = [randn(2, n if each else 1, d, dtype=dtype, seed=s) for s in (1, 2)]
    affine = [randn(d, seed=s) for s in (3, 4)] if shared else [None, None]
    args = (x, index, *affine, *modulation, out, 1e-6, rms)
    wide, guarded = both(_gather_norm, *args)
    assert close(guarded[6].view, wide[6], slack(args))
    assert torch.equal(guarded[0].view, x)  # inputs are not written


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_index_all_rows_in_order(dtype):
    x = randn(2, 6, 40, dtype=dtype)
    args = (x, None, None, None, None, None, torch.zeros_like(x), 1e-6, False)
    wide, guarded = both(_gather_norm, *args)
    assert close(guarded[6].view, wide[6], slack(args))


def test_a_shuffled_index_shuffles_the_rows():
    x, index, order = randn(1, 19, 24), chosen(1, 19, 7), torch.randperm(7)
    out = [torch.zeros(1, 7, 24) for _ in range(2)]
    _, straight = both(_gather_norm, x, index, None, None, None, None, out[0], 1e-6, False)
    _, shuffled = both(_gather_norm, x, index[:, order], None, None, None, None, out[1], 1e-6, False)
    assert torch.equal(straight[6].view[:, order], shuffled[6].view)


def test_mixed_dtypes_keep_the_rounding_of_the_output():
    x, scale = randn(1, 5, 16, dtype=torch.float16), randn(1, 1, 16)
    args = (x, None, None, None, scale, None, torch.zeros(1, 5, 16, dtype=torch.bfloat16), 1e-6, True)
    wide, guarded = both(_gather_norm, *args)
    assert close(guarded[6].view, wide[6], slack(args))


def test_operator():
    args = (randn(2, 5, 8), chosen(2, 5, 3), None, None, randn(2, 1, 8), None, torch.zeros(2, 3, 8), 1e-6, False)
    with interpreted():
        opcheck(torch.ops.diffcache.gather_norm.default, args)


def test_what_it_does_not_take_is_counted_and_right():
    x = torch.randn(1, 5, 16, dtype=torch.float64)
    columns = randn(1, 16, 5).transpose(1, 2)
    with interpreted(), counting() as fallbacks:
        for rows in (x, columns):
            out = torch.zeros(1, 5, 16)
            _gather_norm.op(rows, None, None, None, None, None, out, 1e-6, False)
            assert torch.equal(out, torch.nn.functional.layer_norm(rows.float(), (16,), eps=1e-6))
    assert fallbacks == {("gather_norm", "dtype float64"): 1, ("gather_norm", "features not contiguous"): 1}
