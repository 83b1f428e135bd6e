"""What diffcache knows about models: names, sources and call defaults. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ..plugins import load_plugins

EMBEDDED = "embedded"

PLUGINS = "diffcache.models"
"""Entry point group: a distribution that names a :class:`ZooEntry` there adds a model."""


@dataclass(frozen=True)
class ZooEntry:
    """One model by name.

    ``source`` is ``"embedded"``, a hub id or a folder; ``pipeline`` the name of a pipeline class of diffusers, or
    ``"module:Class"`` of another package; ``task`` one of
    ``text-to-video``, ``image-to-video``, ``world``, ``text-to-image`` and ``class-to-image``. ``height`` and ``width``
    are in pixels, ``num_frames`` is 1 for images. ``guidance_scale`` is None where the pipeline has no such argument or
    must not be given one. ``call`` holds further call defaults and ``methods`` maps a caching method to overrides.
    """

    name: str
    source: str
    pipeline: str
    task: str
    description: str
    height: int
    width: int
    num_frames: int
    num_inference_steps: int
    guidance_scale: float | None
    call: Mapping[str, Any] = field(default_factory=dict)
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def embedded(self) -> bool:
        """Whether the weights ship inside the package."""
        return self.source == EMBEDDED


def _shipped(name: str) -> dict[str, dict[str, Any]]:
    """Methods whose schedule file ships beside the weights of an embedded model."""
    return {"diffsparse": {"schedule": str(Path(__file__).parent / "weights" / name / "diffsparse.safetensors")}}


_ENTRIES = (
    ZooEntry(
        "tiny-world",
        EMBEDDED,
        "WorldPipeline",
        "world",
        "ViZDoom rooms, RGB + depth, rolled out under an action string (CogVideoX image-to-video transformer)",
        48,
        64,
        8,
        50,
        None,
    ),
    ZooEntry(
        "tiny-wan",
        EMBEDDED,
        "WanPipeline",
        "text-to-video",
        "ViZDoom clips of four motions named by the prompt (Wan transformer)",
        48,
        64,
        9,
        50,
        4.0,
        {"max_sequence_length": 16},
        _shipped("tiny-wan"),
    ),
    ZooEntry(
        "tiny-dit",
        EMBEDDED,
        "DiTPipeline",
        "class-to-image",
        "emoji of fifteen classes, the class by name or number (DiT)",
        64,
        64,
        1,
        50,
        4.0,
        {"class_labels": [3]},
        _shipped("tiny-dit"),
    ),
    ZooEntry(
        "wan2.1",
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        "WanPipeline",
        "text-to-video",
        "Wan 2.1, 1.3 B parameters",
        480,
        832,
        81,
        50,
        5.0,
    ),
    ZooEntry(
        "wan2.1-14b",
        "Wan-AI/Wan2.1-T2V-14B-Diffusers",
        "WanPipeline",
        "text-to-video",
        "Wan 2.1, 14 B parameters",
        720,
        1280,
        81,
        50,
        5.0,
    ),
    ZooEntry(
        "wan2.2",
        "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
        "WanPipeline",
        "text-to-video",
        "Wan 2.2, two experts of 14 B parameters, one for high and one for low noise",
        720,
        1280,
        81,
        40,
        4.0,
        {"guidance_scale_2": 3.0},
    ),
    ZooEntry(
        "cogvideox-5b",
        "THUDM/CogVideoX-5b",
        "CogVideoXPipeline",
        "text-to-video",
        "CogVideoX, 5 B parameters",
        480,
        720,
        49,
        50,
        6.0,
    ),
    ZooEntry(
        "cogvideox-5b-i2v",
        "THUDM/CogVideoX-5b-I2V",
        "CogVideoXImageToVideoPipeline",
        "image-to-video",
        "CogVideoX image-to-video, 5 B parameters, the base of Aether",
        480,
        720,
        49,
        50,
        6.0,
    ),
    ZooEntry(
        "flux-dev",
        "black-forest-labs/FLUX.1-dev",
        "FluxPipeline",
        "text-to-image",
        "FLUX.1 dev, 12 B parameters, distilled guidance",
        1024,
        1024,
        1,
        28,
        3.5,
    ),
    ZooEntry(
        "sd3.5",
        "stabilityai/stable-diffusion-3.5-large",
        "StableDiffusion3Pipeline",
        "text-to-image",
        "Stable Diffusion 3.5 Large, 8 B parameters",
        1024,
        1024,
        1,
        28,
        3.5,
    ),
    ZooEntry(
        "pixart-sigma",
        "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
        "PixArtSigmaPipeline",
        "text-to-image",
        "PixArt-Sigma, 0.6 B parameters",
        1024,
        1024,
        1,
        20,
        4.5,
    ),
    ZooEntry(
        "dit-xl-256",
        "facebook/DiT-XL-2-256",
        "DiTPipeline",
        "class-to-image",
        "DiT-XL/2 on ImageNet classes",
        256,
        256,
        1,
        50,
        4.0,
    ),
    ZooEntry(
        "hunyuanvideo",
        "hunyuanvideo-community/HunyuanVideo",
        "HunyuanVideoPipeline",
        "text-to-video",
        "HunyuanVideo, 13 B parameters, distilled guidance; the base of Voyager",
        720,
        1280,
        129,
        50,
        6.0,
    ),
    ZooEntry(
        "ltx-video",
        "Lightricks/LTX-Video",
        "LTXPipeline",
        "text-to-video",
        "LTX-Video, 2 B parameters",
        512,
        704,
        161,
        50,
        3.0,
    ),
    ZooEntry(
        "qwen-image",
        "Qwen/Qwen-Image",
        "QwenImagePipeline",
        "text-to-image",
        "Qwen-Image, 20 B parameters",
        1328,
        1328,
        1,
        50,
        None,
        {"true_cfg_scale": 4.0, "negative_prompt": " "},
    ),
)


def list_models() -> dict[str, ZooEntry]:
    """Every known model by name: the embedded ones, the hub's, then those of installed plugins."""
    known = {entry.name: entry for entry in _ENTRIES}
    return {**known, **{name: entry for name, entry in _plugins().items() if name not in known}}


@cache
def _plugins() -> dict[str, ZooEntry]:
    return load_plugins(PLUGINS, "model", "ZooEntry", _is_model)


def _is_model(plugin: Any, name: str) -> bool:
    return isinstance(plugin, ZooEntry) and plugin.name == name and not plugin.embedded
