"""P in the interpreter: bias, norm and RoPE of q and k; K and V at their tokens and nowhere else."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch.library import opcheck

from diffcache.kernels import counting
from diffcache.kernels.dispatch import interpreted
from diffcache.kernels.project_epilogue import NORMS, _project_epilogue

from .common import DTYPES, both, chosen, close, randn

Q, K, V, Q_OUT, K_CACHE, V_CACHE = 0, 1, 2, 13, 14, 15
#: products of a norm, its affine part and two angles, summed in another order
SLACK = 1e-5


def setup(
    dtype, norm, across, interleaved, rope="d", heads=(3, 2), k=5, n=11, d=24, biases=True, shared=False, packed=False
):
    """Arguments of the operator: grouped queries, K cached among n tokens."""
    q, key, v = (randn(2, k, h, d, dtype=dtype, seed=s) for s, h in enumerate((heads[0], heads[1], heads[1])))
    index = chosen(1 if shared else 2, n, k)
    bias = [randn(h * d, dtype=dtype, seed=4) if biases else None for h in (heads[0], heads[1], heads[1])]
    weight = [randn(h * d if across else d, dtype=dtype, seed=5) if norm else None for h in heads]
    norm_bias = [randn(h * d if across else d, dtype=dtype, seed=6) if norm == "layer" else None for h in heads]
    angles = randn(1, k if packed else n, {"d": d, "d/2": d // 2, None: 1}[rope], seed=7)
    tables = [None, None] if rope is None else [angles.cos(), angles.sin()]
    caches = [randn(2, n, heads[1], d, dtype=dtype, seed=s) for s in (8, 9)]
    numbers = (1e-6, NORMS[norm], across, interleaved, packed)
    return (q, key, v, index, *bias, *weight, *norm_bias, *tables, torch.zeros_like(q), *caches, *numbers)


def expect(args):
    wide, guarded = both(_project_epilogue, *args)
    for place in (Q_OUT, K_CACHE, V_CACHE):
        if args[place] is not None:
            assert close(guarded[place].view, wide[place], SLACK), place
    return guarded


@pytest.mark.parametrize(
    ("dtype", "norm", "across", "interleaved"),
    [*product(DTYPES, [None, "rms", "layer"], [False], [True]), *product(DTYPES, ["rms", "layer"], [True], [False])],
    ids=str,
)
def test_equals_the_reference(dtype, norm, across, interleaved):
    expect(setup(dtype, norm, across, interleaved, rope="d/2" if across else "d"))


@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "pairs"])
@pytest.mark.parametrize("rope", ["d", "d/2", None])
def test_tables_and_layouts(rope, interleaved):
    expect(setup(torch.float32, "rms", False, interleaved, rope, shared=True))


@pytest.mark.parametrize("shared", [False, True])
def test_angles_of_the_rows_alone(shared):
    args = setup(torch.float32, "rms", False, True, shared=shared, packed=True)
    guarded, index = expect(args), args[3]
    wide = list(setup(torch.float32, "rms", False, True, shared=shared))
    for place in (11, 12):  # the same angles where the rows stand among all tokens
        table = torch.zeros(2, 11, 24)
        wide[place] = table.scatter(1, index.expand(2, -1)[..., None].expand(-1, -1, 24), args[place].expand(2, -1, -1))
    for place, other in enumerate(expect(wide)):
        assert place not in (Q_OUT, K_CACHE) or torch.equal(other.view, guarded[place].view)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_other_rows_and_values_keep_their_bits(dtype):
    args = setup(dtype, "rms", False, True, biases=False)
    guarded = expect(args)
    index, v = args[3], args[V]
    for place in (K_CACHE, V_CACHE):
        kept = torch.ones(2, 11, dtype=torch.bool).scatter(1, index, False)
        assert torch.equal(guarded[place].view[kept], args[place][kept])
    written = guarded[V_CACHE].view[torch.arange(2)[:, None], index]
    assert torch.equal(written, v)


@pytest.mark.parametrize("heads", [(1, 1), (5, 5), (40, 40)], ids=str)
def test_any_number_of_heads(heads):
    """Forty heads of 128 are three programs a row, or one where the norm spans them."""
    wide = heads[0] == 40
    for across in (False, True):
        expect(setup(torch.float32, "rms", across, True, heads=heads, k=1, n=2, d=128 if wide else 6))


def test_only_queries_only_keys_no_index():
    args = list(setup(torch.float32, "rms", False, True))
    queries = [None if place in (K, V, K_CACHE, V_CACHE) else a for place, a in enumerate(args)]
    expect(queries)
    keys = [None if place in (Q, Q_OUT) else a for place, a in enumerate(args)]
    expect(keys)
    first = [a[:, :5] if place in (11, 12, K_CACHE, V_CACHE) else a for place, a in enumerate(args)]
    first[3] = None
    expect(first)


def test_views_of_one_projection_and_of_a_cache_with_heads_first():
    q, k, v = randn(2, 5, 3, 2, 24).unbind(2)
    cached = [randn(2, 2, 11, 24, seed=s) for s in (1, 2)]
    args = list(setup(torch.float32, "rms", False, True, heads=(2, 2)))
    args[Q], args[K], args[V] = q, k, v
    args[K_CACHE], args[V_CACHE] = (c.transpose(1, 2) for c in cached)
    wide = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
    _project_epilogue.reference(*wide)
    with interpreted():
        _project_epilogue.op(*args)
    for place in (Q_OUT, K_CACHE, V_CACHE):
        assert close(args[place], wide[place], SLACK)


def test_a_norm_over_more_heads_than_a_program_holds_is_counted_and_right():
    args = setup(torch.float32, "rms", True, True, heads=(129, 129), k=1, n=1, d=128)
    copies = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
    _project_epilogue.reference(*copies)
    with interpreted(), counting() as fallbacks:
        _project_epilogue.op(*args)
    assert fallbacks == {("project_epilogue", "rows wider than 16384"): 1}
    assert torch.equal(args[Q_OUT], copies[Q_OUT])


def test_operator():
    with interpreted():
        opcheck(torch.ops.diffcache.project_epilogue.default, setup(torch.float32, "rms", False, True, k=2, n=3, d=8))
