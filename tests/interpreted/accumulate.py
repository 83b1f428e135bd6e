"""A in the interpreter: what several modules left in their caches, in one pass and with one rounding."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from diffcache.kernels.accumulate import MOST, _accumulate
from diffcache.kernels.dispatch import interpreted

from .common import DTYPES, Guarded, both, chosen, randn, rounded


def setup(dtype, n, m, d, count, back):
    """Rows of the first ``m`` tokens of a ranking; every second gate is another one for each row."""
    index = chosen(1 if n == 8 else 2, n, n, torch.int32)[:, :m]
    caches = [randn(2, n, d, dtype=dtype, seed=i) for i in range(count)]
    gates = [randn(2, m if i % 2 else 1, d, dtype=dtype, seed=20 + i) for i in range(count)]
    return randn(2, m, d, dtype=dtype, seed=50), caches, gates, index, randn(2, n, d, dtype=dtype) if back else None


@pytest.mark.parametrize("back", [False, True], ids=["in place", "into"])
@pytest.mark.parametrize(("n", "m", "d", "count"), [(19, 12, 72, 3), (8, 8, 64, MOST), (9, 1, 1152, 1), (5, 3, 1, 2)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_reference_bit_for_bit(dtype, n, m, d, count, back):
    x, caches, *_ = args = setup(dtype, n, m, d, count, back)
    wide, guarded = both(_accumulate, *args)
    written = 4 if back else 0
    assert torch.equal(guarded[written].view, rounded(wide[written], dtype))
    assert not back or torch.equal(guarded[0].view, x)
    assert all(torch.equal(g.view, cache) for g, cache in zip(guarded[1], caches, strict=True))


def test_of_no_module_rows_go_to_their_tokens():
    x, *_, index, into = setup(torch.bfloat16, 19, 12, 24, 0, True)
    x, into = Guarded(x), Guarded(into)
    want = into.view.clone()
    for b in range(2):
        want[b, index[b]] = x.view[b]
    with interpreted():
        _accumulate.op(x.view, [], [], index, into.view)
    assert torch.equal(into.view, want)
    assert into.intact()


def test_the_order_of_the_rows_does_not_matter():
    x, caches, gates, index, into = setup(torch.bfloat16, 19, 12, 24, 1, True)
    order = torch.randperm(12)
    _, straight = both(_accumulate, x, caches, gates, index, into)
    _, shuffled = both(_accumulate, x[:, order], caches, gates, index[:, order], into)
    assert torch.equal(straight[4].view, shuffled[4].view)


def test_operators():
    with interpreted():
        opcheck(torch.ops.diffcache.accumulate.default, setup(torch.float32, 6, 4, 8, 2, True))
        opcheck(torch.ops.diffcache.accumulate.default, setup(torch.float32, 6, 4, 8, 2, False))
