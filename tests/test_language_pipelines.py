"""Diffusers' pipelines and transformers' own loop of diffusion language models, with forwards of the block alone."""

from __future__ import annotations

import pytest
import torch
from diffusers import BlockRefinementScheduler, DiffusionGemmaPipeline, EntropyBoundScheduler, LLaDA2Pipeline
from transformers import (
    DiffusionGemmaConfig,
    DiffusionGemmaForBlockDiffusion,
    DiffusionGemmaTextConfig,
    Gemma4VisionConfig,
    Glm4MoeForCausalLM,
)

from diffcache import UnsupportedModelError, accelerate_model, accelerate_pipeline, restore, supports
from diffcache.llm import HeadMask, declare
from diffcache.llm.pipelines import listening
from diffcache.llm.pipelines.reuse import Reuse
from diffcache.methods import make_config

from .language import BLOCK, MASK, llada2, prompt
from .reads import Reads, ignore_inside, watched


class BlockCausal(Glm4MoeForCausalLM):
    """What a LLaDA2 checkpoint's own code does: a 2-D mask becomes a block-causal one."""

    def forward(self, input_ids, attention_mask, **kwargs):
        blocks = torch.arange(input_ids.shape[1]) // BLOCK
        mask = (blocks[:, None] >= blocks[None, :])[None, None] & attention_mask.bool()[:, None, None, :]
        mask = mask | torch.eye(input_ids.shape[1], dtype=torch.bool)[None, None]
        return super().forward(input_ids, attention_mask=mask, use_cache=False, **kwargs)


def pipeline(model):
    pipe = LLaDA2Pipeline(model, BlockRefinementScheduler(block_length=BLOCK))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe, ids, **more):
    settings = dict(gen_length=11, block_length=BLOCK, num_inference_steps=8, mask_token_id=MASK, threshold=0.3)
    return pipe(input_ids=ids, output_type="seq", **{**settings, **more}).sequences


def reference():
    model = llada2()
    twin = BlockCausal(model.config).eval()
    twin.load_state_dict(model.state_dict())
    return pipeline(twin)


@pytest.mark.parametrize("editing", [0.0, 0.2])
@pytest.mark.parametrize("method", ["freecache", "flashblock:dirty=1"])
def test_llada2_pipeline_is_exact_on_a_block_causal_model(method, editing):
    pipe = accelerate_pipeline(pipeline(llada2()), method)
    bare = reference()
    for ids in (prompt(2), prompt(2), prompt(1, 5, seed=4)):
        want = run(bare, ids, editing_threshold=editing)
        assert torch.equal(run(pipe, ids, editing_threshold=editing), want)
    stats = pipe.diffcache.stats()
    assert 0.0 < stats.row_share < 0.6
    assert "forwards" in str(stats)


def test_llada2_pipeline_honours_its_padding():
    ids, mask = prompt(2), torch.ones(2, 13, dtype=torch.long)
    mask[0, :3] = 0
    pipe = accelerate_pipeline(pipeline(llada2()), "freecache")
    assert torch.equal(run(pipe, ids, attention_mask=mask), run(reference(), ids, attention_mask=mask))


def test_llada2_pipeline_reuses_and_is_restored():
    pipe = pipeline(llada2())
    bare = run(pipe, prompt(2))
    accelerate_pipeline(pipe, "flashblock:dirty=8")
    run(pipe, prompt(2))
    assert pipe.diffcache.stats().external_used > 0
    pipe.diffcache.reset()
    assert pipe.diffcache.stats().forwards == 0
    restore(pipe)
    assert not hasattr(pipe, "diffcache")
    assert not hasattr(pipe.model, "diffcache")
    assert torch.equal(run(pipe, prompt(2)), bare)


def test_in_a_pipeline_too_each_sequence_is_judged_by_its_own_tokens():
    reuse = Reuse(make_config("flashblock:dirty=2"), llada2())
    ids, inner, heard = prompt(3), (4, 17), []
    for changed in ((), (0, 0), (0, 2), (2, 2), (1, 1), ()):
        for place, sample in enumerate(changed):
            ids = ids.clone()
            ids[sample, place] = (ids[sample, place] + 1) % 60
        asked = reuse.asks(ids)
        heard.append(reuse.next(inner, None if asked is None else asked.tolist()).fresh)
    assert heard == [None, (0,), (), (2,), (1,), ()]


def test_the_hook_reads_the_device_once_a_step():
    """What experts read of their own is theirs."""
    pipe, reads = accelerate_pipeline(pipeline(llada2()), "flashblock:dirty=3"), Reads()
    ignore_inside(pipe.model.model, reads)
    hooked = pipe.model.forward

    def counted(*args, **kwargs):
        with watched(reads):
            return hooked(*args, **kwargs)

    pipe.model.forward = counted
    run(pipe, prompt(2))
    stats = pipe.diffcache.stats()
    assert stats.external_used > 0
    assert reads.count == stats.steps


def test_llada2_pipeline_refuses_what_would_not_be_exact():
    with pytest.raises(UnsupportedModelError, match="declared bidirectional: keys of the prefix move"):
        accelerate_pipeline(pipeline(declare(llada2(), mask_id=MASK)), "freecache")
    with pytest.raises(UnsupportedModelError, match="block-causal model are exact"):
        accelerate_pipeline(pipeline(llada2()), "elastic")
    assert supports(pipeline(llada2()), "freecache").status == "exact"
    assert supports(pipeline(llada2()), "flashblock").status == "works"
    assert supports(pipeline(llada2()), "dkv").status == "refused"


# -- DiffusionGemma ----------------------------------------------------------------------------------------------------


def gemma():
    torch.manual_seed(0)
    text = DiffusionGemmaTextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, global_head_dim=8, num_global_key_value_heads=1, sliding_window=16,
        num_experts=4, top_k_experts=2, moe_intermediate_size=16, initializer_range=0.3,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    )  # fmt: skip
    vision = Gemma4VisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    return DiffusionGemmaForBlockDiffusion(
        DiffusionGemmaConfig(text_config=text, vision_config=vision, canvas_length=8)
    ).eval()


def sequences(model, length=21):
    torch.manual_seed(1)
    return model.generate(prompt(2, length) + 1, max_new_tokens=16, max_denoising_steps=6).sequences


@pytest.mark.parametrize("length", [9, 21])
def test_diffusion_gemma_with_nothing_reused_is_its_own_loop(length):
    """A prompt longer than the sliding window, and a shorter one."""
    model = gemma()
    bare = sequences(model, length)
    accelerate_model(model, "flashblock:dirty=0")
    assert torch.equal(sequences(model, length), bare)
    assert model.diffcache.stats().external_used == 0
    restore(model)
    assert torch.equal(sequences(model, length), bare)


def test_diffusion_gemma_reuses_what_a_calibrated_mask_lets_it(tmp_path):
    model = gemma()
    bare = sequences(model)
    with listening(model, similarity=-1.0, shift=1e6) as masks:
        assert torch.equal(sequences(model), bare)
    assert not masks[0].recompute[:, 1:6].any()
    masks[0].save(tmp_path / "none.safetensors")
    HeadMask(torch.ones_like(masks[0].recompute), type(model).__name__).save(tmp_path / "all.safetensors")
    accelerate_model(model, "flashblock", heads=str(tmp_path / "all.safetensors"))
    assert torch.equal(sequences(model), bare)
    accelerate_model(model, "flashblock", heads=str(tmp_path / "none.safetensors"))
    sequences(model)
    stats = model.diffcache.stats()
    assert stats.external_used >= stats.steps - 4
    assert 0.0 < stats.external_share < 1.0
    with pytest.raises(UnsupportedModelError, match="only flashblock saves more"):
        accelerate_model(model, "freecache")


class Processor:
    """Token ids for every prompt; no tokenizer is needed for the law."""

    eos_token_id = None

    def apply_chat_template(self, messages, **kwargs):
        return {"input_ids": prompt(len(messages), 21) + 1}


def bridged(model):
    """diffusers 0.42.1 still calls the cache of one function by the name that transformers 5.24 has given up."""
    decoder = model.model.decoder
    make = decoder.create_diffusion_decoder_attention_mask
    decoder.create_diffusion_decoder_attention_mask = lambda past_key_values, **more: make(
        cache=past_key_values, **more
    )
    return model


def test_diffusion_gemma_pipeline_with_nothing_reused_is_its_own_loop():
    pipe = DiffusionGemmaPipeline(bridged(gemma()), EntropyBoundScheduler(), Processor())
    pipe.set_progress_bar_config(disable=True)

    def run_it():
        draw = torch.Generator().manual_seed(3)
        call = dict(gen_length=16, num_inference_steps=4, output_type="seq", generator=draw)
        return pipe(prompt=["a", "b"], confidence_threshold=None, **call).sequences

    bare = run_it()
    accelerate_pipeline(pipe, "flashblock:dirty=0")
    assert torch.equal(run_it(), bare)
    assert pipe.diffcache.stats().steps == 8
    accelerate_pipeline(pipe, "flashblock:dirty=100")
    assert run_it().shape == bare.shape
    assert pipe.diffcache.stats().external_used > 0
    restore(pipe)
    assert torch.equal(run_it(), bare)
