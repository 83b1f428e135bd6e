"""The gradient of the decoded loss: back through a pipeline's decoder, where it has one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .losses import unlikeness
from .watching import instead


@contextmanager
def decoded(pipe: Any) -> Iterator[list[Tensor]]:
    """Within: what the pipeline's decoder is given."""
    vae, given = getattr(pipe, "vae", None), []
    if vae is None:
        yield given
        return
    inner = vae.decode

    def decode(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        given.append(z.detach())
        return inner(z, *args, **kwargs)

    with instead(vae, "decode", decode):
        yield given


def direction(pipe: Any, given: list[Tensor], error: Tensor, wanted: Tensor) -> Tensor | None:
    """Gradient of the logarithm of the decoded loss by the final sample.

    What the decoder is given is taken for the final sample, scaled and shifted channel by channel.

    Args:
        pipe: with a decoder.
        given: what the decoder was given in the run.
        error: of the final sample, ``[batch, channels, ...]``.
        wanted: the dense final sample.

    Returns:
        as ``error``; None without a decoder, or where it was given something of another shape.
    """
    if len(given) != 1 or given[0].shape != error.shape:
        return None
    z = given[0].float()
    found = (wanted + error).to(z)
    axes = [axis for axis in range(z.dim()) if axis != 1]
    spread = found - found.mean(axes, keepdim=True)
    scale = (spread * z).sum(axes, keepdim=True) / spread.square().sum(axes, keepdim=True).clamp_min(1e-30)
    decode = lambda latent: pipe.vae.decode(latent.to(given[0].dtype), return_dict=False)[0].float()  # noqa: E731
    with torch.no_grad():
        reference = decode(z - scale * error.to(z))
    with torch.enable_grad():
        z.requires_grad_()
        loss = unlikeness(_pictures(decode(z)), _pictures(reference))
        (gradient,) = torch.autograd.grad(loss.clamp_min(1e-12).log(), [z])
    return (gradient * scale).cpu()


def _pictures(decoded: Tensor) -> Tensor:
    """``[batch, channels, frames, height, width]`` or without frames -> ``[pictures, channels, height, width]``."""
    return decoded.movedim(2, 1).flatten(0, 1) if decoded.dim() == 5 else decoded
