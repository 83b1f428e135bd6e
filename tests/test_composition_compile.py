"""``torch.compile`` beside a method: decisions stay outside of the graphs, of which there are two at most.

A graph is counted when dynamo hands it to the backend; it would do so again for every recompilation and every part
between two breaks. The counting backend runs graphs eagerly, so results are bit for bit those without compilation.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch._dynamo.utils import counters

from diffcache import UncompiledWarning, accelerate_model, accelerate_pipeline, restore

from .composing import LETTERS, alone, composed
from .models import decisions, run_wan, sample, wan, wan_pipeline


class Graphs(list):
    """A backend that keeps the graphs it is given."""

    def __call__(self, graph, inputs):
        self.append(graph)
        return graph.forward


@pytest.fixture
def graphs():
    torch.compiler.reset()
    counters.clear()
    yield Graphs()
    torch.compiler.reset()


def in_place(graphs):
    return lambda pipe: pipe.transformer.compile(backend=graphs, fullgraph=True)


def wrapped(graphs):
    def setup(pipe):
        pipe.transformer = torch.compile(pipe.transformer, backend=graphs, fullgraph=True)

    return setup


def blocks(graphs):
    return lambda pipe: pipe.transformer.compile_repeated_blocks(backend=graphs, fullgraph=True)


WAYS = {"in place": in_place, "wrapped": wrapped, "blocks": blocks}
#: (what is compiled, site) -> graphs: one where the hooks stand around it, one that computes and one that reuses where
#: they are traced with it; never more for more blocks, steps, branches or calls
GRAPHS = {
    ("in place", "output"): 1,
    ("wrapped", "output"): 1,
    ("blocks", "output"): 1,
    ("in place", "body"): 2,
    ("wrapped", "body"): 2,
    ("blocks", "body"): 1,
    ("in place", "block"): 2,
    ("wrapped", "block"): 2,
    ("blocks", "block"): 1,
    ("in place", "module"): 2,
    ("wrapped", "module"): 2,
    ("blocks", "module"): 2,
}
SLOW = pytest.mark.slow
_QUICK = {
    ("in place", "output", "after"),
    ("wrapped", "body", "after"),
    ("blocks", "body", "after"),
    ("in place", "block", "before"),
    ("wrapped", "module", "before"),
    ("blocks", "module", "after"),
}
CASES = [
    pytest.param(*case, order, marks=() if (*case, order) in _QUICK else SLOW)
    for case in GRAPHS
    for order in ("before", "after")
]


@pytest.mark.parametrize(("way", "site", "order"), CASES)
def test_as_many_graphs_for_all_steps_branches_and_calls(way, site, order, graphs):
    pipe = composed(WAYS[way](graphs), order, site=site)
    assert torch.equal(run_wan(pipe, 9), alone(site))
    assert decisions(pipe) == [LETTERS] * 2
    assert torch.equal(run_wan(pipe, 9), alone(site))
    run_wan(pipe, 14, seed=1)
    assert len(graphs) == GRAPHS[way, site]
    assert not counters["graph_break"]


@pytest.mark.parametrize(("way", "site"), [("in place", "body"), ("wrapped", "block"), ("blocks", "module")])
def test_hooks_that_never_skip_run_the_graph_of_the_bare_model(way, site, graphs):
    pipe = composed(WAYS[way](graphs), "before", site=site, max_skip=0)
    assert torch.equal(run_wan(pipe, 6), run_wan(wan_pipeline(), 6))
    assert len(graphs) == 1
    assert not counters["graph_break"]


@pytest.mark.parametrize("way", ["blocks", pytest.param("in place", marks=SLOW)])
def test_extrapolated_module_results_are_summed_inside_the_graph(way, graphs):
    """The weights come in as a tensor: another distance to the computed steps is no other graph."""
    settings = dict(site="module", predictor="linear")
    pipe = composed(WAYS[way](graphs), "after", **settings)
    wanted = run_wan(composed(lambda pipe: None, "before", **settings), 12)
    torch.testing.assert_close(run_wan(pipe, 12), wanted, rtol=1e-4, atol=1e-5)
    assert all("c" in letters for letters in decisions(pipe))
    assert len(graphs) == 2
    assert not counters["graph_break"]


def test_memory_of_a_compiled_model_is_that_of_the_plain_one(graphs):
    plain, pipe = composed(lambda pipe: None, "before", site="module"), composed(blocks(graphs), "after", site="module")
    for each in (plain, pipe):
        run_wan(each, 9)
    held = [[s.cached_bytes for s in each.diffcache.stats().segments] for each in (plain, pipe)]
    assert held[0] == held[1]


@pytest.mark.parametrize("site", ["body", "module"])
def test_another_resolution_is_learned_anew_and_stays_right(site, graphs):
    pipe = composed(in_place(graphs), "after", site=site)
    plain = composed(lambda pipe: None, "before", site=site)
    for size in (2, 3, 2):
        assert torch.equal(run_wan(pipe, 9, size=size), run_wan(plain, 9, size=size))


@pytest.mark.parametrize(
    ("way", "site", "order"), [("blocks", "body", "after"), pytest.param("wrapped", "output", "after", marks=SLOW)]
)
def test_never_skipping_is_the_compiled_model(way, site, order, graphs):
    bare = wan_pipeline()
    WAYS[way](graphs)(bare)
    wanted = run_wan(bare, 4)
    pipe = composed(WAYS[way](graphs), order, site=site, max_skip=0)
    assert torch.equal(run_wan(pipe, 4), wanted)


@pytest.mark.parametrize("way", ["in place", pytest.param("wrapped", marks=SLOW)])
def test_what_decides_in_the_middle_runs_uncompiled_and_says_so(way, graphs):
    settings = dict(method="fbcache", threshold=0.3, warmup=3)
    pipe = composed(WAYS[way](graphs), "after", **settings)
    wanted = run_wan(composed(lambda pipe: None, "before", **settings), 9)
    with pytest.warns(UncompiledWarning, match=r"fbcache decides.*WanTransformer3DModel.*compile_repeated_blocks"):
        latents = run_wan(pipe, 9)
    assert torch.equal(latents, wanted)
    assert "c" in decisions(pipe)[0]
    assert not graphs
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        run_wan(pipe, 4)
    restore(pipe)
    run_wan(pipe, 2)
    assert len(graphs) == 1  # compiled again
    assert not counters["graph_break"]


def test_blocks_stay_compiled_around_a_decision(graphs):
    settings = dict(method="fbcache", threshold=0.3, warmup=3)
    pipe = composed(blocks(graphs), "after", **settings)
    assert torch.equal(run_wan(pipe, 9), run_wan(composed(lambda pipe: None, "before", **settings), 9))
    assert "c" in decisions(pipe)[0]
    assert len(graphs) == 1
    assert not counters["graph_break"]


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize(
    "settings", [dict(method="toca", warmup=2), dict(method="teacache", polynomial=(1.0, 0.0), threshold=0.6)]
)
def test_compiled_blocks_that_a_method_looks_into_run_as_they_are_written_under_its_hooks(settings, order, graphs):
    wanted = composed(lambda pipe: None, "before", **settings)
    latents = run_wan(wanted, 9)
    pipe = composed(blocks(graphs), order, **settings)
    with pytest.warns(
        UncompiledWarning, match=r"compiled WanTransformerBlock runs? uncompiled; choose a method with site"
    ):
        assert torch.equal(run_wan(pipe, 9), latents)
    assert decisions(pipe) == decisions(wanted)
    assert set("pc") & set(decisions(pipe)[0])
    restore(pipe)
    assert torch.equal(run_wan(pipe, 4), run_wan(wan_pipeline(), 4))


@pytest.mark.parametrize("way", ["blocks", pytest.param("in place", marks=SLOW), pytest.param("wrapped", marks=SLOW)])
def test_restore_leaves_what_was_compiled(way, graphs):
    pipe = composed(WAYS[way](graphs), "before")
    run_wan(pipe, 9)
    restore(pipe)
    seen = len(graphs)
    assert torch.equal(run_wan(pipe, 4), run_wan(wan_pipeline(), 4))
    assert len(graphs) - seen <= 1
    run_wan(pipe, 9, seed=1)
    assert len(graphs) - seen <= 1


@SLOW
def test_compiled_once_more_after_acceleration(graphs):
    """Another backend, say: the method must not fall off with the call that it stood around."""
    pipe = composed(in_place(graphs), "before")
    run_wan(pipe, 9)
    again = Graphs()
    in_place(again)(pipe)
    assert torch.equal(run_wan(pipe, 9), alone("output"))
    assert decisions(pipe) == [LETTERS] * 2
    assert len(again) == 1


@SLOW
def test_another_method_replaces_the_first_on_a_compiled_model(graphs):
    pipe = composed(in_place(graphs), "before")
    run_wan(pipe, 9)
    accelerate_pipeline(pipe, "interval", interval=2)
    fresh = accelerate_pipeline(wan_pipeline(), "interval", interval=2)
    assert torch.equal(run_wan(pipe, 9), run_wan(fresh, 9))
    assert decisions(pipe) == decisions(fresh)


@pytest.mark.parametrize("order", ["after", pytest.param("before", marks=SLOW)])
def test_a_bare_loop_over_what_compile_returned(order, graphs):
    model = wan()
    fast = torch.compile(model, backend=graphs) if order == "before" else None
    accelerate_model(fast if fast is not None else model, "interval", interval=3)
    fast = fast if fast is not None else torch.compile(model, backend=graphs)
    plain = accelerate_model(wan(), "interval", interval=3)
    assert sample("wan", fast, 9).equals(sample("wan", plain, 9))
    assert decisions(fast) == [LETTERS] * 2
    assert len(graphs) == 1
    restore(fast)
    assert sample("wan", fast, 4).equals(sample("wan", wan(), 4))


@pytest.mark.slow
@pytest.mark.parametrize(("way", "site"), GRAPHS)
def test_compiled_by_inductor(way, site):
    torch.compiler.reset()
    counters.clear()
    setup = {
        "in place": lambda pipe: pipe.transformer.compile(fullgraph=True),
        "wrapped": lambda pipe: setattr(pipe, "transformer", torch.compile(pipe.transformer, fullgraph=True)),
        "blocks": lambda pipe: pipe.transformer.compile_repeated_blocks(fullgraph=True),
    }[way]
    bare = wan_pipeline()
    setup(bare)
    wanted = run_wan(bare, 6)
    pipe = composed(setup, "before", site=site, max_skip=0)
    assert torch.equal(run_wan(pipe, 6), wanted)
    pipe = composed(setup, "before", site=site)
    torch.testing.assert_close(run_wan(pipe, 9), alone(site), rtol=1e-3, atol=1e-4)
    assert decisions(pipe) == [LETTERS] * 2
    assert not counters["graph_break"]
    torch.compiler.reset()
