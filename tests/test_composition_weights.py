"""What changes the weights or what works on them, after acceleration: LoRA, quantisers, types, attention backends."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

from .composing import LETTERS, ORDERS, SITES, alone, check_law_1, check_skipping, composed
from .models import decisions, flux_pipeline, normal, run_flux, run_wan, wan_pipeline


@pytest.fixture(autouse=True)
def _same_backend_afterwards(monkeypatch):
    """``set_attention_backend`` of one model sets diffusers' backend for all."""
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", _AttentionBackendRegistry._active_backend)


# -- LoRA --------------------------------------------------------------------------------------------------------------


def lora(pipe, *targets, seed=0):
    """A LoRA file's content for linear layers of the denoiser."""
    state = {}
    for name in targets:
        layer = pipe.transformer.get_submodule(name)
        state[f"transformer.{name}.lora_A.weight"] = normal(2, layer.in_features, seed=seed + 1, scale=0.3)
        state[f"transformer.{name}.lora_B.weight"] = normal(layer.out_features, 2, seed=seed + 2, scale=0.3)
    return state


WAN_TARGETS = ("blocks.0.attn1.to_q", "blocks.0.ffn.net.0.proj", "blocks.1.attn2.to_v", "proj_out")
FLUX_TARGETS = ("transformer_blocks.0.attn.to_k", "single_transformer_blocks.0.proj_out", "norm_out.linear", "proj_out")


def wan_lora(pipe, name="one", seed=0):
    pipe.load_lora_weights(lora(pipe, *WAN_TARGETS, seed=seed), adapter_name=name)


def flux_lora(pipe, name="one", seed=0):
    pipe.load_lora_weights(lora(pipe, *FLUX_TARGETS, seed=seed), adapter_name=name)


KINDS = {"wan": (wan_pipeline, run_wan, wan_lora), "flux": (flux_pipeline, run_flux, flux_lora)}


#: Flux has what is hardest: LoRA on the very layers that the sites have their hooks on
WHERE = [("wan", "output"), ("flux", "output"), ("flux", "body"), ("flux", "module")]


@pytest.fixture(name="peft", scope="module")
def _peft():
    return pytest.importorskip("peft")


@pytest.mark.parametrize(("kind", "order"), [("wan", "after"), ("flux", "before")])
def test_never_skipping_with_lora_is_the_bare_pipeline_with_lora(kind, order, peft):
    build, run, load = KINDS[kind]
    check_law_1(load, order, "body", build, run)


@pytest.mark.parametrize(("kind", "site"), WHERE)
def test_lora_before_and_after_acceleration_are_one(kind, site, peft):
    build, run, load = KINDS[kind]
    before = check_skipping(load, "before", site, build, run)
    assert torch.equal(check_skipping(load, "after", site, build, run), before)
    assert not torch.equal(before, alone(site, build, run))


@pytest.mark.parametrize(("kind", "site"), WHERE)
def test_lora_between_two_calls(kind, site, peft):
    """Loaded and unloaded after calls that have shown where things are: every call is that of a fresh pipeline."""
    build, run, load = KINDS[kind]
    pipe = composed(lambda pipe: None, "before", build, site=site)
    assert torch.equal(run(pipe, 9), alone(site, build, run))
    load(pipe)
    with_lora = composed(load, "before", build, site=site)
    assert torch.equal(run(pipe, 9), run(with_lora, 9))
    assert set(decisions(pipe)) == {LETTERS}
    for either in (pipe, with_lora):
        either.unload_lora_weights()
        assert torch.equal(run(either, 9), alone(site, build, run))
        assert set(decisions(either)) == {LETTERS}


CHANGES = {
    "loaded": lambda pipe: wan_lora(pipe, "three", seed=20),
    "switched": lambda pipe: pipe.set_adapters("two"),
    "rescaled": lambda pipe: pipe.set_adapters("one", 0.5),
    "blended": lambda pipe: pipe.set_adapters(["one", "two"], [0.7, 0.3]),
    "disabled": lambda pipe: pipe.disable_lora(),
    "fused": lambda pipe: pipe.fuse_lora(adapter_names=["one"]),
    "deleted": lambda pipe: pipe.delete_adapters("one"),
    "unloaded": lambda pipe: pipe.unload_lora_weights(),
}


def prepared(pipe):
    wan_lora(pipe, "one")
    wan_lora(pipe, "two", seed=10)
    pipe.set_adapters("one")


@pytest.mark.parametrize(
    ("change", "site"), [*((change, "output") for change in CHANGES), ("loaded", "body"), ("unloaded", "module")]
)
def test_a_change_of_lora_in_mid_run_is_computed_and_counted(change, site, peft):
    pipe = composed(prepared, "before", site=site)

    def act(pipe, step, t, kwargs):
        if step == 3:
            CHANGES[change](pipe)
        return kwargs

    assert run_wan(pipe, 12, callback_on_step_end=act).isfinite().all()
    for segment in pipe.diffcache.stats().segments:
        assert segment.decisions[:5] == "FFFcF"
        assert "c" in segment.decisions[5:]
        assert [(f.step, f.reason) for f in segment.fallbacks] == [(4, "weights or adapters changed")]


@pytest.mark.parametrize("site", SITES)
def test_after_a_change_in_mid_run_the_new_weights_are_used(site, peft):
    """The steps from the change on are those of a pipeline that never had the LoRA, given the same latents."""
    pipe = composed(prepared, "before", site=site, warmup=3)
    plain = wan_pipeline()
    inputs, outputs = [], []

    def note(module, args, kwargs, output):
        inputs.append(kwargs)
        outputs.append(output[0])

    watch = pipe.transformer.register_forward_hook(note, with_kwargs=True)

    def act(pipe, step, t, kwargs):
        if step == 3:
            pipe.unload_lora_weights()
        return kwargs

    run_wan(pipe, 9, callback_on_step_end=act)
    watch.remove()
    assert decisions(pipe)[0][4] == "F"
    with torch.no_grad():
        for call in (8, 9):  # both branches of step 4
            assert torch.equal(plain.transformer(**inputs[call])[0], outputs[call])


def fused(pipe):
    wan_lora(pipe)
    pipe.fuse_lora()


def unfused(pipe):
    fused(pipe)
    pipe.unfuse_lora()


def test_fused_and_unfused_between_two_calls(peft):
    site = "body"
    pipe = composed(wan_lora, "before", site=site)
    for act, setup in (("fuse_lora", fused), ("unfuse_lora", unfused)):
        getattr(pipe, act)()
        assert torch.equal(run_wan(pipe, 9), run_wan(composed(setup, "before", site=site), 9))
        assert decisions(pipe) == [LETTERS] * 2


# -- quantisers --------------------------------------------------------------------------------------------------------


def torchao_int8(pipe):
    torchao = pytest.importorskip("torchao.quantization")
    torchao.quantize_(pipe.transformer, torchao.Int8WeightOnlyConfig())


def torch_int8(pipe):
    """torch's own dynamic quantisation, which puts other modules in place of the blocks' linear layers."""
    torch.ao.quantization.quantize_dynamic(pipe.transformer.blocks, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)


QUANTISERS = {"torchao": torchao_int8, "torch": torch_int8}


@pytest.mark.parametrize(("quantiser", "order"), [("torchao", "after"), ("torch", "before")])
def test_never_skipping_on_quantised_weights(quantiser, order):
    check_law_1(QUANTISERS[quantiser], order, "body")


@pytest.mark.parametrize(("quantiser", "site"), [*(("torchao", site) for site in SITES), ("torch", "body")])
def test_quantised_before_and_after_acceleration_are_one(quantiser, site):
    latents = [check_skipping(QUANTISERS[quantiser], order, site) for order in ORDERS]
    assert torch.equal(*latents)
    assert not torch.equal(latents[0], alone(site))


# -- types and attention -----------------------------------------------------------------------------------------------


def half(pipe):
    pipe.to(torch.bfloat16)


def test_never_skipping_in_another_type():
    check_law_1(half, "after", "body")


@pytest.mark.parametrize("site", SITES)
def test_another_type_before_after_and_between_two_calls(site):
    wanted = check_skipping(half, "before", site)
    pipe = composed(lambda pipe: None, "before", site=site)
    run_wan(pipe, 9)
    half(pipe)
    assert torch.equal(run_wan(pipe, 9), wanted)
    assert decisions(pipe) == [LETTERS] * 2


class Sharper(WanAttnProcessor):
    """An attention of the user's own: a processor that changes what comes out."""

    def __call__(self, attn, hidden_states, *args, **kwargs):
        return super().__call__(attn, hidden_states, *args, **kwargs) * 1.5


def processor(pipe):
    for block in pipe.transformer.blocks:
        block.attn1.set_processor(Sharper())


def backend(pipe):
    pipe.transformer.set_attention_backend("_native_math")


ATTENTIONS = {"processor": processor, "backend": backend}


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_never_skipping_with_another_attention(attention):
    check_law_1(ATTENTIONS[attention], "after", "module")


@pytest.mark.parametrize(("attention", "site"), [*(("processor", site) for site in SITES), ("backend", "module")])
def test_another_attention_between_two_calls(attention, site):
    fresh = check_skipping(ATTENTIONS[attention], "before", site)
    pipe = composed(lambda pipe: None, "before", site=site)
    run_wan(pipe, 9)
    ATTENTIONS[attention](pipe)
    assert torch.equal(run_wan(pipe, 9), fresh)
    assert decisions(pipe) == [LETTERS] * 2
