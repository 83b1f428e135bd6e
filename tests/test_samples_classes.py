"""Every class: samples of a batch decide apart, or the reason why they do not is known here."""

from __future__ import annotations

import pytest
import torch

from diffcache import accelerate_model, restore

from .batches import Sample, walk
from .denoisers import DENOISERS
from .denoisers.running import METHODS, model_of

STEPS = 6
#: classes whose arguments for one sample cannot be joined to those of a batch: packed sequences, lists of references
ONE_BY_ONE = {
    "ConsisIDTransformer3DModel",
    "WanAnimate2Transformer3DModel",
    "T5FilmDecoder",
    "Cosmos3OmniTransformer",
}


@pytest.mark.parametrize("name", [name for name in DENOISERS if name not in ONE_BY_ONE])
def test_a_sample_that_moves_is_computed_by_itself(name):
    """Who stands still between computed steps gets the dense output, at every step and in every row."""
    samples, model = [Sample(name, 1), Sample(name, 2, (3,)), Sample(name, 3)], model_of(name)
    (dense,) = walk(model, [samples], STEPS)
    accelerate_model(model, METHODS["first"].method, threshold=1e-3, warmup=2, cooldown=1)
    try:
        (found,) = walk(model, [samples], STEPS)
        (segment,) = model.diffcache.stats().segments
    finally:
        restore(model)
    assert segment.decisions == "FFcpcF", segment.together
    assert segment.samples == ["FFcccF", "FFcFcF", "FFcccF"]
    for step in range(STEPS):
        for row in range(3):
            assert torch.linalg.norm(found[step][row] - dense[step][row]) <= 1e-5 * dense[step][row].norm()
