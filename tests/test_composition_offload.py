"""Offloading and layerwise casting beside a method, put on before it or after it.

Everything here runs on the CPU, where onloading moves nothing: what is proved is that the hooks of accelerate and of
diffusers and ours stay in order over several calls, come off in any order, and that values are the same. Only a GPU can
show that weights are where they should be when a step is predicted, and that copies overlap with work.
"""

from __future__ import annotations

import accelerate
import pytest
import torch

from diffcache import accelerate_pipeline, restore

from .composing import LETTERS, ORDERS, alone, check_law_1, check_skipping, composed
from .models import decisions, run_wan, wan_pipeline


def model_offload(pipe):
    pipe.enable_model_cpu_offload(device="cpu")


def sequential_offload(pipe):
    """What ``enable_sequential_cpu_offload`` does, which names its device ``cpu:0``: accelerate stumbles over that."""
    for name in ("transformer", "transformer_2"):
        if getattr(pipe, name, None) is not None:
            accelerate.cpu_offload(getattr(pipe, name), torch.device("cpu"), offload_buffers=True)


def block_groups(pipe):
    pipe.transformer.enable_group_offload(torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1)


def leaf_groups(pipe):
    pipe.transformer.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")


def casting(pipe):
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


SETUPS = {f.__name__: f for f in (model_offload, sequential_offload, block_groups, leaf_groups, casting)}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("setup", SETUPS)
def test_never_skipping_is_the_bare_pipeline(setup, order):
    check_law_1(SETUPS[setup], order, "body")  # the site with the most hooks


CASES = [
    *((setup, order, "body") for setup in SETUPS for order in ORDERS),
    *((setup, "after", site) for setup in ("model_offload", "block_groups") for site in ("output", "module")),
    *((setup, "before", site) for setup in ("sequential_offload", "casting") for site in ("output", "module")),
]


@pytest.mark.parametrize(("setup", "order", "site"), CASES)
def test_steps_are_predicted_in_every_call(setup, order, site):
    latents = check_skipping(SETUPS[setup], order, site)
    if setup != "casting":
        assert torch.equal(latents, alone(site))


@pytest.mark.parametrize(("order", "site"), [("before", "body"), ("after", "module")])
def test_weights_on_the_disk(order, site, tmp_path):
    """Mapped from a file they may round otherwise than in memory: the bare pipeline is offloaded in the same way."""

    def setup(pipe):
        pipe.transformer.enable_group_offload(
            torch.device("cpu"),
            offload_type="block_level",
            num_blocks_per_group=1,
            offload_to_disk_path=str(tmp_path / str(id(pipe))),
        )

    check_law_1(setup, order, site)
    check_skipping(setup, order, site)


@pytest.mark.parametrize("order", ORDERS)
def test_offloading_taken_off_leaves_the_method_on(order):
    pipe = composed(model_offload, order)
    wanted = run_wan(pipe, 9)
    pipe.remove_all_hooks()
    assert torch.equal(run_wan(pipe, 9), wanted)
    assert decisions(pipe) == [LETTERS] * 2
    restore(pipe)
    assert torch.equal(run_wan(pipe, 9), run_wan(wan_pipeline(), 9))


@pytest.mark.parametrize("order", ORDERS)
def test_a_method_taken_off_does_not_come_back_with_the_offloading_hooks(order):
    pipe = composed(model_offload, order)
    run_wan(pipe, 9)
    restore(pipe)
    pipe.remove_all_hooks()
    assert torch.equal(run_wan(pipe, 9), run_wan(wan_pipeline(), 9))


def test_another_method_under_offloading_replaces_the_first():
    pipe = composed(model_offload, "before")
    run_wan(pipe, 9)
    accelerate_pipeline(pipe, "interval", interval=2)
    fresh = accelerate_pipeline(wan_pipeline(), "interval", interval=2)
    for _ in range(2):
        assert torch.equal(run_wan(pipe, 9), run_wan(fresh, 9))
        assert decisions(pipe) == decisions(fresh)
