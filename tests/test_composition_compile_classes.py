"""``docs/compile.md`` is true: one graph that computes and one that reuses for each graph of the bare class."""

from __future__ import annotations

import pytest

from .denoisers.compiling import PATH, SITES, cells, count, page, row, rows

SAMPLE = ["DiTTransformer2DModel", "SD3Transformer2DModel"]


def found() -> dict[str, str]:
    """The rows on the page, by class."""
    return rows(PATH.read_text())


def test_the_page_counts_its_rows_right():
    assert PATH.read_text() == page(found())


@pytest.mark.parametrize("name", found())
def test_a_method_has_two_graphs_for_one_of_the_bare_class_and_no_break_of_its_own(name):
    for way in cells(found()[name]):
        bare, *sites, _, added = way
        assert all(int(bare) <= int(graphs) <= 2 * int(bare) for graphs in sites), way
        assert not added


@pytest.mark.slow
@pytest.mark.parametrize("name", found())
def test_the_page_says_what_was_measured(name):
    """After a change: ``python -m tests.denoisers.compiling``."""
    assert found()[name] == row(name)


@pytest.mark.parametrize("name", SAMPLE)
def test_blocks_of_one_kind_and_of_two_streams(name):
    _, blocks = cells(found()[name])
    assert blocks == count(name, "blocks").cells()
    assert blocks[1 : 1 + len(SITES)] == ["1", "1", "2"]
