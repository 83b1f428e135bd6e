"""The pictures that a report keeps: film strips of samples, maps of their errors, sheets for sharing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..media.frames import Clip, pick, side_by_side, to_image

FRAMES = 8  # of a film strip
FOLDER = "pictures"
#: relative errors at the two ends of an error map's scale; between them it is logarithmic
DARK, BRIGHT = 3e-4, 0.3
DENSE, REAL, START = "dense", "real", "start"


def slug(name: str) -> str:
    """A row's name as a file name; different names stay different.

    >>> slug("worldcache:computed=0.25")
    'worldcache_computed-0.25'
    """
    return re.sub(r"[^\w.+,-]", "_", name.replace("=", "-"))


def error_map(sample: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """``|sample - dense|``, mean over channels, on a logarithmic scale from 0 (at most :data:`DARK`) to 1."""
    error = np.abs(sample - dense).mean(-1)
    scale = np.log(BRIGHT / DARK)
    return np.clip(np.log(np.maximum(error, DARK) / DARK) / scale, 0, 1)


def shaded(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] as colours that grow lighter with the value, in grey as well."""
    from matplotlib import colormaps

    return colormaps["inferno"](values)[..., :3].astype(np.float32)


def spaced(strips: Sequence[Image.Image], width: int) -> Image.Image:
    """Pictures of ``width`` pixels with a clear gap between them."""
    parts = [strip.crop((x, 0, x + width, strip.height)) for strip in strips for x in range(0, strip.width, width)]
    gap = max(1, width // 40)
    row = Image.new("RGBA", (len(parts) * (width + gap) - gap, parts[0].height))
    for i, part in enumerate(parts):
        row.paste(part, (i * (width + gap), 0))
    return row


@dataclass(frozen=True)
class Album:
    """Pictures on disk, one a row and seed, in ``pictures/``; frames stand side by side at their own size."""

    folder: Path
    whole: bool = False  # keep every frame, not only those that are shown

    def path(self, name: str, seed: int, kind: str = "") -> Path:
        return self.folder / FOLDER / f"{slug(name)}-seed{seed}{kind and f'-{kind}'}.png"

    def keep_references(self, seed: int, dense: Clip, real: Clip | None, start: Clip | None) -> None:
        """Dense, what really followed, and the frame that was given."""
        self._write(self.path(DENSE, seed), dense.frames)
        if real is not None:
            self._write(self.path(REAL, seed), real.frames)
        if start is not None:
            self._write(self.path(START, seed), start.frames[-1:])

    def keep(self, name: str, seed: int, clip: Clip, dense: Clip) -> None:
        """A row's sample and its error map."""
        self._write(self.path(name, seed), clip.frames)
        self._write(self.path(name, seed, "error"), shaded(error_map(clip.frames, dense.frames)))

    def keep_tokens(self, name: str, values: np.ndarray) -> None:
        """A row's token map, values in [0, 1]."""
        path = self.path_of_tokens(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        to_image(shaded(values)).save(path, optimize=True)

    def path_of_tokens(self, name: str) -> Path:
        return self.folder / FOLDER / f"{slug(name)}-tokens.png"

    def _write(self, path: Path, frames: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        chosen = range(len(frames)) if self.whole else pick(len(frames), FRAMES)
        side_by_side([to_image(frames[i]) for i in chosen]).save(path, optimize=True)

    def strip(self, name: str, seeds: list[int], width: int, kind: str = "") -> Image.Image | None:
        """Frames of ``width`` pixels, or single pictures of several seeds, side by side; None if nothing was kept."""
        found = [Image.open(p) for p in (self.path(name, seed, kind) for seed in seeds) if p.is_file()]
        return spaced([image.convert("RGB") for image in found], width) if found else None

    def frames(self, name: str, seeds: list[int], width: int) -> torch.Tensor:
        """Every kept frame as ``[N, 3, H, W]`` in [0, 1]; ``width`` of one frame in pixels."""
        strips = [np.asarray(Image.open(self.path(name, seed)).convert("RGB")) for seed in seeds]
        parts = [strip[:, x : x + width] for strip in strips for x in range(0, strip.shape[1], width)]
        return torch.from_numpy(np.stack(parts)).movedim(-1, 1).float() / 255
