"""tiny-world: an action-conditioned RGB + depth world model in the manner of Aether's CogVideoX image-to-video.

The denoiser is diffusers' `CogVideoXTransformer3DModel`. A chunk is five latent frames of two video frames each: the
context (the last two frames that are known) and eight new frames. As in CogVideoX's image-to-video, the condition is
concatenated to the noisy latents as channels. A rollout makes chunk after chunk; each chunk's last two frames are the
next one's context.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import CogVideoXTransformer3DModel, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from .autoencoder import AutoencoderBlockPCA

ACTIONS = "NFBLRAD"
ACTION_NAMES = {
    "F": "forward",
    "B": "backward",
    "L": "turn left",
    "R": "turn right",
    "A": "step left",
    "D": "step right",
    "N": "nothing",
}
MAX_ACTIONS = 4096


def parse_actions(text: str) -> list[int]:
    """Indices into ``ACTIONS`` of an action string: letters, each with an optional count (``"F8L4"``, ``"f 8, l"``).

    Blanks and commas are skipped, case does not matter. Raises ``ValueError`` with one line that names the offending
    character, its position (from 1) and the known letters.
    """
    known = ", ".join(f"{letter} ({name})" for letter, name in ACTION_NAMES.items())
    actions: list[int] = []
    for match in re.finditer(r"([A-Za-z])\s*(\d+)?|[\s,]+|(.)", text, flags=re.DOTALL):
        letter, count, other = match.groups()
        bad = other or (letter if letter and letter.upper() not in ACTIONS else None)
        if bad:
            raise ValueError(f"actions: unknown {bad!r} at position {match.start() + 1}; known letters are {known}")
        if letter is None:
            continue
        repeats = int(count) if count and len(count) < 9 else 1 if count is None else MAX_ACTIONS + 1
        if not 0 < repeats <= MAX_ACTIONS or len(actions) + repeats > MAX_ACTIONS:
            position = match.start() + 1
            raise ValueError(f"actions: count {count} at position {position} is not in 1 … {MAX_ACTIONS} in all")
        actions += [ACTIONS.index(letter.upper())] * repeats
    if not actions:
        raise ValueError(f"actions: the string is empty; known letters are {known}")
    return actions


def pack_condition(context: torch.Tensor, actions: torch.Tensor, frames: int) -> torch.Tensor:
    """The channels that CogVideoX's image-to-video concatenates to the noisy latents.

    ``context`` (B, C, H, W) are the normalised latents of the last two frames; ``actions`` (B, 2·(frames - 1)) are
    indices into ``ACTIONS``, one per new video frame. Returns (B, frames, C + 1 + 2·len(ACTIONS), H, W): the context,
    zero over the new frames, a mask that marks it, and per latent frame the one-hot actions of its two video frames.
    """
    batch, channels, height, width = context.shape
    out = context.new_zeros(batch, frames, channels + 1 + 2 * len(ACTIONS), height, width)
    out[:, 0, :channels] = context
    out[:, 0, channels] = 1.0
    planes = F.one_hot(actions, len(ACTIONS)).to(context.dtype).reshape(batch, frames - 1, -1)
    out[:, 1:, channels + 1 :] = planes[..., None, None]
    return out


def rotary(head_dim: int, frames: int, height: int, width: int, device=None) -> tuple[torch.Tensor, torch.Tensor]:
    """CogVideoX's rotary embedding over the latent grid: (cos, sin), each (frames·height·width, head_dim)."""
    corners = ((0, 0), (height, width))
    return get_3d_rotary_pos_embed(head_dim, corners, grid_size=(height, width), temporal_size=frames, device=device)


@dataclass
class WorldPipelineOutput(BaseOutput):
    """The new frames, context not included.

    ``frames``: list of lists of PIL images ("pil"), float array (B, T, H, W, 3) ("np") or tensor (B, T, 3, H, W)
    ("pt") in [0, 1]. ``depth``: the same with mode-L images, (B, T, H, W) and (B, T, H, W); 1 is far, not metric.
    """

    frames: list[list[Image.Image]] | np.ndarray | torch.Tensor
    depth: list[list[Image.Image]] | np.ndarray | torch.Tensor


def _one_context(item: Any, channels: int) -> torch.Tensor:
    """One context as float (T, channels, H, W) in [0, 1], from a PIL image, a list of them, an array or a tensor."""
    if isinstance(item, (list, tuple)):
        return torch.cat([_one_context(frame, channels) for frame in item])
    if isinstance(item, Image.Image):
        item = np.asarray(item.convert("RGB" if channels == 3 else "L"))
    if isinstance(item, np.ndarray):
        item = torch.from_numpy(np.array(item))  # a copy: pictures are read-only memory
        item = item.movedim(-1, -3) if channels == 3 else item
    item = item.float() / 255 if item.dtype == torch.uint8 else item.float()
    if channels == 1:
        item = item.unsqueeze(-3)
    return item.unsqueeze(0) if item.ndim == 3 else item


def read_context(image: Any, channels: int, height: int, width: int, name: str = "image") -> torch.Tensor:
    """Contexts as float (B, channels, 2, height, width) in [-1, 1].

    ``image`` is one context or a list of B contexts. A context is one frame (then it is taken twice) or two frames:
    a PIL image or a pair of them, an array (H, W, 3) or (T, H, W, 3), a tensor (3, H, W) or (T, 3, H, W), uint8 or
    float in [0, 1]; depth has no channel axis. An array or tensor with a leading batch axis is a list of contexts.
    Raises ``ValueError`` for other shapes; other sizes are resized with antialiasing.
    """
    full = 5 if channels == 3 else 4
    batched = isinstance(image, (list, tuple)) or (not isinstance(image, Image.Image) and image.ndim == full)
    contexts = []
    for item in image if batched else [image]:
        frames = _one_context(item, channels)
        if frames.ndim != 4 or frames.shape[1] != channels or len(frames) not in (1, 2):
            raise ValueError(f"{name}: a context has one or two frames, got an item of shape {tuple(frames.shape)}")
        frames = frames.repeat(2 // len(frames), 1, 1, 1)
        if frames.shape[-2:] != (height, width):
            frames = F.interpolate(frames, size=(height, width), mode="bilinear", antialias=True).clamp(0, 1)
        contexts.append(frames.transpose(0, 1) * 2 - 1)
    return torch.stack(contexts)


class WorldPipeline(DiffusionPipeline):
    """Rolls a world on from one or two real frames under an action string, RGB and depth together.

    Components: ``vae`` and ``depth_vae`` (`AutoencoderBlockPCA`, not causal), ``transformer``
    (`CogVideoXTransformer3DModel`, patch size 1, RGB latents then depth latents on the channel axis) and
    ``scheduler`` (`FlowMatchEulerDiscreteScheduler`).
    """

    model_cpu_offload_seq = "transformer->vae->depth_vae"
    _callback_tensor_inputs = ("latents",)

    def __init__(
        self,
        vae: AutoencoderBlockPCA,
        depth_vae: AutoencoderBlockPCA,
        transformer: CogVideoXTransformer3DModel,
        scheduler: FlowMatchEulerDiscreteScheduler,
    ):
        super().__init__()
        self.register_modules(vae=vae, depth_vae=depth_vae, transformer=transformer, scheduler=scheduler)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(latent frames per chunk with the context, latent height, latent width)."""
        config = self.transformer.config
        frames = (config.sample_frames - 1) // config.temporal_compression_ratio + 1
        return frames, config.sample_height, config.sample_width

    @property
    def chunk_frames(self) -> int:
        """New video frames per chunk."""
        return (self.latent_shape[0] - 1) * self.vae.config.scale_factor_temporal

    @property
    def modalities(self) -> tuple[int, int]:
        """Channel widths of RGB and depth in the denoiser's output: a method measures each on its own."""
        return self.vae.config.z_dim, self.depth_vae.config.z_dim

    @property
    def interrupt(self) -> bool:
        return getattr(self, "_interrupt", False)

    def encode_context(self, image: Any, depth: Any | None) -> torch.Tensor:
        """Normalised context latents (B, C, h, w); without ``depth`` the depth channels hold the mean depth."""
        scale = self.vae.config.scale_factor_spatial
        _, height, width = self.latent_shape
        device, dtype = self._execution_device, self.vae.dtype
        pixels = read_context(image, 3, height * scale, width * scale).to(device, dtype)
        rgb = self.vae.normalize(self.vae.encode(pixels).latent_dist.mode())
        if depth is None:
            z_depth = rgb.new_zeros(len(rgb), self.depth_vae.config.z_dim, *rgb.shape[2:])
        else:
            pixels = read_context(depth, 1, height * scale, width * scale, "depth").to(device, dtype)
            z_depth = self.depth_vae.normalize(self.depth_vae.encode(pixels).latent_dist.mode())
        if len(z_depth) != len(rgb):
            raise ValueError(f"image holds {len(rgb)} contexts and depth holds {len(z_depth)}")
        return torch.cat([rgb, z_depth], 1)[:, :, 0]

    def read_actions(self, actions: str | Sequence[str]) -> tuple[torch.Tensor, int]:
        """Action indices (B, chunks·chunk_frames), padded with "nothing", and the length that was asked for."""
        parsed = [parse_actions(text) for text in ([actions] if isinstance(actions, str) else actions)]
        length = len(parsed[0])
        if any(len(row) != length for row in parsed):
            raise ValueError(f"actions: all strings of a batch need one length, got {[len(row) for row in parsed]}")
        padded = math.ceil(length / self.chunk_frames) * self.chunk_frames
        rows = [row + [0] * (padded - length) for row in parsed]
        return torch.tensor(rows, device=self._execution_device), length

    def prepare_latents(self, batch: int, generator: Any, dtype: torch.dtype) -> torch.Tensor:
        """White noise (B, frames, C, h, w) for one chunk."""
        frames, height, width = self.latent_shape
        shape = (batch, frames, self.transformer.config.out_channels, height, width)
        return randn_tensor(shape, generator=generator, device=self._execution_device, dtype=dtype)

    def denoise_chunk(
        self, latents: torch.Tensor, condition: torch.Tensor, steps: int, first_step: int, on_step: Callable, bar: Any
    ) -> torch.Tensor:
        """The denoising loop of one chunk: ``latents`` from noise to clean, one denoiser call per step."""
        config, (frames, height, width), dtype = self.transformer.config, self.latent_shape, self.transformer.dtype
        angles = rotary(config.attention_head_dim, frames, height, width, latents.device)
        text = latents.new_zeros(len(latents), config.max_text_seq_length, config.text_embed_dim, dtype=dtype)
        condition = condition.to(dtype)
        self.scheduler.set_timesteps(steps, device=latents.device)
        for i, t in enumerate(self.scheduler.timesteps):
            if self.interrupt:
                break
            with self.transformer.cache_context("cond"):
                velocity = self.transformer(
                    hidden_states=torch.cat([latents.to(dtype), condition], 2),
                    encoder_hidden_states=text,
                    timestep=t.expand(len(latents)),
                    image_rotary_emb=angles,
                    return_dict=False,
                )[0]
            latents = self.scheduler.step(velocity.float(), t, latents, return_dict=False)[0]
            latents = on_step(first_step + i, t, latents)
            bar.update()
        return latents

    def decode(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised latents (B, frames, C, h, w) to RGB (B, T, 3, H, W) and depth (B, T, H, W) in [0, 1]."""
        z = latents.transpose(1, 2).to(self.vae.dtype)
        rgb, depth = z.split([self.vae.config.z_dim, self.depth_vae.config.z_dim], 1)
        rgb = self.vae.decode(self.vae.denormalize(rgb), return_dict=False)[0]
        depth = self.depth_vae.decode(self.depth_vae.denormalize(depth), return_dict=False)[0]
        return rgb.transpose(1, 2).float() / 2 + 0.5, depth[:, 0].float() / 2 + 0.5

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        depth: Any | None = None,
        actions: str | Sequence[str] = "F8",
        num_inference_steps: int = 50,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        callback_on_step_end: Callable[..., dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
    ) -> WorldPipelineOutput | tuple:
        """Roll ``image`` on, one video frame per action, in ``ceil(len(actions) / 8)`` chunks.

        ``image`` and ``depth``: one context or B of them, see `read_context` (``depth=None``: mean depth). ``actions``:
        a string as `parse_actions` reads it, or one per context; one context with several strings is repeated.
        ``callback_on_step_end(pipe, step, timestep, {"latents": …})`` counts its steps through all chunks.

        Returns `WorldPipelineOutput` (or its tuple). Raises ``ValueError`` for actions that do not parse, batch sizes
        that do not fit, fewer than one step and an unknown ``output_type``.
        """
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type must be pil, np or pt, got {output_type!r}")
        self._interrupt = False
        action, length = self.read_actions(actions)
        context = self.encode_context(image, depth).float()
        batch = max(len(action), len(context))
        if len(action) not in (1, batch) or len(context) not in (1, batch):
            raise ValueError(f"{len(context)} contexts do not go with {len(action)} action strings")
        action, context = action.expand(batch, -1), context.expand(batch, -1, -1, -1)

        def on_step(step: int, t: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
            if callback_on_step_end is None:
                return latents
            values = {"latents": latents}
            chosen = {name: values[name] for name in callback_on_step_end_tensor_inputs}
            return (callback_on_step_end(self, step, t, chosen) or {}).get("latents", latents)

        chunks, made = action.split(self.chunk_frames, 1), []
        self._num_timesteps = len(chunks) * num_inference_steps
        with self.progress_bar(total=self._num_timesteps) as bar:
            for number, chunk in enumerate(chunks):
                condition = pack_condition(context, chunk, self.latent_shape[0])
                latents = self.prepare_latents(batch, generator, torch.float32)
                first_step = number * num_inference_steps
                latents = self.denoise_chunk(latents, condition, num_inference_steps, first_step, on_step, bar)
                made.append(latents[:, 1:])
                context = latents[:, -1]
        rgb, depth_out = (x[:, :length] for x in self.decode(torch.cat(made, 1)))
        self.maybe_free_model_hooks()
        output = WorldPipelineOutput(to_output(rgb, output_type), to_output(depth_out, output_type))
        return output if return_dict else (output.frames, output.depth)


def to_output(video: torch.Tensor, output_type: str) -> list[list[Image.Image]] | np.ndarray | torch.Tensor:
    """RGB (B, T, 3, H, W) or depth (B, T, H, W) in [0, 1] as ``output_type``; arrays have channels last."""
    if output_type == "pt":
        return video
    array = (video.movedim(2, -1) if video.ndim == 5 else video).cpu().numpy()
    if output_type == "np":
        return array
    return [[Image.fromarray(frame) for frame in clip] for clip in (array * 255).round().astype(np.uint8)]
