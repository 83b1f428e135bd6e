"""How close two generations of the same seed are."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure


@dataclass(frozen=True)
class Fidelity:
    """PSNR in dB and SSIM of a sample against dense. Pixels that are equal in every digit have infinite PSNR."""

    psnr: float
    ssim: float


def fidelity(sample: Tensor, dense: Tensor) -> Fidelity:
    """Compare frames ``[..., channels, height, width]`` in [0, 1]: PSNR over all, SSIM averaged over frames."""
    a, b = (frames.detach().float().cpu().clamp(0, 1).flatten(0, -4) for frames in (sample, dense))
    return Fidelity(
        psnr=float(peak_signal_noise_ratio(a, b, data_range=1.0)),
        ssim=float(structural_similarity_index_measure(a, b, data_range=1.0)),
    )
