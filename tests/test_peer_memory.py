"""``taylorseer`` beside diffusers' TaylorSeer on the same modules of a trained model: what a branch holds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "samples"))
from recording import record
from site_costs import memory


@pytest.fixture(scope="module")
def recording():
    return record("tiny-dit", 10)


@pytest.mark.parametrize("order", [1, 2])
def test_taylorseer_holds_no_more_than_diffusers_in_either_dtype(recording, order):
    """fp32, which the model has, and bf16, which diffusers takes unless told otherwise."""
    theirs, ours, their_half, our_half, lite = memory(recording, order)
    assert 0 < ours <= theirs
    assert 0 < our_half <= their_half < theirs
    assert 0 < 20 * lite <= their_half
