"""One picture that compares dense and accelerated: film strips, figures, decision strip."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .comparison import Comparison
from .drawing import INK, LINE, MARGIN, SOFT, shorten, text_width, write_text
from .drawing import sheet as blank
from .frames import Clip, difference, pick, to_image
from .strip import computed_share, draw_strip, label_room, strip_height

COLUMNS, GAP = 8, 6
FILM = 1344  # width of a film strip, start frame included
PANEL = 448  # width of a panel where there is only one frame
HEAD, FIGURES, FOOT = 84, 78, 20


@dataclass(frozen=True)
class _Film:
    label: str
    note: str
    frames: np.ndarray
    start: np.ndarray | None = None


def comparison_sheet(c: Comparison) -> Image.Image:
    """The picture; a clip shows at most eight frames a row, a single picture stands in three panels side by side."""
    return _panels(c) if len(c.dense.frames) == 1 else _films(c)


def film_sheet(clip: Clip, caption: str) -> Image.Image:
    """One clip as a film strip (and its depth beneath), with one line of caption. A picture comes back as it is."""
    if len(clip.frames) == 1 and clip.depth is None:
        return to_image(clip.frames[0])
    films = [clip.frames] + ([clip.depth] if clip.depth is not None else [])
    chosen = pick(len(clip.frames), COLUMNS)
    size = _cell_size(clip.frames.shape, len(chosen))
    width = 2 * MARGIN + len(chosen) * size[0] + (len(chosen) - 1) * GAP
    image, draw = blank(width, 2 * MARGIN + 28 + len(films) * (size[1] + GAP) - GAP)
    write_text(draw, (MARGIN, MARGIN - 8), shorten(caption, 16, width - 2 * MARGIN), 16, SOFT)
    for row, frames in enumerate(films):
        y = MARGIN + 28 + row * (size[1] + GAP)
        for column, index in enumerate(chosen):
            image.paste(to_image(frames[index], size), (MARGIN + column * (size[0] + GAP), y))
    return image


def _cell_size(shape: tuple[int, ...], columns: int, film: int = FILM) -> tuple[int, int]:
    height, width = shape[1:3]
    cell = min((film - GAP * (columns - 1)) // columns, 320)
    return cell, max(1, round(cell * height / width))


def _rows(c: Comparison) -> list[_Film]:
    gap, gain = difference(c.fast.frames, c.dense.frames)
    label = "|difference|" if gap.any() else "no difference"
    start = c.start.frames if c.start else None
    rows = [
        _Film("dense", "every step computed", c.dense.frames, start),
        _Film(c.method, _steps_note(c), c.fast.frames, start),
        _Film(label, f"brightened x{gain}" if gain > 1 else "", gap),
    ]
    if c.truth is not None:
        rows.append(_Film("recorded", "what really followed", c.truth.frames, start))
    if c.dense.depth is not None and c.fast.depth is not None:
        start = c.start.depth if c.start else None
        rows += [_Film("dense", "depth", c.dense.depth, start), _Film(c.method, "depth", c.fast.depth, start)]
    return rows


def _steps_note(c: Comparison) -> str:
    return computed_share(c.rows).replace(" denoiser calls", "")


def _films(c: Comparison) -> Image.Image:
    rows = _rows(c)
    chosen = pick(len(c.dense.frames), COLUMNS)
    columns = len(chosen) + (c.start is not None)
    size = _cell_size(c.dense.frames.shape, columns)
    names = [(r.label, 17) for r in rows] + [(r.note, 14) for r in rows]
    room = max([text_width(text, s) for text, s in names] + [label_room(c.rows)]) + 20
    film = columns * size[0] + (columns - 1) * GAP
    left = MARGIN + room
    width = max(left + film + MARGIN, 900)
    top = HEAD + FIGURES + 24
    height = top + len(rows) * (size[1] + GAP) + 22 + strip_height(c.rows) + FOOT + MARGIN
    image, draw = blank(width, height)
    _head(draw, c, width)
    shift = 0 if c.start is None else size[0] + GAP
    _column_names(draw, c, chosen, left, top - 8, size[0], shift)
    y = top
    for row in rows:
        _film_row(image, draw, row, chosen, (left, y), size, shift)
        y += size[1] + GAP
    _foot(draw, c, y + 22, left, width)
    return image


def _column_names(
    draw: ImageDraw.ImageDraw, c: Comparison, chosen: list[int], left: int, y: int, cell: int, shift: int
) -> None:
    if shift:
        write_text(draw, (left + cell / 2, y), "given", 14, SOFT, "ms")
    for column, index in enumerate(chosen):
        x = left + shift + column * (cell + GAP) + cell / 2
        write_text(draw, (x, y), f"frame {index + 1}" if column == 0 else str(index + 1), 14, SOFT, "ms")


def _film_row(
    image: Image.Image,
    draw: ImageDraw.ImageDraw,
    row: _Film,
    chosen: list[int],
    at: tuple[int, int],
    size: tuple[int, int],
    shift: int,
) -> None:
    x, y = at
    middle = y + size[1] / 2
    write_text(draw, (MARGIN, middle - (10 if row.note else 0)), row.label, 17, INK, "lm")
    write_text(draw, (MARGIN, middle + 12), row.note, 14, SOFT, "lm")
    if row.start is not None:
        image.paste(to_image(row.start[0], size), (x, y))
    for column, index in enumerate(chosen):
        if index < len(row.frames):
            image.paste(to_image(row.frames[index], size), (x + shift + column * (size[0] + GAP), y))


def _head(draw: ImageDraw.ImageDraw, c: Comparison, width: int) -> None:
    room = width - 2 * MARGIN
    write_text(draw, (MARGIN, 24), shorten(c.title, 26, room), 26)
    write_text(draw, (MARGIN, 60), shorten(c.subtitle, 15, room), 15, SOFT)
    x = MARGIN
    for value, name in c.figures:
        write_text(draw, (x, HEAD + 34), value, 30, INK, "ls")
        write_text(draw, (x, HEAD + 56), name, 14, SOFT, "ls")
        x += max(text_width(value, 30), text_width(name, 14)) + 44
    draw.line((MARGIN, HEAD + FIGURES - 8, width - MARGIN, HEAD + FIGURES - 8), fill=LINE)


def _foot(draw: ImageDraw.ImageDraw, c: Comparison, y: int, left: int, width: int) -> None:
    draw.line((MARGIN, y - 14, width - MARGIN, y - 14), fill=LINE)
    draw_strip(draw, MARGIN, y, left, width - MARGIN, c.rows)
    write_text(draw, (MARGIN, y + strip_height(c.rows) + 4), shorten(c.footnote, 14, width - 2 * MARGIN), 14, SOFT)


def _panels(c: Comparison) -> Image.Image:
    rows = _rows(c)[:3]
    size = _cell_size(c.dense.frames.shape, 1, PANEL)
    size = (PANEL, round(PANEL * size[1] / size[0]))
    width = 2 * MARGIN + 3 * PANEL + 2 * GAP
    top = HEAD + FIGURES + 36
    image, draw = blank(width, top + size[1] + 36 + strip_height(c.rows) + FOOT + MARGIN)
    _head(draw, c, width)
    for column, row in enumerate(rows):
        x = MARGIN + column * (PANEL + GAP)
        write_text(draw, (x, top - 12), row.label, 17, INK, "ls")
        write_text(draw, (x + text_width(row.label, 17) + 12, top - 12), row.note, 14, SOFT, "ls")
        image.paste(to_image(row.frames[0], size), (x, top))
    _foot(draw, c, top + size[1] + 36, MARGIN + label_room(c.rows) + 20, width)
    return image
