"""From whatever a pipeline returns to frames, and from frames to pictures of a size that a person can see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch

GAINS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Clip:
    """One generated sample.

    Attributes:
        frames: float32 (T, H, W, 3) in [0, 1]; T is 1 for a picture.
        depth: the same shape, grey, or None.
    """

    frames: np.ndarray
    depth: np.ndarray | None = None

    @property
    def pixels(self) -> torch.Tensor:
        """The frames as (T, 3, H, W)."""
        import torch

        return torch.from_numpy(self.frames).movedim(-1, -3)


def read_output(output: Any) -> Clip:
    """The first sample of a diffusers output (``.frames`` or ``.images``, or a tuple whose first item they are).

    Raises ``ValueError`` where the output holds no pictures.
    """
    if isinstance(output, tuple):
        return Clip(as_frames(output[0], batched=True))
    for name in ("frames", "images"):
        found = getattr(output, name, None)
        if found is not None:
            depth = getattr(output, "depth", None)
            shade = None if depth is None else as_frames(depth, batched=True, grey=True)
            return Clip(as_frames(found, batched=True), shade)
    raise ValueError(f"{type(output).__name__} has neither frames nor images")


def as_frames(pictures: Any, batched: bool = False, grey: bool = False) -> np.ndarray:
    """Float32 (T, H, W, 3) in [0, 1] from PIL images, arrays (channels last) or tensors (channels before H, W).

    Args:
        pictures: a picture, a list of them, an array or a tensor; uint8, or float in [0, 1].
        batched: a leading batch axis may be there (a list of lists, or one axis more); its first entry is taken.
        grey: the pictures have no channel axis.
    """
    if isinstance(pictures, (list, tuple)):
        if batched and isinstance(pictures[0], (list, tuple, np.ndarray)) and _ndim(pictures[0]) > 3 - grey:
            return as_frames(pictures[0], grey=grey)
        grey = grey and not isinstance(pictures[0], Image.Image)
        return np.concatenate([as_frames(p, grey=grey) for p in pictures])
    if isinstance(pictures, Image.Image):
        return _unit(np.asarray(pictures.convert("RGB")))[None]
    if hasattr(pictures, "detach"):
        pictures = pictures.detach().float().cpu().numpy()
        pictures = pictures if grey else np.moveaxis(pictures, -3, -1)
    array = _unit(np.asarray(pictures))
    if grey:
        array = np.repeat(array[..., None], 3, axis=-1)
    if array.ndim == 5:
        array = array[0]
    if array.ndim not in (3, 4) or array.shape[-1] not in (1, 3, 4):
        raise ValueError(f"an array of shape {array.shape} is not a picture or a clip")
    array = array.reshape(-1, *array.shape[-3:])[..., :3]
    return array if array.shape[-1] == 3 else np.repeat(array, 3, axis=-1)


def _ndim(item: Any) -> int:
    return 4 if isinstance(item, (list, tuple)) else item.ndim


def _unit(array: np.ndarray) -> np.ndarray:
    scale = 255.0 if array.dtype == np.uint8 else 1.0
    return np.nan_to_num(np.clip(array.astype(np.float32) / scale, 0, 1))


def to_image(frame: np.ndarray, size: tuple[int, int] | None = None) -> Image.Image:
    """A frame (H, W, 3) in [0, 1] as a picture of ``size`` (width, height); Lanczos keeps small frames smooth."""
    image = Image.fromarray((np.clip(frame, 0, 1) * 255).round().astype(np.uint8))
    return image if size is None or image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def visible_size(width: int, height: int, least: int = 256) -> tuple[int, int]:
    """A small frame's size times the whole number that makes it at least ``least`` pixels wide; others unchanged."""
    factor = max(1, -(-least // width))
    return width * factor, height * factor


def pick(count: int, most: int) -> list[int]:
    """At most ``most`` evenly spread indices of ``count`` frames, the first and the last among them.

    >>> pick(9, 3), pick(2, 8)
    ([0, 4, 8], [0, 1])
    """
    return [round(i) for i in np.linspace(0, count - 1, min(count, most))]


def difference(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, int]:
    """``|a - b|`` times a gain, and the gain: the largest that clips less than one value in 500."""
    gap = np.abs(a - b)
    high = float(np.quantile(gap, 0.998))
    gain = next((g for g in reversed(GAINS) if g * high <= 1.0), 1) if gap.max() > 0 else 1
    return np.clip(gap * gain, 0, 1), gain


def brighten_depth(clips: Sequence[Clip | None]) -> list[Clip | None]:
    """The clips with their depths scaled by one factor: what is far in the first of them becomes white."""
    first = next((c.depth for c in clips if c is not None and c.depth is not None), None)
    scale = 1.0 if first is None else 1.0 / max(float(np.quantile(first, 0.99)), 1e-3)
    return [c if c is None or c.depth is None else Clip(c.frames, np.minimum(c.depth * scale, 1)) for c in clips]


def side_by_side(images: Sequence[Image.Image], gap: int = 0, fill: str = "white") -> Image.Image:
    """Pictures of one height in a row."""
    width = sum(i.width for i in images) + gap * (len(images) - 1)
    row = Image.new("RGB", (width, images[0].height), fill)
    x = 0
    for image in images:
        row.paste(image, (x, 0))
        x += image.width + gap
    return row
