"""Layout C: the stream of a partial step stands in rank order, and what each module touches of it."""

from __future__ import annotations

import torch

from diffcache import denoising
from diffcache.hooks.selection import Place, Selection
from diffcache.kernels.dispatch import Kernel

from .denoisers.running import bare, model_of, run
from .models import dit, normal
from .test_site_tokens import put_on, table
from .test_site_tokens_packed import steps_of


def calls_of(keep, monkeypatch, **settings):
    """Kernels of the last of three steps of a tiny DiT, but for keys and values.

    Of each its name, rows of the stream, and how many modules' results it adds.
    """
    calls, model, plain = [], dit(), Kernel.__call__

    def call(kernel, *args):
        if kernel.name != "project_epilogue":
            added = len(args[1]) if kernel.name == "accumulate" else int(kernel.name.startswith("scatter"))
            calls.append((kernel.name, args[0].shape[1], added))
        plain(kernel, *args)

    put_on(model, keep, **settings)
    with monkeypatch.context() as patch:
        patch.setattr(Kernel, "__call__", call)
        steps_of(model, before=lambda step: calls.clear())
    return calls


def test_modules_that_compute_nothing_are_added_in_one_pass(monkeypatch):
    """Of 16 tokens the first module computes 8, the next two none, the last 8."""
    keep = lambda offset, depth, kind: 0.5 if (depth == 0.0) == (kind != "feedforward") else 0.0  # noqa: E731
    first, last = [("gather_norm", 8, 0), ("scatter_update", 8, 1)], [("scatter_update", 8, 1), ("accumulate", 8, 0)]
    between = [("accumulate", 8, 2), ("gather_norm", 8, 0)]
    assert calls_of(keep, monkeypatch) == [*first, *between, *last, ("accumulate", 8, 4)]


def test_rows_that_nobody_asks_for_wait(monkeypatch):
    """Only the computed rows are touched from module to module; in token order all are."""
    ranked = calls_of(lambda offset, depth, kind: 0.25, monkeypatch)
    assert {rows for _, rows, _ in ranked[:-1]} == {4}
    assert ranked[-1] == ("accumulate", 12, 4)
    dense = calls_of(lambda offset, depth, kind: 0.25, monkeypatch, layout="dense")
    assert {rows for _, rows, _ in dense} == {16}


def test_what_is_computed_for_all_tokens_is_kept_as_it_is():
    """Feed-forward of all tokens beside attention of half of them: its very result is what is cached."""
    model, results = dit(), []
    put_on(model, lambda offset, depth, kind: 1.0 if kind == "feedforward" else 0.5)
    for block in model.transformer_blocks:
        block.ff.net[-1].register_forward_hook(lambda module, args, result: results.append(result.data_ptr()))
    with torch.no_grad(), denoising(model, 3):
        for step in range(2):
            results.clear()
            model(normal(1, 4, 8, 8, seed=step), torch.tensor([900 - step]), class_labels=torch.tensor([3]))
        ((_, hook),) = model.diffcache.hooks.values()
        (branch,) = hook.segment.branches.values()
        memories = branch.cache.memories
        assert results == [memories[f"transformer_blocks.{i}.ff", 0].results[0].data_ptr() for i in range(2)]


def test_rotary_tables_are_put_in_order_once_a_step(monkeypatch):
    """Flux gives the same two to every block."""
    name, taken, begun, plain = "FluxTransformer2DModel", [], [], Selection.take_again

    def take_again(selection, tensor, place, count):
        result = plain(selection, tensor, place, count)
        taken.append((id(tensor), id(result)))
        return result

    monkeypatch.setattr(Selection, "take_again", take_again)
    bare(name)
    put_on(model_of(name), lambda offset, depth, kind: 0.5)
    try:
        run(name, before=lambda step, arguments: begun.append(len(taken)) or arguments)
    finally:
        model_of(name).diffcache.restore()
    last = taken[begun[-1] :]
    assert len(last) > len(set(last)) == 2  # cosines and sines


def test_fp64_in_rank_order_is_what_it_is_in_token_order():
    """Blocks run on rows with their own norms there; products of fp64 depend on the order of rows."""
    found = []
    for layout in ("ranked", "dense"):
        model = dit().double()
        put_on(model, table(2), layout=layout)
        found.append(torch.cat(steps_of(model, steps=5, dtype=torch.float64)))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-13)


def test_fewer_rows_are_the_first_of_more():
    order = torch.tensor([3, 0, 2, 1])
    ranked, place = Selection(order, ranked=True), Place(1, 2, 8)  # two words before the tokens, two behind
    assert ranked.rows(3, 2, 8).tolist() == [0, 1, 5, 2, 4, 6, 7]
    rows = torch.arange(8.0)[None]
    more = ranked.take(rows, place, 3)
    assert torch.equal(ranked.take(more, place, 2, 3), ranked.take(rows, place, 2))
    before = Place(1, 2, 6)
    more = ranked.take(rows[:, :6], before, 3)
    fewer = ranked.take(more, before, 1, 3)
    assert torch.equal(fewer, ranked.take(rows[:, :6], before, 1))
    assert fewer.data_ptr() == more.data_ptr()  # a plain slice
