"""FlashBlock on block-causal video: what the rolling cache gives is kept, and merged with the chunk's own attention."""

from __future__ import annotations

import inspect
from functools import cache

import diffusers
import pytest
import torch
from diffusers import AnyFlowFARPipeline, AnyFlowFARTransformer3DModel, FlowMapEulerDiscreteScheduler
from diffusers.models.transformers.transformer_sana_wm_refiner import SanaWMRefinerKVCache
from torch import nn

from diffcache import (
    ConfigError,
    UnsupportedModelError,
    accelerate_model,
    accelerate_pipeline,
    denoising,
    restore,
    supports,
)
from diffcache.llm import HeadMask
from diffcache.llm.pipelines import listening
from diffcache.llm.pipelines.rolling import PORTS

from .denoisers.base import TEXT, WORDS
from .denoisers.video import VIDEO
from .denoisers.wan import SMALL
from .models import normal, randomise, seeded, wan_pipeline
from .reads import Reads, watched

CLOSE = dict(rtol=0.0, atol=1e-5)


def far():
    with seeded(0):
        model = AnyFlowFARTransformer3DModel(num_layers=2, rope_max_seq_len=32, full_chunk_limit=2, **SMALL)
    return randomise(model.float(), 0)


def far_pipeline():
    pipe = AnyFlowFARPipeline(None, None, far(), None, FlowMapEulerDiscreteScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def video(pipe, seed=1):
    """Three chunks, so that one is full and one compressed in the cache, guided in one batch."""
    text = {
        name: normal(1, WORDS, TEXT, seed=at) for at, name in enumerate(("prompt_embeds", "negative_prompt_embeds"))
    }
    return pipe(
        **text, guidance_scale=3.0, height=32, width=32, num_frames=13, chunk_partition=[1, 1, 2],
        num_inference_steps=4, output_type="latent", generator=torch.Generator().manual_seed(seed),
    ).frames  # fmt: skip


@cache
def bare_video():
    return video(far_pipeline())


def refined(model, steps=4, blocks=3):
    """SANA-WM's refinement, as its pipeline does it: a sink, then block after block into the history."""
    cache, text = SanaWMRefinerKVCache(2), {"encoder_hidden_states": normal(1, WORDS, TEXT, seed=9)}
    done = []

    def turns(at):
        return model.build_rotary_emb_for_absolute_positions(1, [at], 2, 4, torch.device("cpu"), 24.0)

    def call(x, level, at, mode):
        time = torch.full((1, 8), 1000.0 * level)
        return model(
            hidden_states=x, timestep=time, video_rotary_emb=turns(at), kv_cache=cache, kv_cache_mode=mode,
            return_dict=False, **text,
        )[0]  # fmt: skip

    with torch.no_grad():
        call(normal(1, 8, 4, seed=3), 0.0, 0, "capture_pre_rope")
        for layer in cache.layer_caches:
            layer.store_sink(*layer.get_captured_pre_rope())
        for block in range(1, blocks + 1):
            cache.sink_pe, x = turns(0), normal(1, 8, 4, seed=10 + block)
            for step in range(steps):
                x = x - call(x, 1.0 - step / steps, block, "inject") / steps
            call(x, 0.0, block, "inject_and_capture_post_rope")
            for layer in cache.layer_caches:
                new, old = layer.get_captured_post_rope(), layer.get_history()
                layer.store_history(*(new if old is None else (torch.cat(pair, 1) for pair in zip(old, new))))
            done.append(x)
    return torch.cat(done, 1)


def refiner():
    return VIDEO["SanaWMLTX2RefinerTransformer3DModel"].tiny()


def test_computing_the_part_outside_at_every_step_is_the_pipeline_itself():
    pipe = accelerate_pipeline(far_pipeline(), "flashblock:dirty=1")
    for _ in range(2):
        torch.testing.assert_close(video(pipe), bare_video(), **CLOSE)
    stats = pipe.diffcache.stats()
    assert (stats.steps, stats.external_used, stats.external_saved) == (24, 0, 0.0)
    restore(pipe)
    assert not [name for part in pipe.transformer.modules() for name in vars(part) if "diffcache" in name]
    assert torch.equal(video(pipe), bare_video())


def test_reuse_counts_steps_and_a_new_video_begins_anew():
    pipe = accelerate_pipeline(far_pipeline(), "flashblock:dirty=2")
    first = video(pipe)
    stats = pipe.diffcache.stats()
    # two chunks of four steps look at a cache; of each, every other step takes it from memory
    assert (stats.external_used, stats.external_saved) == (4, 0.5)
    # of both branches, in each layer: 2 frames of 4 tokens, 2 heads of width 12 that the processor pads to 16
    assert stats.residual_bytes == 4 * 2 * 2 * 8 * 2 * (16 + 1)
    assert 0.0 < (first - bare_video()).abs().max() < 0.3 * bare_video().std()
    video(pipe, seed=2)
    assert torch.equal(video(pipe), first)
    pipe.diffcache.reset()
    assert pipe.diffcache.stats().steps == 0


def test_the_refiners_rolling_cache_is_exact_and_reused():
    model = refiner()
    bare = refined(model)
    accelerate_model(model, "flashblock:dirty=1")
    with denoising(model, 4):
        torch.testing.assert_close(refined(model), bare, **CLOSE)
    accelerate_model(model, "flashblock:dirty=2")
    out = refined(model)
    assert (model.diffcache.stats().external_used, model.diffcache.stats().external_saved) == (6, 0.5)
    assert 0.0 < (out - bare).abs().max() < bare.std()
    restore(model)
    assert torch.equal(refined(model), bare)


def test_a_calibrated_mask_of_heads_decides(tmp_path):
    model = refiner()
    bare = refined(model)
    with listening(model, similarity=-1.0, shift=1e6) as masks:
        torch.testing.assert_close(refined(model), bare, **CLOSE)
    assert not masks[0].recompute[:, 1:4].any()
    masks[0].save(tmp_path / "none.safetensors")
    HeadMask(torch.ones_like(masks[0].recompute), type(model).__name__).save(tmp_path / "all.safetensors")
    accelerate_model(model, "flashblock", heads=tmp_path / "all.safetensors")
    torch.testing.assert_close(refined(model), bare, **CLOSE)
    accelerate_model(model, "flashblock", heads=tmp_path / "none.safetensors")
    refined(model)
    assert model.diffcache.stats().external_used == 9


def test_another_trajectory_over_the_same_cache_computes_anew():
    """The noise rises again, with nothing written in between."""
    hook = accelerate_model(refiner(), "flashblock:dirty=100").diffcache.hook
    keys, x = [torch.zeros(1)], normal(1, 8, 4, seed=0)

    def fresh(level):
        return hook._next(keys, x, torch.tensor([level])).external.fresh

    assert [fresh(level) for level in (4.0, 3.0, 9.0, 8.0)] == [None, (), None, ()]
    keys[0].add_(1.0)  # written again
    assert [fresh(level) for level in (7.0, 6.0)] == [None, ()]
    keys.clear()  # a cache that is gone takes what is stored with it
    assert not list(hook._chunks.values())


def test_the_host_reads_once_a_step_and_an_exception_leaves_nothing():
    model, reads = refiner(), Reads()
    accelerate_model(model, "flashblock:dirty=2")
    with watched(reads):
        first = refined(model)
    bare = Reads()
    with watched(bare):
        refined(refiner())
    assert reads.count - bare.count <= model.diffcache.stats().steps

    def stop(module, args):
        raise KeyboardInterrupt

    handle = model.transformer_blocks[1].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        refined(model)
    handle.remove()
    assert model.diffcache.hook.current is None
    assert torch.equal(refined(model), first)


def test_what_else_is_asked_is_refused():
    with pytest.raises(UnsupportedModelError, match="caches the keys of finished chunks itself"):
        accelerate_model(far(), "freecache")
    with pytest.raises(ConfigError, match="over: 'dual' is for bidirectional language models"):
        accelerate_model(far(), "flashblock:dual")
    assert supports(far(), "flashblock").status == "works"
    assert supports(far(), "flashblock:dirty=1").status == "exact"
    with pytest.raises(UnsupportedModelError, match="language models and block-causal video, and WanPipeline is none"):
        accelerate_pipeline(wan_pipeline(), "flashblock")


def test_every_class_of_diffusers_with_a_cache_of_keys_is_known():
    """Those that this does not serve are named in docs/language-models.md with the reason."""
    others = {"Flux2Transformer2DModel", "GlmImageTransformer2DModel", "QwenImage21Transformer2DModel",
              "WanAnimate2Transformer3DModel"}  # fmt: skip
    found = set()
    for name in dir(diffusers.models.transformers):
        cls = getattr(diffusers.models.transformers, name)
        if isinstance(cls, type) and issubclass(cls, nn.Module):
            given = inspect.signature(cls.forward).parameters
            found |= {name} if {"kv_cache", "kv_caches"} & set(given) else set()
    assert found == set(PORTS) | others
