"""Which values move: data flow through operations, memory that is shared, and what cannot be seen."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.flop_counter import FlopCounterMode

from diffcache.hooks.flow import Flow

from .models import normal

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")


@pytest.fixture(autouse=True)
def _no_older_graphs():
    """flex attention is compiled by torch itself: why it compiles again is not always told in one process."""
    torch.compiler.reset()


def follow(compute, *moving):
    """Whether the result of ``compute(still, *moving)`` is still, and the flow."""
    still = normal(3, 4, seed=1)
    flow = Flow([still])
    with torch.no_grad(), flow, flow.reads:
        result = compute(still, *moving)
    return flow.is_still(result), flow


MOVES = {
    "a sum": lambda s, m: s + m,
    "a product into the same memory": lambda s, m: s.clone().mul_(m),
    "a part of it was written to": lambda s, m: put(s.clone(), m),
    "a view was written to": lambda s, m: through_a_view(s.clone(), m),
    "memory that somebody else may fill": lambda s, m: torch.empty(3, 4),
    "the same, as large as something": lambda s, m: torch.empty_like(s),
    "random numbers": lambda s, m: torch.randn(3, 4),
    "dropout": lambda s, m: F.dropout(s, 0.5, training=True),
    "attention with dropout": lambda s, m: F.scaled_dot_product_attention(s, s, s, dropout_p=0.5),
    "after a look at a moving value": lambda s, m: s * float(m.sum()),
    "after a list of moving values": lambda s, m: s * m.tolist()[0][0],
    "after numpy saw moving values": lambda s, m: s * float(m.numpy().sum()),
    "after a moving condition": lambda s, m: s + 1 if m.sum() > 0 else s - 1,
    "as many as moving values say": lambda s, m: torch.ones(len(m[m > 0])),
    "where it came from is unknown": lambda s, m: NOWHERE,
    "a table looked up by moving numbers": lambda s, m: s[m.argmax(0)],
    "flex attention": lambda s, m: flex(s),
    "after a branch inside an operator": lambda s, m: (branch(s, m), s * 2)[1],
}
UNFILLED = ("memory that somebody else may fill", "the same, as large as something")
NOWHERE = normal(3, 4, seed=5)

STILL = {
    "a product": lambda s, m: s @ s.T,
    "a view": lambda s, m: s.view(4, 3)[1:],
    "a factory": lambda s, m: torch.arange(5) * 2,
    "numbers written in Python": lambda s, m: torch.tensor([1.0, 2.0]) + s[0, :2],
    "as large as something that moves": lambda s, m: torch.zeros(m.shape),
    "attention without dropout": lambda s, m: F.scaled_dot_product_attention(s, s, s),
    "dropout that is off": lambda s, m: F.dropout(s, 0.5, training=False) * 2,
    "after a look at a still value": lambda s, m: s * float(s.sum()),
    "memory written with still values": lambda s, m: put(torch.zeros(3, 4), s),
    "a table looked up by still numbers": lambda s, m: s[s.argmax(0)],
    "what was packed beside something that moves": lambda s, m: packed(s, m)[:3],
    "what was copied beside something that moves": lambda s, m: through_rows(s, m)[:3],
    "after flex attention of something that moves": lambda s, m: (flex(m), s * 2)[1],
}


def put(a, b):
    a[1:] = b[1:]
    return a


def through_a_view(a, b):
    a.view(12)[3:5].add_(b.view(12)[3:5])
    return a


def packed(s, m):
    sequence = s.new_zeros(6, 4)
    sequence[torch.arange(3)] = s
    sequence[torch.arange(3, 6)] = m
    return sequence


def through_rows(s, m):
    sequence = s.new_zeros(6, 4)
    sequence[:3] = s
    sequence[3:] = m
    return sequence


def flex(t):
    heads = t.repeat(1, 4)[None, None]
    return flex_attention(heads, heads, heads)


def branch(s, m):
    return torch.cond(m.sum() > 0, torch.sin, torch.cos, (s,))


@pytest.mark.parametrize("case", MOVES)
@pytest.mark.parametrize("inference", [False, True])
def test_it_moves(case, inference):
    with torch.inference_mode(inference):
        assert not follow(MOVES[case], normal(3, 4, seed=2))[0]


@pytest.mark.parametrize("case", STILL)
@pytest.mark.parametrize("inference", [False, True])
def test_it_stays_the_same(case, inference):
    with torch.inference_mode(inference):
        assert follow(STILL[case], normal(3, 4, seed=2))[0]


def test_what_was_packed_moves_where_the_moving_part_is_and_as_a_whole():
    for take in (lambda t: t, lambda t: t[3:], lambda t: t[2:4], lambda t: t[:, 0]):
        assert not follow(lambda s, m, take=take: take(packed(s, m)), normal(3, 4, seed=2))[0]


def test_a_look_at_still_values_is_remembered():
    assert follow(lambda s: s * float(s.sum()))[1].heard
    assert follow(lambda s: s[s > 0])[1].heard
    assert not follow(lambda s: s @ s.T)[1].heard


def test_flops_are_those_of_torch():
    def compute(s):
        return F.scaled_dot_product_attention(s[None, None], s[None, None], s[None, None]) @ s.T

    _, flow = follow(compute)
    with FlopCounterMode(display=False) as counter:
        compute(normal(3, 4, seed=1))
    assert flow.flops == counter.get_total_flops() > 0


@pytest.mark.parametrize(
    "case", [name for name in (*MOVES, *STILL) if "somebody else" not in name and "large" not in name]
)
@pytest.mark.parametrize("inference", [False, True])
def test_the_results_are_those_of_an_unwatched_pass(case, inference):
    compute = {**MOVES, **STILL}[case]
    found = []
    with torch.inference_mode(inference), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        wanted = compute(normal(3, 4, seed=1), normal(3, 4, seed=2))
        torch.manual_seed(0)
        follow(lambda s, m: found.append(compute(s, m)) or s, normal(3, 4, seed=2))
    assert torch.equal(wanted, found[0])


def test_memory_that_was_freed_is_not_mistaken_for_new_memory():
    """A tensor from nowhere may stand where a still one stood."""
    flow = Flow([])
    with torch.no_grad(), flow, flow.reads:
        for _ in range(50):
            gone = torch.zeros(7)
            assert flow.is_still(gone)
            del gone
            with _disable_current_modes():
                unseen = torch.zeros(7)
            assert not flow.is_still(unseen)
