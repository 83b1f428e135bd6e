"""Site body: the boundary stays right where the model adds something between or after its blocks."""

from __future__ import annotations

import pytest
import torch

from diffcache import accelerate_model, denoising

from .models import FAMILIES, decisions, normal

KIND = FAMILIES["flux"]


def loop(model, steps=9, double=None, single=None, after=None):
    """Constant input; ControlNet residuals of step s are scaled by ``after(s)``."""
    outputs = []
    with torch.no_grad(), denoising(model, steps):
        for step in range(steps):
            scale = 1.0 if after is None else after(step)
            outputs.append(
                model(
                    hidden_states=KIND.latents(0, 1, 2),
                    timestep=torch.tensor([1.0 - 1e-7 * step]),
                    **KIND.conditioning(1, 1),
                    **KIND.fixed(2),
                    controlnet_block_samples=None if double is None else [double * scale],
                    controlnet_single_block_samples=None if single is None else [single * scale],
                    return_dict=False,
                )[0]
            )
    return outputs


RESIDUALS = {
    "between": dict(double=normal(1, 16, 32, seed=5)),
    "after each single block": dict(single=normal(1, 16, 32, seed=6)),
    "both": dict(double=normal(1, 16, 32, seed=5), single=normal(1, 16, 32, seed=6)),
}


@pytest.mark.parametrize("where", RESIDUALS)
def test_controlnet_residuals_are_part_of_the_body(where):
    model = KIND.build(0)
    dense = loop(model, **RESIDUALS[where])
    assert not torch.allclose(dense[0], loop(model)[0], atol=1e-3)
    accelerate_model(model, "interval", interval=3, site="body")
    outputs = loop(model, **RESIDUALS[where])
    assert "c" in decisions(model)[0]
    for a, b in zip(outputs, dense, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_the_head_runs_with_the_timestep_of_now():
    """Between site output and site body: the final norm is modulated by the current timestep, also when predicted."""
    kind = FAMILIES["wan"]
    model = accelerate_model(kind.build(0), "interval", interval=6, site="body")
    outputs = []
    with torch.no_grad(), denoising(model, 8):
        for step in range(8):
            outputs.append(
                model(
                    hidden_states=kind.latents(0, 1, 2),
                    timestep=kind.time(1 - step / 8)[None],
                    **kind.conditioning(1, 1),
                ).sample
            )
    assert decisions(model)[0].startswith("FFFcc")
    assert not torch.equal(outputs[3], outputs[2])
    assert not torch.equal(outputs[4], outputs[3])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_residual_of_one_step_replayed_at_once_is_the_dense_output(family):
    """The step after a computed one with the same input: body's boundary holds nothing back and adds nothing."""
    kind = FAMILIES[family]
    model = kind.build(0)
    call = dict(**kind.conditioning(1, 1), **kind.fixed(2), return_dict=False)
    inputs = [kind.latents(s, 1, 2) for s in (0, 1, 2, 2)]
    times = [kind.time(x)[None] for x in (0.9, 0.8, 0.7, 0.699)]
    with torch.no_grad():
        dense = model(hidden_states=inputs[3], timestep=times[3], **call)[0]
        accelerate_model(model, "interval", interval=8, site="body", warmup=3)
        with denoising(model, 8):
            for x, t in zip(inputs, times, strict=True):
                output = model(hidden_states=x, timestep=t, **call)[0]
    assert decisions(model) == ["FFFc"]
    # the timestep moved by a thousandth: what the blocks would add has hardly changed
    assert (output - dense).norm() < 0.02 * dense.norm()
