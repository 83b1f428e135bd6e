"""``docs/packing.md`` says how partial steps run on every class."""

from __future__ import annotations

import pytest

from .denoisers import DENOISERS
from .denoisers.packing import PATH, page, row

MIXED = ["AuraFlowTransformer2DModel", "CogView4Transformer2DModel", "LatteTransformer3DModel"]


def rows() -> dict[str, str]:
    """The rows on the page, by class."""
    lines = (line for line in PATH.read_text().splitlines() if line.startswith("| "))
    return {name: line for line in lines if (name := line.split(" | ")[0].removeprefix("| ")) in DENOISERS}


@pytest.mark.slow
@pytest.mark.parametrize("name", DENOISERS)
def test_the_page_says_what_was_measured(name):
    """After a change: ``python -m tests.denoisers.packing``."""
    assert rows()[name] == row(name)


def test_the_page_names_every_class_and_counts_right():
    assert list(rows()) == sorted(DENOISERS)
    assert PATH.read_text() == page(rows())


@pytest.mark.parametrize("name", MIXED)
def test_classes_of_each_kind(name):
    """Blocks with norms of their own, a module called for tokens and for text, and blocks that are not alike."""
    assert rows()[name] == row(name)
