"""Site ``token`` on denoisers that are told the time of each token: its gates, scales and shifts are put in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    AnyFlowTransformer3DModel,
    CosmosTransformer3DModel,
    Flux3Transformer2DModel,
    HeliosTransformer3DModel,
    WanTransformer3DModel,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from diffcache import denoising
from diffcache.hooks.selection import Place, Unfit
from diffcache.hooks.symbols import Meaning, Symbol

from .denoisers.base import HEADS, LATENT, TEXT, WORDS
from .denoisers.flux import FOUR_AXES
from .denoisers.wan import SMALL
from .models import normal, randomise, seeded
from .test_site_tokens import put_on, site_of, table

#: of three frames
TIMES = torch.tensor([0.2, 0.6, 1.0]) * 1000.0


@dataclass(frozen=True)
class Case:
    """A denoiser, and the arguments of its call at a step."""

    make: Callable[[], nn.Module]
    call: Callable[[int], dict[str, Any]]


def _film(step: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_states": normal(1, 4, 3, 8, 8, seed=step),
        "encoder_hidden_states": normal(1, WORDS, TEXT, seed=7),
        **more,
    }


def _anyflow(step: int) -> dict[str, Any]:
    times = (TIMES - 20 * step)[None]
    frames = normal(1, 3, 4, 8, 8, seed=step)
    return _film(step, timestep=times, r_timestep=times - 100) | {"hidden_states": frames}


def _flux3(step: int) -> dict[str, Any]:
    ids = torch.cartesian_prod(*map(torch.arange, (1, 1, 4, 4))).float()
    return {
        "hidden_states": normal(1, 16, 16, seed=step),
        "encoder_hidden_states": normal(1, WORDS, TEXT, seed=7),
        "timestep": torch.tensor([0.9 - 0.1 * step]),
        "img_ids": ids,
        "txt_ids": torch.zeros(WORDS, 4),
    }


_cosmos = dict(text_embed_dim=TEXT, adaln_lora_dim=4, max_size=(4, 16, 16), concat_padding_mask=False, mlp_ratio=1.0)
_roped = dict(num_layers=2, rope_max_seq_len=32, **SMALL)
CASES = {
    "AnyFlow": Case(lambda: AnyFlowTransformer3DModel(**_roped), _anyflow),
    "Wan": Case(
        lambda: WanTransformer3DModel(**_roped),
        lambda step: _film(step, timestep=(TIMES - 20 * step).repeat_interleave(16)[None]),
    ),
    "Cosmos": Case(
        lambda: CosmosTransformer3DModel(extra_pos_embed_type=None, **_cosmos, **LATENT, **HEADS),
        lambda step: _film(step, timestep=(TIMES - 20 * step).view(1, 1, 3, 1, 1), fps=8),
    ),
    "Flux3": Case(lambda: Flux3Transformer2DModel(cond_in_channels=16, timestep_channels=16, **FOUR_AXES), _flux3),
    "Helios": Case(
        lambda: HeliosTransformer3DModel(num_layers=2, rope_dim=(4, 4, 4), guidance_cross_attn=False, **SMALL),
        lambda step: _film(
            step,
            timestep=torch.tensor([900.0 - 20 * step]),
            indices_hidden_states=torch.arange(4, 7)[None],
            indices_latents_history_short=torch.arange(2, 4)[None],
            latents_history_short=normal(1, 4, 2, 8, 8, seed=9),
        ),
    ),
}


def steps_of(name, packs=True, keep=None, before=lambda step: None, **settings):
    """Outputs of four steps, and the site."""
    with seeded(0):
        model = randomise(CASES[name].make())
    put_on(model, keep or table(3), **settings)
    site = site_of(model)
    site.packs = packs
    with torch.no_grad(), denoising(model, 4):
        outputs = []
        for step in range(4):
            before(step)
            outputs.append(model(**CASES[name].call(step)).sample.clone())
        return outputs, site


@pytest.mark.parametrize("name", CASES)
def test_what_is_told_for_each_token_is_put_in_order(name):
    """Ranked, in the order of the tokens, and module by module: the same, the first two to the bit."""
    found, site = steps_of(name)
    assert {way for way, _ in site.ways.values()} == {"kernels"}
    (known,) = site._lessons.values()
    assert all(block.modulated for block in known.blocks.values())
    assert all(map(torch.equal, found, steps_of(name, layout="dense")[0]))
    for a, b in zip(found, steps_of(name, packs=False)[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_norms_of_other_tokens_are_not_computed():
    """With a tenth of the tokens no norm sees more rows than that."""
    seen = []

    class Norms(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.native_layer_norm.default:
                seen.append(args[0].shape[1])
            return func(*args, **(kwargs or {}))

    with Norms():
        steps_of("AnyFlow", keep=lambda offset, depth, kind: 0.1, before=lambda step: seen.clear())
    *norms, last = seen
    assert set(norms) == {5}  # of 48
    assert last == 48  # the model's own, behind the blocks


# -- symbols -----------------------------------------------------------------------------------------------------------

A, B = (("a", 0), 0), (("b", 0), 0)


def symbol(part=None):
    """Of six tokens."""
    gates = {} if part is None else {part: None}
    return Symbol.of(torch.zeros(2, 6, 4), Meaning(Place(1, 0, 6), 6, part is None, gates))


def test_a_symbol_knows_gates_scales_and_shifts():
    gate, scale, shift = (torch.randn(2, 6, 4) for _ in range(3))
    x = symbol() + gate * (symbol(A) + symbol(B)).float()
    assert torch.equal(x.meaning.gates[A], gate)
    assert x.meaning.gates[B] is x.meaning.gates[A]
    normed = (F.layer_norm(x.float(), (4,), eps=1e-3) * (1 + scale) + shift).type_as(x)
    assert normed.meaning.norm == ("layer", 1e-3)
    assert normed.shape == (2, 6, 4)
    assert torch.equal(normed.meaning.scale, 1 + scale)
    assert torch.equal(normed.meaning.shift, shift)


def test_text_comes_and_goes():
    joint = torch.cat([torch.zeros(2, 3, 4), F.rms_norm(symbol(), (4,), eps=1e-6)], dim=1)
    assert joint.shape == (2, 9, 4)
    assert joint.meaning.place == Place(1, 3, 9)
    wide = torch.arange(9.0).view(1, 9, 1).expand(2, 9, 4)
    assert torch.equal((joint * wide).meaning.scale, wide[:, 3:])
    text, tokens = torch.split(joint, [3, 6], dim=1)
    assert not isinstance(text, Symbol)
    assert tokens.meaning.place == Place(1, 0, 6)
    assert joint[:, 3:].meaning.place == Place(1, 0, 6)
    assert joint[:, :3].shape == (2, 3, 4)


@pytest.mark.parametrize(
    "does",
    [
        lambda x: x + torch.ones(2, 6, 4),
        lambda x: x * 2.0,
        lambda x: x + x,
        lambda x: x * x,
        lambda x: x.tanh(),
        lambda x: F.layer_norm(symbol(A), (4,)),
        lambda x: F.layer_norm(x, (6, 4)),
        lambda x: F.layer_norm(x, (4,)) + symbol(A),
        lambda x: torch.cat([x, x], 1),
        lambda x: x[:, 2:],
        lambda x: x[0],
        lambda x: torch.add(x, symbol(A), alpha=2),
        lambda x: F.dropout(x, 0.5),
        lambda x: x.mean(),
    ],
)
def test_a_symbol_refuses_what_it_does_not_know(does):
    with pytest.raises(Unfit):
        does(symbol())
