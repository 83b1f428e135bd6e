"""Sites ``block`` and ``module``: which parts are found, what runs at a predicted step, what is stored."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from diffcache import ConfigError, UnsupportedModelError, accelerate_model, accelerate_pipeline, denoising
from diffcache.hooks.modules import find_units, unit_kinds

from .models import FAMILIES, decisions, run_wan, sample, walk_steps, wan_pipeline

KINDS = {
    "wan": ["spatial", "cross", "feedforward"] * 2,
    "cogvideox": ["spatial", "feedforward"] * 2,
    "flux": ["spatial", "feedforward", "feedforward", "fused", "fused"],
    "dit": ["spatial", "feedforward"] * 2,
}


@pytest.mark.parametrize("family", KINDS)
def test_attention_and_feed_forward_of_every_block_are_found(family):
    units = find_units(FAMILIES[family].build(0), "module", unit_kinds("module"))
    assert [unit.kind for unit in units] == KINDS[family]


class Matrices(TorchFunctionMode):
    """Notes the parameters that are multiplied with, whatever module forward was replaced."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.names = {id(p): name for name, p in model.named_parameters()}
        self.used: set[str] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is nn.functional.linear:
            self.used.add(self.names[id(args[1])])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", KINDS)
def test_no_matrix_of_a_cached_module_runs_at_a_predicted_step(family):
    model = FAMILIES[family].build(0)
    accelerate_model(model, "fora", interval=3)
    units = find_units(model, "module", unit_kinds("module"))
    joined = [unit.name.removesuffix("proj_out") for unit in units if unit.kind == "fused"]
    inside = tuple(f"{unit.name}." for unit in units)
    inside += tuple(f"{block}{part}." for block in joined for part in ("attn", "proj_mlp"))
    with Matrices(model) as matrices:
        for step, _ in enumerate(walk_steps(family, model, 9)):
            heavy = [name for name in matrices.used if name.startswith(inside)]
            assert bool(heavy) == (decisions(model)[0][step] == "F")
            matrices.used.clear()
    assert "cc" in decisions(model)[0]


@pytest.mark.parametrize(("method", "depth"), [("fora", 1), ("taylorseer", 2), ("hicache", 3)])
def test_memory_is_depth_times_the_results(method, depth):
    model = FAMILIES["wan"].build(0)
    results = {}

    def keep(module, args, output):
        results[module] = output.numel() * output.element_size()

    handles = [u.module.register_forward_hook(keep) for u in find_units(model, "module", unit_kinds("module"))]
    sample("wan", model)
    for handle in handles:
        handle.remove()
    accelerate_model(model, method, interval=3)
    sample("wan", model)
    assert {s.cached_bytes for s in model.diffcache.stats().segments} == {depth * sum(results.values())}


def test_results_are_not_copied():
    model = FAMILIES["wan"].build(0)
    accelerate_model(model, "fora", interval=3)
    seen = {}
    model.blocks[0].ffn.net[2].register_forward_hook(lambda m, a, out: seen.setdefault(out.data_ptr(), out))
    for _ in walk_steps("wan", model, 3):
        ((_, hook),) = model.diffcache.hooks.values()
        for branch in hook.segment.branches.values():
            (value,) = branch.cache.slots["blocks.0.ffn"].values[0]
            assert value.data_ptr() in seen


def test_a_stored_result_that_somebody_overwrites_is_not_used_again():
    model = FAMILIES["wan"].build(0)
    accelerate_model(model, "fora", interval=3)
    for step, _ in enumerate(walk_steps("wan", model, 8)):
        if step == 3:
            ((_, hook),) = model.diffcache.hooks.values()
            for branch in hook.segment.branches.values():
                branch.cache.slots["blocks.0.ffn"].values[0][0].add_(1.0)
    assert decisions(model)[0][4] == "F"
    assert {f.reason for s in model.diffcache.stats().segments for f in s.fallbacks} == {
        "a stored result was written to by the model"
    }


def test_pab_computes_each_kind_at_its_own_range():
    pipe = accelerate_pipeline(wan_pipeline(), "pab", spatial=2, cross=4, low=0, high=1001)
    calls = {}
    block = pipe.transformer.blocks[0]
    for name in ("attn1", "attn2", "ffn"):
        inner = getattr(block, name).to_q if name != "ffn" else getattr(block, name).net[2]
        inner.register_forward_pre_hook(lambda m, a, name=name: calls.update({name: calls.get(name, 0) + 1}))
    run_wan(pipe, 12)
    (letters,) = {s.decisions for s in pipe.diffcache.stats().segments}
    assert letters == "FcpcFcpcFcpF"
    branches = len(pipe.diffcache.stats().segments)
    assert calls == {"ffn": 12 * branches, "attn1": 7 * branches, "attn2": 4 * branches}


def test_a_predictor_that_measures_tokens_is_refused():
    with pytest.raises(ConfigError, match="predictor: trend measures every token"):
        accelerate_model(FAMILIES["wan"].build(0), "interval", site="module", predictor="trend")


def test_a_kind_that_the_model_lacks_is_refused():
    with pytest.raises(UnsupportedModelError, match="no module of kind cross, temporal; it has: "):
        accelerate_model(FAMILIES["dit"].build(0), "pab", spatial=None)


def test_a_module_that_was_not_called_when_computing_runs():
    """A value that is missing is no reason to invent one."""
    model = FAMILIES["wan"].build(0)
    accelerate_model(model, "fora", interval=4)
    kind, skipped = FAMILIES["wan"], model.blocks[1]
    with torch.no_grad(), denoising(model, 6):
        for step in range(6):
            if step == 1:
                ((_, hook),) = model.diffcache.hooks.values()
                for branch in hook.segment.branches.values():
                    del branch.cache.slots["blocks.1.ffn"]
            ran = []
            handle = skipped.ffn.net[2].register_forward_pre_hook(lambda m, a, ran=ran: ran.append(1))
            model(
                hidden_states=kind.latents(step, 1, 2),
                timestep=kind.time(1 - step / 6)[None],
                **kind.conditioning(1, 1),
            )
            handle.remove()
            if step == 1:
                assert ran
