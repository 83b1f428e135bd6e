"""How far a run is from the dense one of its seed."""

from __future__ import annotations

from typing import Any

import torch
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
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    from ..media.frames import read_output

    first, second = (torch.as_tensor(read_output(p).pixels).float().movedim(-1, 1) for p in (picture, reference))
    return float(1.0 - ssim(first, second, data_range=float(second.max()) or 1.0))
