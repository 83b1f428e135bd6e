"""Site ``token``: attentions in their parts, with kernel P between, are what the modules compute on the same rows."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from torch.ao.nn.quantized import reference

from diffcache import denoising
from diffcache.kernels.dispatch import Kernel

from .denoisers import DENOISERS
from .denoisers.running import STEPS, bare, equal, model_of, run
from .models import decisions, dit
from .test_site_tokens import CLASSES, put_on, site_of
from .test_site_tokens_packed import steps_of

FLUX = "FluxTransformer2DModel"
#: its angles are another one for each head
WITHOUT = ["LTXVideoTransformer3DModel"]
UNKNOWN = "what it does to its queries and keys is not known"


def leave(site, why="for once"):
    """Attentions run as they are written from here on."""
    for known in site._lessons.values():
        for lesson in known.units.values():
            if lesson.form is not None:
                lesson.form, lesson.unformed = None, why


def outputs_of(name, before=lambda step, model: None, put=lambda model: None, keep=0.4):
    """Of a model of its own, steps told by ``before``; and the site, and what kernels ``stats()`` says did not run."""
    model = DENOISERS[name].tiny()
    put(model)
    put_on(model, lambda offset, depth, kind: keep)
    arguments, outputs = DENOISERS[name].trajectory(), []
    with torch.no_grad(), denoising(model, STEPS):
        for step in range(STEPS):
            before(step, model)
            outputs.append(model(**arguments(1.0 - step / STEPS)).sample.clone())
    return outputs, site_of(model), model.diffcache.stats().segments[0].slow_kernels


def close(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("name", [name for name in CLASSES if name not in WITHOUT])
def test_parts_equal_the_module(name, packs, monkeypatch):
    """In whole blocks on packed rows, and module by module; P makes queries where the parts are run, and only there."""
    bare(name)
    found, queries, run_kernel = [], [], Kernel.__call__

    def noted(kernel, *args):
        queries[-1] += kernel.name == "project_epilogue" and args[0] is not None
        return run_kernel(kernel, *args)

    monkeypatch.setattr(Kernel, "__call__", noted)
    for parts in (True, False):
        model = model_of(name)
        put_on(model, lambda offset, depth, kind: 0.4)
        site = site_of(model)
        site.packs = packs

        def before(step, arguments, parts=parts, site=site):
            if step == 1:
                assert set(site.unformed.values()) == {None}
                queries.append(0)
                if not parts:
                    leave(site)
            return arguments

        try:
            queries.append(0)  # in lessons
            found.append(run(name, before=before))
            slow = model.diffcache.stats().segments[0].slow_kernels
        finally:
            model.diffcache.restore()
        assert set(slow) == (set() if parts else {"project_epilogue: for once"})
    assert queries[1] >= len(site.unformed) * (STEPS - 1)
    assert queries[3] == 0
    for a, b in zip(*found, strict=True):
        close(a, b)


@pytest.mark.parametrize("name", WITHOUT)
def test_what_is_not_known_runs_as_it_is_written_and_is_counted(name):
    bare(name)
    model = model_of(name)
    put_on(model, lambda offset, depth, kind: 0.4)
    try:
        run(name)
        assert set(site_of(model).unformed.values()) == {UNKNOWN}
        attentions = 2 * (STEPS - 1)
        assert model.diffcache.stats().segments[0].slow_kernels == {f"project_epilogue: {UNKNOWN}": attentions}
    finally:
        model.diffcache.restore()


# -- parts that are no plain product -----------------------------------------------------------------------------------


def adapter(model):
    peft = pytest.importorskip("peft")
    targets = [f"transformer_blocks.0.attn.{part}" for part in ("to_q", "add_v_proj", "to_out.0")]
    model.add_adapter(peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False))


def halves(model):
    """Projections made in one, in the double block."""
    model.transformer_blocks[0].attn.fuse_projections()


def quantised(model):
    """Coarse weights beside the fine ones that they were made of."""
    scheme = {"qscheme": torch.per_tensor_affine, "dtype": torch.qint8, "scale": 0.1, "zero_point": 0}
    for name in ("to_q", "to_k", "add_v_proj"):
        attention = model.transformer_blocks[0].attn
        setattr(attention, name, reference.Linear.from_float(getattr(attention, name), scheme))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("put", [adapter, halves, quantised])
def test_projections_of_any_kind_are_run(put):
    torch.manual_seed(0)
    found, site, _ = outputs_of(FLUX, put=put)
    torch.manual_seed(0)
    wanted, _, _ = outputs_of(FLUX, lambda step, model: leave(site_of(model)) if step == 1 else None, put=put)
    plain, _, _ = outputs_of(FLUX)
    assert set(site.unformed.values()) == {None}
    close(found, wanted)
    changed = [not torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(found, plain, strict=True)]
    assert all(changed) or put is halves


def test_an_adapter_that_comes_later_is_run():
    """What was learned holds for the model, and is no reason to go on with the weights of then."""
    torch.manual_seed(0)
    model = DENOISERS[FLUX].tiny()
    put_on(model, lambda offset, depth, kind: 0.4)
    arguments, found = DENOISERS[FLUX].trajectory(), []
    for late in (False, True):
        if late:
            adapter(model)
        with torch.no_grad(), denoising(model, STEPS):
            found.append([model(**arguments(1.0 - step / STEPS)).sample.clone() for step in range(STEPS)])
        assert set(decisions(model)) == {"Fpppp"}
    site = site_of(model)
    assert set(site.unformed.values()) == {None}
    leave(site)
    with torch.no_grad(), denoising(model, STEPS):
        close(found[1], [model(**arguments(1.0 - step / STEPS)).sample for step in range(STEPS)])
    assert not any(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(*found, strict=True))


# -- what may not be passed over ---------------------------------------------------------------------------------------


class Louder(FluxAttnProcessor):
    """Attends as ever, and says it louder."""

    def __call__(self, attn, *args, **kwargs):
        result = super().__call__(attn, *args, **kwargs)
        return tuple(1.5 * part for part in result) if isinstance(result, tuple) else 1.5 * result


def louder(step, model):
    if step == 2:
        model.transformer_blocks[0].attn.set_processor(Louder())


def hooked(step, model):
    if step == 2:
        norm = model.transformer_blocks[0].attn.norm_q
        norm.register_forward_hook(lambda module, args, result: 1.5 * result)


@pytest.mark.parametrize(
    ("change", "why"), [(louder, "its processor is another one"), (hooked, "its norms have hooks")]
)
def test_what_was_changed_since_runs_as_it_is_written(change, why):
    def alone(step, model):
        change(step, model)
        if step == 1:
            leave(site_of(model))

    found, _, slow = outputs_of(FLUX, change)
    wanted, _, _ = outputs_of(FLUX, alone)
    plain, _, _ = outputs_of(FLUX)
    close(found, wanted)
    assert slow == {f"project_epilogue: {why}": STEPS - 2}
    assert not torch.allclose(found[2], plain[2], rtol=1e-3, atol=1e-4)


def test_a_processor_that_does_more_is_told_by_its_result():
    _, site, slow = outputs_of(FLUX, put=lambda model: model.set_attn_processor(Louder()))
    assert set(site.unformed.values()) == {"its result is more than a product of its attention's"}
    assert sum(slow.values()) == 4 * (STEPS - 1)


@pytest.mark.filterwarnings("ignore::diffcache.NothingSkippedWarning")
def test_positions_that_tell_no_pairs_are_left_to_the_module():
    """All at the origin: no angle shows whether neighbours or halves are turned."""
    name, still = FLUX, {"img_ids": lambda t: torch.zeros_like(t)}
    model = DENOISERS[name].tiny()
    put_on(model, lambda offset, depth, kind: 0.4)
    arguments = DENOISERS[name].trajectory()(1.0)
    with torch.no_grad(), denoising(model, 1):
        model(**{key: still.get(key, lambda t: t)(value) for key, value in arguments.items()})
    assert set(site_of(model).unformed.values()) == {"its positions do not tell which elements are a pair"}


def test_fp64_is_left_to_the_modules():
    model = dit().double()
    put_on(model, lambda offset, depth, kind: 0.5)
    steps_of(model, dtype=torch.float64)
    assert all("fp64" in why for why in site_of(model).unformed.values())


def test_inference_mode_gives_the_same():
    found = []
    for mode in (torch.no_grad, torch.inference_mode):
        bare(FLUX)
        model = model_of(FLUX)
        put_on(model, lambda offset, depth, kind: 0.4)
        try:
            with mode():
                found.append(run(FLUX))
            assert set(site_of(model).unformed.values()) == {None}
        finally:
            model.diffcache.restore()
    assert all(equal(a, b) for a, b in pairwise(found))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parts_are_no_less_exact_in_16_bits(dtype):
    def outputs(parts, kind):
        model = dit().to(dtype).to(kind)
        put_on(model, lambda offset, depth, kind: 0.5)
        found = steps_of(model, dtype=kind, before=lambda step: None if parts or step != 1 else leave(site_of(model)))
        assert set(site_of(model).unformed.values()) == ({None} if parts else {"for once"})
        return torch.cat(found).float()

    exact = outputs(False, torch.float32)
    found, module = ((outputs(parts, dtype) - exact).norm() for parts in (True, False))
    assert found < 1.2 * module
