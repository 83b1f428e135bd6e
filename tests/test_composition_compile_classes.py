"""``docs/compile.md`` is true: one graph that computes and one that reuses for each graph of the bare class."""

from __future__ import annotations

import pytest

from .denoisers.compiling import PATH, WAYS, WRONG, cells, count, numbers, page, row, rows

#: blocks of one stream, and of two
SAMPLE = ["DiTTransformer2DModel", "SD3Transformer2DModel"]
FOUND = rows(PATH.read_text())
#: whole, these read values in mid-model, which with a method breaks a graph more
BREAKING = {
    "HiDreamImageTransformer2DModel",
    "HunyuanVideo15Transformer3DModel",
    "HunyuanVideoFramepackTransformer3DModel",
    "MochiTransformer3DModel",
    "WanAnimate2Transformer3DModel",
}
EACH = [(way, name) for way in WAYS for name in FOUND[way]]


def test_the_page_counts_its_rows_right():
    assert PATH.read_text() == page(FOUND)


@pytest.mark.parametrize(("way", "name"), EACH)
def test_a_method_has_two_graphs_for_one_of_the_bare_class_and_no_break_of_its_own(way, name):
    found = cells(FOUND[way][name])
    assert not any(WRONG in cell for cell in found)
    if way == "blocks" or name not in BREAKING:
        bare, *sites = numbers(found)
        assert max(sites) <= 2 * bare
        assert not found[-1]


@pytest.mark.slow
@pytest.mark.parametrize(("way", "name"), EACH)
def test_the_page_says_what_was_measured(way, name):
    """After a change: ``python -m tests.denoisers.compiling whole``, or ``blocks``."""
    assert FOUND[way][name] == row(name, way)


@pytest.mark.parametrize("name", SAMPLE)
def test_blocks_of_some_classes(name):
    assert cells(FOUND["blocks"][name]) == count(name, "blocks").cells()
