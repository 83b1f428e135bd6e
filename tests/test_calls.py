"""What runs at a predicted step, counted by modules, not by clocks."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from diffcache import accelerate_model, accelerate_pipeline
from diffcache.hooks.anatomy import find_block_lists
from diffcache.methods import make_config

from .cases import SKIPPING
from .models import FAMILIES, PIPELINES, decisions, denoisers, walk_steps


def counted(model, steps, family):
    """Names of the submodules called in each step."""
    names = {id(m): n for n, m in model.named_modules() if n}
    called: list[str] = []
    handle = register_module_forward_pre_hook(lambda m, args: called.append(names[id(m)]) if id(m) in names else None)
    per_step = []
    try:
        with torch.no_grad():
            for _ in walk_steps(family, model, steps):
                per_step.append(list(called))
                called.clear()
    finally:
        handle.remove()
    return per_step


RECIPES = {case: make_config(name, **settings).recipe() for case, (name, settings) in SKIPPING.items()}
#: cases that skip the whole denoiser or all of its blocks (what the others skip: test_site_units, test_signals)
WHOLE = [case for case, recipe in RECIPES.items() if recipe.site in ("output", "body") and recipe.signal is None]


@pytest.mark.parametrize("case", WHOLE)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_predicted_step_calls_no_submodule_or_no_block(family, case):
    name, settings = SKIPPING[case]
    body = RECIPES[case].site == "body"
    model = FAMILIES[family].build(0)
    dense = counted(model, 1, family)[0]
    accelerate_model(model, name, **settings)
    per_step = counted(model, 12, family)
    letters = decisions(model)[0]
    assert "c" in letters
    blocks = tuple(f"{n}." for n in find_block_lists(model))
    for step, (letter, called) in enumerate(zip(letters, per_step, strict=True)):
        if letter == "F" and step == 0 and body:
            assert not Counter(dense) - Counter(called)  # and once more without the blocks, to prove the body
        elif letter == "F":
            assert sorted(called) == sorted(dense)
        elif body:
            # DiT's head uses its first block's timestep embedding; attention and feed-forward are the block's own
            assert not [n for n in called if n.startswith(blocks) and ("attn" in n or "ff" in n.split(".")[2:])]
            assert [n for n in dense if not n.startswith(blocks)] == [n for n in called if not n.startswith(blocks)]
        else:
            assert not called


@pytest.mark.parametrize("kind", PIPELINES)
def test_computed_steps_of_a_pipeline_are_its_only_block_calls(kind):
    build, run = PIPELINES[kind]
    pipe = accelerate_pipeline(build(), "powerlaw", computed=0.5)
    first = {id(next(iter(find_block_lists(m).values()))[0]) for m in denoisers(pipe)}
    count = [0]

    def note(module, args):
        count[0] += id(module) in first

    handle = register_module_forward_pre_hook(note)
    try:
        run(pipe, 12)
    finally:
        handle.remove()
    stats = pipe.diffcache.stats()
    assert count[0] == sum(s.computed for s in stats.segments)
    assert sum(s.predicted for s in stats.segments) > 0


def test_shares_of_the_stats_are_shares_of_calls():
    model = accelerate_model(FAMILIES["wan"].build(0), "interval", interval=3)
    counted(model, 12, "wan")
    for segment in model.diffcache.stats().segments:
        assert segment.block_share == pytest.approx(segment.decisions.count("F") / 12)
        assert segment.token_share == segment.block_share
    assert model.diffcache.stats().saving == pytest.approx(12 / segment.decisions.count("F"))
