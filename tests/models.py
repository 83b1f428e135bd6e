"""Tiny random models of real diffusers classes, real pipelines around them, and a plain sampling loop.

Everything is seeded, so two builds with one seed are the same model. Nothing here knows a method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from diffcache import denoising
from diffcache.zoo.wan import make_tokenizer

TEXT = 16


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill what is initialised to zero (gates, biases, last projections): a block that does nothing proves nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval().requires_grad_(False)


# -- denoisers ---------------------------------------------------------------------------------------------------------


def wan(seed: int = 0, layers: int = 2) -> WanTransformer3DModel:
    with seeded(seed):
        model = WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=TEXT,
            freq_dim=16,
            ffn_dim=32,
            num_layers=layers,
            rope_max_seq_len=32,
        )
    return randomise(model, seed)


def cogvideox(seed: int = 0, rotary: bool = False) -> CogVideoXTransformer3DModel:
    with seeded(seed):
        model = CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=8,
            text_embed_dim=TEXT,
            num_layers=2,
            sample_width=8,
            sample_height=8,
            sample_frames=9,
            patch_size=2,
            temporal_compression_ratio=4,
            max_text_seq_length=6,
            use_rotary_positional_embeddings=rotary,
        )
    return randomise(model, seed)


def flux(seed: int = 0) -> FluxTransformer2DModel:
    with seeded(seed):
        model = FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=TEXT,
            pooled_projection_dim=TEXT,
            axes_dims_rope=(4, 4, 8),
        )
    return randomise(model, seed)


def dit(seed: int = 0) -> DiTTransformer2DModel:
    with seeded(seed):
        model = DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            sample_size=8,
            patch_size=2,
            num_embeds_ada_norm=1000,
        )
    return randomise(model, seed)


# -- what each takes ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """A denoiser class with the inputs of one call.

    Attributes:
        build: seed -> model.
        latents: (seed, batch, size) -> noisy sample; ``size`` scales the picture, not the channels.
        conditioning: (seed, batch) -> keyword arguments of one branch.
        fixed: (size) -> keyword arguments that all branches share (rotary tables, position ids).
        time: position in [0, 1] -> timestep as this class takes it, for one sample.
    """

    build: Callable[[int], nn.Module]
    latents: Callable[[int, int, int], Tensor]
    conditioning: Callable[[int, int], dict[str, Any]]
    fixed: Callable[[int], dict[str, Any]] = lambda size: {}
    time: Callable[[float], Tensor] = lambda level: torch.tensor(1000.0 * level)


def _text(seed: int, batch: int) -> dict[str, Any]:
    return {"encoder_hidden_states": normal(batch, 6, TEXT, seed=seed)}


def _flux_ids(size: int) -> dict[str, Any]:
    grid = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(2 * size), indexing="ij"), -1).reshape(-1, 2)
    image = torch.cat([torch.zeros(len(grid), 1), grid.float()], dim=1)
    return {"img_ids": image, "txt_ids": torch.zeros(6, 3)}


def _rotary(size: int) -> dict[str, Any]:
    angles = normal(3 * 4 * 2 * size, 16, seed=3)
    return {"image_rotary_emb": (angles.cos(), angles.sin())}


FAMILIES: dict[str, Family] = {
    "wan": Family(wan, lambda s, b, n: normal(b, 4, 3, 8, 4 * n, seed=s), _text),
    "cogvideox": Family(
        cogvideox,
        lambda s, b, n: normal(b, 3, 4, 8, 4 * n, seed=s),
        _text,
        time=lambda level: torch.tensor(round(999 * level)),
    ),
    "cogvideox-rotary": Family(
        lambda seed: cogvideox(seed, rotary=True),
        lambda s, b, n: normal(b, 3, 4, 8, 4 * n, seed=s),
        _text,
        _rotary,
        lambda level: torch.tensor(round(999 * level)),
    ),
    "flux": Family(
        flux,
        lambda s, b, n: normal(b, 8 * n, 16, seed=s),
        lambda seed, batch: {**_text(seed, batch), "pooled_projections": normal(batch, TEXT, seed=seed + 1)},
        _flux_ids,
        lambda level: torch.tensor(level),
    ),
    "dit": Family(
        dit,
        lambda s, b, n: normal(b, 4, 8, 8, seed=s),
        lambda seed, batch: {"class_labels": torch.full((batch,), seed % 1000)},
        time=lambda level: torch.tensor(round(999 * level)),
    ),
}


# -- a plain sampler ---------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """Result of :func:`sample`: the last latents, and what the denoiser returned in each call."""

    latents: Tensor
    outputs: list[Tensor]

    def equals(self, other: Run) -> bool:
        return torch.equal(self.latents, other.latents) and len(self.outputs) == len(other.outputs)


def sample(
    family: str,
    model: nn.Module,
    steps: int = 12,
    *,
    seed: int = 0,
    cfg: str = "separate",
    batch: int = 1,
    size: int = 2,
    dtype: torch.dtype = torch.float32,
    announced: int | None = None,
    before: Callable[[int], None] | None = None,
    uncond: Callable[[int], bool] = lambda step: True,
    swapped: Callable[[int], bool] = lambda step: False,
) -> Run:
    """An Euler loop with guidance, the way a user writes one: ``cfg`` is ``separate``, ``batched`` or ``none``."""
    kind = FAMILIES[family]
    x = kind.latents(seed, batch, size).to(dtype)
    fixed = kind.fixed(size)
    cond, empty = (_cast(kind.conditioning(s, batch), dtype) for s in (seed + 100, 7))
    both = {k: torch.cat([cond[k], empty[k]]) for k in cond}
    outputs: list[Tensor] = []

    def call(hidden: Tensor, conditioning: dict[str, Any], level: float) -> Tensor:
        timestep = kind.time(level).expand(hidden.shape[0])
        result = model(hidden_states=hidden, timestep=timestep, **conditioning, **fixed, return_dict=False)[0]
        outputs.append(result.clone())
        return result

    with torch.no_grad(), denoising(model, announced or steps):
        for step in range(steps):
            if before is not None:
                before(step)
            level = 1.0 - step / steps
            if cfg == "none":
                v = call(x, cond, level)
            elif cfg == "batched":
                v, w = call(torch.cat([x, x]), both, level).chunk(2)
                v = w + 3.0 * (v - w)
            else:
                v = _guided(call, x, cond, empty, level, uncond(step), swapped(step))
            x = (x - v / steps).to(dtype)
    return Run(x, outputs)


def walk_steps(family: str, model: nn.Module, steps: int, seed: int = 0) -> Iterator[int]:
    """Two branches on a slowly changing input; yields after each step. For tests that look between the steps."""
    kind = FAMILIES[family]
    fixed = kind.fixed(2)
    branches = [kind.conditioning(seed + 100, 1), kind.conditioning(7, 1)]
    noise = kind.latents(seed, 1, 2)
    inputs = [noise * (1.0 - 0.5 * step / steps) for step in range(steps)]
    times = [kind.time(1.0 - step / steps)[None] for step in range(steps)]
    with denoising(model, steps):
        for step in range(steps):
            for conditioning in branches:
                model(hidden_states=inputs[step], timestep=times[step], **conditioning, **fixed, return_dict=False)
            yield step


def _guided(call: Any, x: Tensor, cond: Any, empty: Any, level: float, uncond: bool, swapped: bool) -> Tensor:
    if not uncond:
        return call(x, cond, level)
    w = call(x, empty, level) if swapped else None
    v = call(x, cond, level)
    w = call(x, empty, level) if w is None else w
    return w + 3.0 * (v - w)


def _cast(conditioning: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {k: t.to(dtype) if t.is_floating_point() else t for k, t in conditioning.items()}


# -- real pipelines ----------------------------------------------------------------------------------------------------


def wan_pipeline(seed: int = 0, scheduler: Any = None) -> WanPipeline:
    return _quiet(
        WanPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=None,
            scheduler=scheduler or UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
            transformer=wan(seed),
        )
    )


def wan_two_experts(seed: int = 0, boundary: float = 0.6) -> WanPipeline:
    return _quiet(
        WanPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=None,
            scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
            transformer=wan(seed),
            transformer_2=wan(seed + 1),
            boundary_ratio=boundary,
        )
    )


def wan_whole(**experts: Any) -> WanPipeline:
    """With a tokenizer, a text encoder and a VAE; ``experts`` are its denoisers, and where they take turns."""
    tokenizer = make_tokenizer()
    sizes = dict(d_model=TEXT, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with seeded(0):
        text_encoder = UMT5EncoderModel(UMT5Config(vocab_size=len(tokenizer), **sizes)).eval()
        vae = AutoencoderKLWan(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ).eval()
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    parts = dict(tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, scheduler=scheduler)
    return _quiet(WanPipeline(**parts, **experts))


def run_wan(pipe: WanPipeline, steps: int = 12, *, seed: int = 0, size: int = 2, guidance: float = 3.0, **more: Any):
    """One generation by the pipeline's own ``__call__``; separate CFG."""
    return pipe(
        prompt_embeds=normal(1, 6, TEXT, seed=seed + 100),
        negative_prompt_embeds=normal(1, 6, TEXT, seed=7),
        height=32,
        width=16 * size,
        num_frames=9,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
        **more,
    ).frames


def cogvideox_pipeline(seed: int = 0, rotary: bool = False) -> CogVideoXPipeline:
    model = cogvideox(seed, rotary)
    return _quiet(
        CogVideoXPipeline(
            tokenizer=None, text_encoder=None, vae=None, transformer=model, scheduler=CogVideoXDDIMScheduler()
        )
    )


def run_cogvideox(pipe: CogVideoXPipeline, steps: int = 12, *, seed: int = 0, **more: Any):
    """One generation; batched CFG."""
    return pipe(
        prompt_embeds=normal(1, 6, TEXT, seed=seed + 100),
        negative_prompt_embeds=normal(1, 6, TEXT, seed=7),
        height=64,
        width=64,
        num_frames=9,
        num_inference_steps=steps,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
        **more,
    ).frames


def flux_pipeline(seed: int = 0) -> FluxPipeline:
    return _quiet(
        FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=None,
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
            transformer=flux(seed),
        )
    )


def run_flux(pipe: FluxPipeline, steps: int = 12, *, seed: int = 0, **more: Any):
    """One generation; two calls a step with true CFG."""
    return pipe(
        prompt_embeds=normal(1, 6, TEXT, seed=seed + 100),
        pooled_prompt_embeds=normal(1, TEXT, seed=seed + 101),
        negative_prompt_embeds=normal(1, 6, TEXT, seed=7),
        negative_pooled_prompt_embeds=normal(1, TEXT, seed=8),
        true_cfg_scale=2.0,
        height=64,
        width=64,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
        **more,
    ).images


def dit_pipeline(seed: int = 0) -> DiTPipeline:
    with seeded(seed):
        vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4).eval()
    return _quiet(DiTPipeline(transformer=dit(seed), vae=vae, scheduler=DDIMScheduler()))


def run_dit(pipe: DiTPipeline, steps: int = 12, *, seed: int = 0, **more: Any):
    """One generation; batched CFG, class labels."""
    return torch.as_tensor(
        pipe(
            class_labels=[3 + seed],
            guidance_scale=3.0,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
            **more,
        ).images
    )


PIPELINES: dict[str, tuple[Callable[[], Any], Callable[..., Tensor]]] = {
    "wan": (wan_pipeline, run_wan),
    "wan-two-experts": (wan_two_experts, run_wan),
    "cogvideox": (cogvideox_pipeline, run_cogvideox),
    "cogvideox-rotary": (lambda: cogvideox_pipeline(rotary=True), run_cogvideox),
    "flux": (flux_pipeline, run_flux),
    "dit": (dit_pipeline, run_dit),
}


def denoisers(pipe: Any) -> list[nn.Module]:
    return [m for n, m in pipe.components.items() if n.startswith("transformer") and m is not None]


def decisions(owner: Any) -> list[str]:
    return [s.decisions for s in owner.diffcache.stats().segments]


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe
