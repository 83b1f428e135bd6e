"""How far a run is from the dense one of its seed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

LOSSES = ("latent", "decoded")


def measure(loss: str, found: Tensor, picture: Any, wanted: Tensor, reference: Any) -> float:
    """How far a run is from the dense one of its seed.

    Args:
        loss: ``latent``, mean squared error over mean square of the final sample; or ``decoded``, 1 - SSIM of what the
            pipeline returned.
        found, wanted: final samples.
        picture, reference: what the pipeline returned.
    """
    if loss == "latent":
        return float((found - wanted).square().mean() / wanted.square().mean())
    from ..media.frames import read_output

    first, second = (read_output(p).pixels.float() for p in (picture, reference))
    return float(unlikeness(first, second))


def unlikeness(found: Tensor, wanted: Tensor) -> Tensor:
    """``1 - SSIM`` of pictures, ``[pictures, channels, height, width]``; a scalar with a gradient."""
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    return 1.0 - ssim(found, wanted, data_range=float(wanted.max() - wanted.min().clamp_max(0.0)) or 1.0)
