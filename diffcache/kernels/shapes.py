"""Shapes of real models, for what is worked out without a GPU: the ahead-of-time check and the roofline page."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .accumulate import MOST


@dataclass(frozen=True)
class Shape:
    """One denoiser at one size.

    Attributes:
        key: what commands call it.
        batch: rows, guidance included.
        tokens, width: of the stream; ``heads * head_dim`` is the width of attention.
        norm: of q and k, ``None``, ``"rms"`` or ``"layer"``; ``across_heads`` whether one norm spans all heads.
        rope: whether q and k are turned.
        output: shape of the denoiser's output, and the axis of its channels.
        cells: modules that add to the stream in one step.
    """

    key: str
    name: str
    batch: int
    tokens: int
    width: int
    heads: int
    head_dim: int
    norm: str | None
    across_heads: bool
    rope: bool
    output: tuple[int, ...]
    channel_dim: int
    cells: int = 2


_ALL = (
    Shape("pixart", "PixArt 256², guided", 2, 256, 1152, 16, 72, None, False, False, (2, 8, 32, 32), 1, 84),
    Shape("flux", "FLUX 1024²", 1, 4096, 3072, 24, 128, "rms", False, True, (1, 4096, 64), 2, 76),
    Shape(
        "wan",
        "Wan-1.3B 480p 81 frames, guided",
        2,
        32760,
        1536,
        12,
        128,
        "rms",
        True,
        True,
        (2, 16, 21, 60, 104),
        1,
        90,
    ),
)
#: by key
SHAPES = {shape.key: shape for shape in _ALL}


def arguments(shape: Shape, kept: int, dtype, device: str = "meta") -> dict[str, tuple]:
    """Arguments of every kernel with all that it can take: the heaviest form of each.

    Args:
        kept: tokens that are recomputed.
    """

    def new(*size: int, kind=dtype) -> Tensor:
        return torch.empty(size, dtype=kind, device=device)

    b, n, d, h, w = shape.batch, shape.tokens, shape.width, shape.heads, shape.head_dim
    index, x, packed, gate = new(1, kept, kind=torch.int32), new(b, n, d), new(b, kept, d), new(b, 1, d)
    norm = (new(d), new(d), new(b, 1, d), new(b, 1, d), new(b, kept, d), 1e-6, False)
    update = (x, packed, new(b, n, d), index, None, gate, False)
    stale = n - kept
    caches, gates = ([new(b, size, d) for _ in range(MOST)] for size in (n, 1))
    biases, width = [new(h * w) for _ in range(3)], h * w if shape.across_heads else w
    affine = [new(width) if shape.norm else None for _ in range(2)]
    angles = [new(1, n, w, kind=torch.float32) if shape.rope else None for _ in range(2)]
    heads, cached = [new(b, kept, h, w) for _ in range(4)], [new(b, n, h, w) for _ in range(2)]
    parts, sums = [new(b, h, kept, w) for _ in range(3)], [new(b, h, kept, kind=torch.float32) for _ in range(3)]
    group = list(shape.output)
    group[shape.channel_dim] = 1
    rules = [1.0, 0.0, 0.0, 1.5, -0.5, 0.0, 1.2, 0.3, -0.5]
    return {
        "gather_norm": (x, index, *norm),
        "scatter_update": update,
        "scatter_gather_norm": (*update, new(1, kept, kind=torch.int32), None, *norm),
        "accumulate": (new(b, stale, d), caches, gates, new(1, stale, kind=torch.int32), new(b, n, d)),
        "project_epilogue": (
            *heads[:3], index, *biases, *affine, None, None, *angles, heads[3], *cached, 1e-6,
            {None: 0, "rms": 1, "layer": 2}[shape.norm], shape.across_heads, True, False,
        ),
        "predict_heterogeneous": (
            [new(*shape.output) for _ in range(3)], new(*group, kind=torch.uint8), new(*shape.output), rules,
            shape.channel_dim,
        ),
        "merge_attention": (parts[0], sums[0], parts[1], sums[1], parts[2], sums[2]),
    }  # fmt: skip
