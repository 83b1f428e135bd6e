"""Dense and accelerated side by side, moving: captions above, decision strip below."""

from __future__ import annotations

import numpy as np
from PIL import Image

from .comparison import Comparison
from .drawing import INK, MARGIN, SOFT, shorten, text_width, write_text
from .drawing import sheet as blank
from .frames import Clip, side_by_side, to_image, visible_size
from .strip import draw_strip, label_room, strip_height

GAP = 12
WIDEST = 640  # of one panel; larger videos are scaled down, or the file would be twice a full video wide
HEAD, CAPTION = 92, 46


def comparison_frames(c: Comparison) -> list[Image.Image]:
    """One picture a video frame; every picture has the same size."""
    panels = [
        ("dense", f"{c.seconds[0]:.2f} s in the denoiser", c.dense),
        (c.method, f"{c.seconds[1]:.2f} s in the denoiser", c.fast),
    ]
    if c.truth is not None:
        panels.append(("recorded", "what really followed", c.truth))
    size = _panel_size(c.dense.frames)
    base, left, top = _frame(c, panels, size)
    return [_filled(base, panels, i, size, left, top) for i in range(len(c.dense.frames))]


def clip_frames(clip: Clip) -> list[Image.Image]:
    """A clip at a size that a person can see, depth to the right of it where there is depth."""
    size = visible_size(clip.frames.shape[2], clip.frames.shape[1])
    films = [clip.frames] + ([clip.depth] if clip.depth is not None else [])
    return [side_by_side([to_image(f[i], size) for f in films]) for i in range(len(clip.frames))]


def _panel_size(frames: np.ndarray) -> tuple[int, int]:
    width, height = visible_size(frames.shape[2], frames.shape[1], 320)
    if width > WIDEST:
        width, height = WIDEST, round(height * WIDEST / width)
    return width, height


def _frame(c: Comparison, panels: list[tuple[str, str, Clip]], size: tuple[int, int]) -> tuple[Image.Image, int, int]:
    """Everything that stands still, and where the panels begin."""
    deep = any(p.depth is not None for _, _, p in panels)
    film = len(panels) * size[0] + (len(panels) - 1) * GAP
    figures = " · ".join(f"{value} {name.split()[0]}" for value, name in c.figures)
    width = max(film, 652) + 2 * MARGIN
    width += width % 2
    top = HEAD + CAPTION
    below = top + size[1] * (1 + deep) + (GAP if deep else 0) + 20
    height = below + strip_height(c.rows) + MARGIN - 8
    image, draw = blank(width, height + height % 2)
    room = width - 2 * MARGIN
    write_text(draw, (MARGIN, 20), shorten(c.title, 22, room), 22)
    write_text(draw, (MARGIN, 50), shorten(figures, 15, room), 15, INK)
    write_text(draw, (MARGIN, 72), shorten(c.subtitle, 14, room), 14, SOFT)
    left = (width - film) // 2
    for column, (name, note, _) in enumerate(panels):
        x = left + column * (size[0] + GAP)
        write_text(draw, (x, top - 10), name, 17, INK, "ls")
        note = shorten(note, 14, size[0] - text_width(name, 17) - 10)
        write_text(draw, (x + size[0], top - 10), note, 14, SOFT, "rs")
    draw_strip(draw, MARGIN, below, MARGIN + label_room(c.rows) + 16, width - MARGIN, c.rows)
    return image, left, top


def _filled(
    base: Image.Image, panels: list[tuple[str, str, Clip]], i: int, size: tuple[int, int], left: int, top: int
) -> Image.Image:
    image = base.copy()
    for column, (_, _, clip) in enumerate(panels):
        x = left + column * (size[0] + GAP)
        image.paste(to_image(clip.frames[min(i, len(clip.frames) - 1)], size), (x, top))
        if clip.depth is not None:
            image.paste(to_image(clip.depth[min(i, len(clip.depth) - 1)], size), (x, top + size[1] + GAP))
    return image
