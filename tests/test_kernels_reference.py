"""The references, which are the CPU path: against their definitions in fp64, a dense block, and each other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.normalization import RMSNorm
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from diffcache import kernels
from diffcache.errors import ConfigError
from diffcache.kernels import few_rows
from diffcache.predictors.base import Horizon, weights
from diffcache.predictors.hermite import Heterogeneous, group_names
from diffcache.predictors.layout import TokenLayout
from diffcache.predictors.moments import measure

from .reads import Reads, watched

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
EPS = {torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    torch.compiler.reset()  # what was compiled for other devices and backends


class Operators(TorchDispatchMode):
    """Names of the operators called within."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def chosen(batch, size, count):
    return torch.stack([torch.randperm(size)[:count] for _ in range(batch)])


def rows(tensor, index):
    return torch.stack([t[i] for t, i in zip(tensor, index.expand(len(tensor), -1), strict=True)])


# -- G -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gather_norm_is_its_definition(dtype, kind):
    x, index = torch.randn(2, 13, 40).to(dtype), chosen(2, 13, 5)
    weight, bias = torch.randn(40), torch.randn(40)
    scale, shift = torch.randn(2, 40).to(dtype), torch.randn(2, 13, 40).to(dtype)
    y = kernels.gather_norm(x, index, weight, bias, scale, shift, 1e-5, kind)
    h = rows(x, index).double()
    h = h - h.mean(-1, keepdim=True) if kind == "layer" else h
    h = h * (h.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double() + bias.double()
    want = h * (1 + scale.double()[:, None]) + rows(shift, index).double()
    assert y.dtype == dtype
    bound = 4e-6 * (1 + h.abs()) + 0.5 * EPS[dtype] * want.abs()  # one rounding
    assert ((y.double() - want).abs() <= bound).all()


def test_gather_norm_of_all_rows_is_the_dense_head_to_the_bit():
    x, scale, shift = torch.randn(2, 17, 96), torch.randn(2, 1, 96), torch.randn(2, 1, 96)
    dense = F.layer_norm(x, (96,), None, None, 1e-6) * (1 + scale) + shift
    index = chosen(2, 17, 17)
    assert torch.equal(kernels.gather_norm(x, None, scale=scale, shift=shift), dense)
    assert torch.equal(kernels.gather_norm(x, index, scale=scale, shift=shift), rows(dense, index))
    shared = index[:1]
    assert torch.equal(kernels.gather_norm(x, shared[0].int(), scale=scale, shift=shift), rows(dense, shared))


# -- S and F -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(2, 33, 24), (1, 700, 1152)], ids=str)  # the second goes in chunks
def test_scatter_update_of_all_rows_is_the_dense_tail_to_the_bit(size):
    x, fresh, gate = torch.randn(size), torch.randn(size), torch.randn(size[0], 1, size[2])
    index = chosen(size[0], size[1], size[1])
    dense, cache = x + gate * fresh, torch.zeros(size)
    out = kernels.scatter_update(x, rows(fresh, index), cache, index, gate)
    assert out is x
    assert torch.equal(x, dense)
    assert torch.equal(cache, fresh)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", [0, 1, 5, 13])
def test_stale_rows_get_their_cached_value_under_the_current_gate(k, dtype):
    x, cache, fresh, index = (
        *(torch.randn(2, 13, 24).to(dtype) for _ in range(2)),
        torch.randn(2, k, 24).to(dtype),
        chosen(2, 13, k),
    )
    gate = torch.randn(2, 13, 24).to(dtype)
    want = cache.clone()
    for b in range(2):
        want[b, index[b]] = fresh[b]
    exact = x.double() + gate.double() * want.double()
    kernels.scatter_update(x, fresh, cache, index, gate)
    assert torch.equal(cache, want)
    product = (gate.double() * want.double()).abs()
    assert ((x.double() - exact).abs() <= 0.5 * EPS[dtype] * exact.abs() + 2.0**-23 * product).all()


def test_a_ranked_stream_is_the_dense_one_in_another_order():
    n, k, d = 29, 11, 16
    order = chosen(2, n, n)
    x, fresh, cache, gate = (
        torch.randn(2, n, d),
        torch.randn(2, k, d),
        torch.randn(2, n, d),
        torch.randn(2, n, d),
    )
    ranked, kept = rows(x, order), cache.clone()
    kernels.scatter_update(x, fresh, cache, order[:, :k], gate)
    kernels.scatter_update(ranked, fresh, kept, order, rows(gate, order), ranked=True)
    assert torch.equal(ranked, rows(x, order))
    assert torch.equal(kept, cache)


@pytest.mark.parametrize("ranked", [False, True])
def test_one_pass_is_two(ranked):
    n, k, following, d = 29, 11, 17, 16
    index, after = chosen(2, n, n if ranked else k), following if ranked else chosen(2, n, following)
    x, fresh, cache = torch.randn(2, n, d), torch.randn(2, k, d), torch.randn(2, n, d)
    gate, scale, shift = torch.randn(2, 1, d), torch.randn(2, n, d), torch.randn(2, d)
    y, kept = x.clone(), cache.clone()
    one = kernels.scatter_gather_norm(x, fresh, cache, index, gate, after, scale=scale, shift=shift, ranked=ranked)
    kernels.scatter_update(y, fresh, kept, index, gate, ranked)
    if ranked:
        two = kernels.gather_norm(y[:, :following], None, scale=scale[:, :following], shift=shift)
    else:
        two = kernels.gather_norm(y, after, scale=scale, shift=shift)
    assert torch.equal(x, y)
    assert torch.equal(cache, kept)
    assert torch.equal(one, two)


def test_constant_input_makes_any_subset_the_dense_step():
    """Whatever is recomputed, what was cached from the same input is the same."""
    x, gate, w = torch.randn(1, 21, 16), torch.randn(1, 1, 16), torch.randn(16, 16)
    full = kernels.gather_norm(x) @ w
    dense = kernels.scatter_update(x.clone(), full, torch.zeros_like(x), None, gate)
    for k in (1, 5, 20):
        index, cache = chosen(1, 21, k), full.clone()
        part = kernels.gather_norm(x, index) @ w
        again = kernels.scatter_update(x.clone(), part, cache, index, gate)
        assert (again - dense).abs().max() <= 1e-5


# -- A -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 3, 8, 19])
@pytest.mark.parametrize("back", [False, True], ids=["in place", "into token order"])
def test_what_waited_is_what_one_pass_after_another_adds(count, back):
    """In fp32 to the bit: the same sums in the same order."""
    n, m, d = 29, 11, 16
    order, x = chosen(2, n, n)[:, :m], torch.randn(2, m, d)
    caches = [torch.randn(2, n, d) for _ in range(count)]
    gates = [torch.randn(2, 1 if i % 2 else m, d) for i in range(count)]
    want, given = x.clone(), x.clone()
    for cache, gate in zip(caches, gates, strict=True):
        kernels.scatter_update(want, cache[:, :0], cache, order, gate, ranked=True)
    into = torch.full((2, n, d), 7.0) if back else None
    found = kernels.accumulate(given, caches, gates, order, into)
    if back:
        assert torch.equal(rows(found, order), want)
        assert int((found == 7.0).all(-1).sum()) == 2 * (n - m)  # no other row
    else:
        assert found is given
        assert torch.equal(found, want)


# -- P -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interleaved", [True, False], ids=["pairs", "halves"])
def test_project_epilogue_is_the_attention_processor(interleaved):
    """Against diffusers' own norm and rotary embedding, on the rows that were chosen."""
    b, n, h, d, k = 2, 19, 3, 16, 7
    index, norm = chosen(b, n, k), RMSNorm(d, 1e-6)
    torch.nn.init.normal_(norm.weight)
    angles = torch.randn(n, d // 2)
    angles = angles.repeat_interleave(2, 1) if interleaved else torch.cat([angles, angles], 1)
    tables = (angles.cos(), angles.sin())
    q, key, v = (torch.randn(b, n, h, d) for _ in range(3))
    caches = [torch.randn(b, n, h, d) for _ in range(2)]
    before = [c.clone() for c in caches]

    def dense(t):  # heads first
        turned = apply_rotary_emb(norm(t).transpose(1, 2), tables, use_real_unbind_dim=-1 if interleaved else -2)
        return turned.transpose(1, 2).detach()

    out = kernels.project_epilogue(
        *(rows(t, index) for t in (q, key, v)), *caches, index, norm="rms",
        norm_weights=(norm.weight, norm.weight), rope=tables, interleaved=interleaved,
    )  # fmt: skip
    torch.testing.assert_close(out, rows(dense(q), index), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(rows(caches[0], index), rows(dense(key), index), rtol=1e-6, atol=1e-6)
    assert torch.equal(rows(caches[1], index), rows(v, index))
    rest = torch.ones(b, n, dtype=torch.bool).scatter(1, index, False)
    assert all(torch.equal(c[rest], old[rest]) for c, old in zip(caches, before, strict=True))


def test_one_norm_across_all_heads_and_a_bias():
    q, bias, weight = torch.randn(2, 5, 3, 8), torch.randn(24), torch.randn(24)
    out = kernels.project_epilogue(
        q, biases=(bias, None, None), norm="rms", norm_weights=(weight, None), across_heads=True
    )
    want = F.rms_norm(q.flatten(2) + bias, (24,), weight, 1e-6).view(q.shape)
    torch.testing.assert_close(out, want)


# -- H -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_predict_heterogeneous_is_worldcaches_prediction(dtype):
    """The groups and rules of the predictor, as the one pass takes them."""
    values = [torch.randn(2, 8, 3, 4, 5).to(dtype) for _ in range(3)]
    gaps = (1.0, 2.0)
    fit = Heterogeneous(0.3, 0.6).fit(measure(values, gaps, gaps, TokenLayout(1)))
    group, horizon = group_names(fit), Horizon(2.0, 2.0, 5)
    stable, linear, chaotic = (), (2.0,), fit.chaotic_slopes(horizon)
    rules = [weights(s, gaps) for s in (stable, linear, chaotic)]
    rules = [[*r, 0.0, 0.0][:3] for r in rules]
    group = group.expand(2, 1, 3, 4, 5)
    assert set(group.unique().tolist()) == {0, 1, 2}
    got = kernels.predict_heterogeneous(values, group, rules, channel_dim=1)
    want = kernels.combine(values, weights(fit.slopes(horizon), gaps))
    torch.testing.assert_close(got, want, rtol=EPS[dtype], atol=1e-5)


# -- M -----------------------------------------------------------------------------------------------------------------


def attention(q, k, v):
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


@pytest.mark.parametrize("split", [0, 1, 7, 19, 20])
def test_two_parts_are_the_whole(split):
    q, k, v = (torch.randn(2, 3, n, 8) for n in (5, 20, 20))
    want, lse = attention(q, k, v)
    a, b = attention(q, k[:, :, :split], v[:, :, :split]), attention(q, k[:, :, split:], v[:, :, split:])
    out, lse_out = kernels.merge_attention(*a, *b)
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(lse_out, lse)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v))


def test_an_empty_part_is_not_used_and_merging_in_place_is_allowed():
    a, lse_a = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3)
    nothing, none = torch.full_like(a, torch.nan), torch.full_like(lse_a, -torch.inf)
    out, lse = kernels.merge_attention(nothing, none, a, lse_a)
    assert torch.equal(out, a)
    assert torch.equal(lse, lse_a)
    out, lse = kernels.merge_attention(nothing, none, nothing, none)
    assert not out.any()
    assert (lse == -torch.inf).all()
    want, _ = kernels.merge_attention(a, lse_a, -a, lse_a)
    out, _ = kernels.merge_attention(a, lse_a, -a, lse_a, out=a, lse_out=lse_a)
    assert out is a
    assert torch.equal(a, want)


# -- what holds for all ------------------------------------------------------------------------------------------------


def calls():
    """Every public function, small, with what it writes."""
    n, k, d = 9, 4, 8
    x, fresh, cache, row = torch.randn(2, n, d), torch.randn(2, k, d), torch.randn(2, n, d), torch.randn(2, d)
    index, packed = chosen(2, n, k), torch.empty(2, k, d)
    heads, cached = torch.randn(2, k, 2, 4), [torch.randn(2, n, 2, 4) for _ in range(2)]
    rope, lse = (torch.randn(n, 4), torch.randn(n, 4)), torch.randn(2, 2, k)
    group, part = torch.randint(3, (2, n, 1)), heads.transpose(1, 2).contiguous()
    rules = [[1.0, 0.0, 0.0], [2.0, -1.0, 0.0], [1.0, 1.0, -1.0]]
    return {
        "G": (kernels.gather_norm, (x, index, None, None, row, row, 1e-6, "rms", packed)),
        "S": (kernels.scatter_update, (x, fresh, cache, index, row)),
        "F": (kernels.scatter_gather_norm, (x, fresh, cache, index, row, index)),
        "A": (kernels.accumulate, (fresh, [x, cache], [row, row], index, x.clone())),
        "P": (lambda *a: kernels.project_epilogue(*a, rope=rope, norm="layer"), (heads, heads, heads, *cached, index)),
        "H": (kernels.predict_heterogeneous, ([x, cache, x], group, rules)),
        "M": (kernels.merge_attention, (part, lse, part.flip(0), lse.flip(0))),
    }


@pytest.mark.parametrize("name", list("GSFAPHM"))
def test_no_gradient_and_no_read_on_the_host(name):
    function, args = calls()[name]
    with torch.enable_grad():
        leaves = [a.requires_grad_() for a in args if isinstance(a, torch.Tensor) and a.is_floating_point()]
    reads = Reads()
    with torch.enable_grad(), watched(reads):
        result = function(*args)
    assert leaves or name == "H"
    assert reads.count == 0, reads.names
    results = result if isinstance(result, tuple) else (result,)
    assert all(r.grad_fn is None for r in results)


@pytest.mark.parametrize("name", list("GSFAPHM"))
def test_a_compiled_graph_is_whole_and_equal(name):
    function, args = calls()[name]
    copies = [[_copied(t) for t in a] if isinstance(a, list) else _copied(a) for a in args]
    want = function(*args)
    got = torch.compile(function, backend="aot_eager", fullgraph=True)(*copies)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", list("GSFAPHM"))
def test_a_compiled_graph_beside_the_cpu_has_one_operator(name):
    """Opaque, and whole: shapes alone decide (tensors without memory stand for a GPU's)."""
    function, args = calls()[name]
    graphs = []

    def keep(graph, _):
        graphs.append(str(graph.graph))
        return graph.forward

    move = [[_moved(t) for t in a] if isinstance(a, list) else _moved(a) for a in args]
    if name == "P":  # its tables as well
        rope = (torch.ones(9, 4, device="meta"),) * 2
        torch.compile(lambda *a: kernels.project_epilogue(*a, rope=rope), backend=keep, fullgraph=True)(*move)
    else:
        torch.compile(function, backend=keep, fullgraph=True)(*move)
    assert len(graphs) == 1
    assert graphs[0].count("torch.ops.diffcache.") == 1


def _moved(value):
    return value.to("meta") if isinstance(value, torch.Tensor) else value


def _copied(value):
    return value.clone() if isinstance(value, torch.Tensor) else value


def test_operators_on_the_cpu():
    x, fresh, cache, index = torch.randn(2, 6, 8), torch.randn(2, 3, 8), torch.randn(2, 6, 8), chosen(2, 6, 3)
    scale, out = torch.randn(2, 1, 8), torch.zeros(2, 3, 8)
    ops = torch.ops.diffcache
    opcheck(ops.gather_norm.default, (x, index, None, None, scale, None, out, 1e-6, False))
    opcheck(ops.scatter_update.default, (x, fresh, cache, index, None, scale, False))
    norm = (None, None, None, scale, None, out, 1e-6, True)
    opcheck(ops.scatter_gather_norm.default, (x, fresh, cache, index, None, scale, False, index, *norm))


@pytest.mark.parametrize("shape", [(1, 7, 24), (2, 3, 24), (7, 24)], ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_products_of_few_rows_in_slices_are_the_same(shape, biased, monkeypatch):
    """The last slice is narrower than the others."""
    monkeypatch.setattr(few_rows, "LEAST_COLUMNS", 50)
    monkeypatch.setattr(few_rows, "SLICE", -(-20 // torch.get_num_threads()))
    x, weight, bias = torch.randn(shape), torch.randn(50, 24), torch.randn(50) if biased else None
    with torch.no_grad(), Operators() as seen:
        found = few_rows.linear(x, weight, bias)
    assert sum(name in ("aten.mm.out", "aten.addmm.out") for name in seen.names) == 3
    torch.testing.assert_close(found, F.linear(x, weight, bias), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("other", ["gradient", "many rows", "bfloat16", "narrow"])
def test_other_products_are_torch_s_own(other, monkeypatch):
    monkeypatch.setattr(few_rows, "LEAST_COLUMNS", 60 if other == "narrow" else 50)
    monkeypatch.setattr(few_rows, "SLICE", 1)
    dtype = torch.bfloat16 if other == "bfloat16" else torch.float32
    x, weight = torch.randn(300 if other == "many rows" else 7, 24, dtype=dtype), torch.randn(50, 24, dtype=dtype)
    with torch.set_grad_enabled(other == "gradient"), Operators() as seen:
        found = few_rows.linear(x, weight)
        assert torch.equal(found, F.linear(x, weight))
    assert "aten.mm.out" not in seen.names


def test_indices():
    index = chosen(3, 20, 7)
    ascending, inverse = kernels.ascending(index, 20)
    assert torch.equal(ascending, index.sort(1).values.int())
    assert torch.equal(inverse, kernels.inverse(ascending, 20))
    assert torch.equal(inverse.gather(1, ascending.long()), torch.arange(7, dtype=torch.int32).expand(3, 7))
    assert int((inverse < 0).sum()) == 3 * 13


@pytest.mark.parametrize(
    ("index", "line"),
    [
        ([0, 3, 9], "index: 9 (row 0) is out of range, must be from 0 to 8"),
        ([0, -1, 2], "index: -1 (row 0) is out of range, must be from 0 to 8"),
        ([4, 1, 4], "index: 4 (row 0) is there twice, must be distinct"),
    ],
)
def test_wrong_indices_are_refused_where_they_are_checked(index, line):
    x = torch.randn(2, 9, 8)
    with kernels.checked(), pytest.raises(ConfigError) as caught:
        kernels.gather_norm(x, torch.tensor(index))
    assert str(caught.value) == line
    with kernels.checked():
        kernels.gather_norm(x, torch.tensor([8, 0, 4]))


WRONG = {
    "index: torch.float32 is not": lambda x: kernels.gather_norm(x, torch.rand(3)),
    "index: shape [3, 1]": lambda x: kernels.gather_norm(x, torch.zeros(3, 1, dtype=torch.int64)),
    "scale: shape [5]": lambda x: kernels.gather_norm(x, scale=torch.randn(5)),
    "kind: 'batch' is not known": lambda x: kernels.gather_norm(x, kind="batch"),
    "out: shape [1]": lambda x: kernels.gather_norm(x, out=torch.zeros(1)),
    "fresh: shape [2, 2, 8]": lambda x: kernels.scatter_update(x, x[:, :2], x.clone()),
    "fresh: torch.float32 is not": lambda x: kernels.scatter_update(x, x, x.half()),
    "cache: shape [2, 3, 8]": lambda x: kernels.scatter_update(x, x, x[:, :3].clone()),
    "index: a ranked stream": lambda x: kernels.scatter_update(x, x[:, :2], x.clone(), torch.arange(2), ranked=True),
    "inverse: torch.int64": lambda x: kernels.scatter_update(x, x, x.clone(), inverse=torch.zeros(1, 9).long()),
    "next_index: 10 is out": lambda x: kernels.scatter_gather_norm(x, x.clone(), x.clone(), next_index=10),
    "index: 2 tokens are": lambda x: kernels.accumulate(x, [x.clone()], [x[0, 0]], torch.arange(2)),
    "gates: 0 are": lambda x: kernels.accumulate(x, [x.clone()], [], torch.arange(9)),
    "caches: shape [2, 3, 8]": lambda x: kernels.accumulate(x, [x[:, :3]], [x[0, 0]], torch.arange(9)),
    "into: shape [2, 3, 8]": lambda x: kernels.accumulate(x, [], [], torch.arange(9), x[:, :3]),
    "k: must come together": lambda x: kernels.project_epilogue(x[..., None], x[..., None]),
    "rope: shape [1, 9, 3]": lambda x: kernels.project_epilogue(x[:, :, None], rope=(torch.ones(9, 3),) * 2),
    "group: torch.float32": lambda x: kernels.predict_heterogeneous([x], x[..., :1], [[1.0]]),
    "coefficients: must be": lambda x: kernels.predict_heterogeneous([x], x[..., :1].long(), [[1.0, 2.0]]),
    "lse_a: shape": lambda x: kernels.merge_attention(x[None], x, x[None], x[..., 0][None]),
}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_arguments_are_one_clear_line(line):
    with pytest.raises(ConfigError) as caught:
        WRONG[line](torch.randn(2, 9, 8))
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_what_triton_does_not_take_has_a_reason():
    """The dispatch's own judgement, which a GPU would count."""
    from diffcache.kernels.dispatch import WIDEST
    from diffcache.kernels.gather_norm import _gather_norm

    def judged(x):
        return _gather_norm.refusal((x, None, None, None, None, None, torch.empty_like(x), 1e-6, False))

    assert judged(torch.randn(1, 2, 8, dtype=torch.float64)) == "dtype float64"
    assert judged(torch.randn(1, 8, 2).transpose(1, 2)) == "features not contiguous"
    assert judged(torch.empty(1, 1, WIDEST + 1)) == f"rows wider than {WIDEST}"
    pytest.importorskip("triton")
    assert judged(torch.randn(1, 2, 8)) is None


def test_triton_is_not_needed():
    """Neither to import the package nor on the CPU, and nothing imports it on the way."""
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.split('.')[0] == 'triton': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import torch, diffcache\n"
        "from diffcache import kernels\n"
        "from diffcache.kernels.dispatch import DTYPES\n"
        "from diffcache.kernels.gather_norm import _gather_norm\n"
        "x = torch.randn(1, 4, 8)\n"
        "kernels.scatter_update(x, kernels.gather_norm(x, torch.tensor([2, 0])), x.clone(), torch.tensor([2, 0]))\n"
        "print(_gather_norm.refusal((x, None, None, None, None, None, x, 1e-6, False)))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent.parent, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "triton is not installed"
