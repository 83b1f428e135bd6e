"""The decision strip: one cell a step and branch that says whether the step was computed or predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import ImageDraw

from . import drawing
from .drawing import INK, LINE, SOFT, text_width, write_text

if TYPE_CHECKING:
    from ..hooks.stats import Stats

# The letters of decision strings, see `SegmentStats` (importing them would load torch, which pictures do not need).
FULL, PART, PREDICTED, ABSENT = "F", "p", "c", "-"
CELL, ROW, LEGEND = 20, 26, 30
MOST_ROWS = 8
_SHADES = {FULL: drawing.COMPUTED, PART: drawing.PARTIAL, PREDICTED: drawing.PREDICTED}
_WORDS = {FULL: "computed", PART: "partly computed", PREDICTED: "predicted"}


@dataclass(frozen=True)
class StripRow:
    """One branch of one trajectory: its label and its decision string (see `SegmentStats`)."""

    label: str
    decisions: str

    @property
    def computed(self) -> int:
        return self.decisions.count(FULL)


def strip_rows(trajectories: Sequence[Stats]) -> list[StripRow]:
    """Every branch of every trajectory, in order; chunks, experts and branches are named where there are several."""
    experts = {s.expert for t in trajectories for s in t.segments}
    rows = []
    for number, trajectory in enumerate(trajectories, 1):
        for s in trajectory.segments:
            parts = [f"chunk {number}"] if len(trajectories) > 1 else []
            parts += [s.expert] if len(experts) > 1 else []
            several = len({t.branch for t in trajectory.segments}) > 1
            parts += [s.branch] if several or not parts else []
            rows.append(StripRow(" ".join(parts), s.decisions))
    return rows


def computed_share(rows: Sequence[StripRow]) -> str:
    """``"15 of 50 denoiser calls computed"``, over all rows."""
    calls = sum(len(r.decisions.replace(ABSENT, "")) for r in rows)
    return f"{sum(r.computed for r in rows)} of {calls} denoiser calls computed"


def strip_height(rows: Sequence[StripRow]) -> int:
    """Height in pixels of `draw_strip`, legend included."""
    shown = min(len(rows), MOST_ROWS)
    return shown * ROW + (18 if len(rows) > shown else 0) + LEGEND


def label_room(rows: Sequence[StripRow], size: int = 15) -> int:
    """Width in pixels of the widest label."""
    return max((text_width(r.label, size) for r in rows), default=0)


def draw_strip(
    draw: ImageDraw.ImageDraw, left: int, top: int, start: int, right: int, rows: Sequence[StripRow]
) -> None:
    """Draw the strip and its legend: labels from ``left``, cells from ``start`` to ``right``, height `strip_height`."""
    y = top
    longest = max((len(r.decisions) for r in rows), default=1)
    pitch = (right - start) / max(longest, 1)
    gap = 2 if pitch >= 6 else 1 if pitch >= 3 else 0
    for row in rows[:MOST_ROWS]:
        write_text(draw, (left, y + CELL / 2), row.label, 15, INK, "lm")
        for i, letter in enumerate(row.decisions):
            box = (start + round(i * pitch), y, start + round((i + 1) * pitch) - 1 - gap, y + CELL - 1)
            draw.rectangle((box[0], box[1], max(box[0], box[2]), box[3]), fill=_SHADES.get(letter, drawing.ABSENT))
        y += ROW
    if len(rows) > MOST_ROWS:
        write_text(draw, (start, y), f"and {len(rows) - MOST_ROWS} rows more", 14, SOFT)
        y += 18
    _legend(draw, start, y + 6, right, rows)


def _legend(draw: ImageDraw.ImageDraw, x: int, y: int, right: int, rows: Sequence[StripRow]) -> None:
    used = set("".join(r.decisions for r in rows))
    for letter, word in _WORDS.items():
        if letter != PART or letter in used:
            draw.rectangle((x, y, x + 13, y + 13), fill=_SHADES[letter], outline=LINE)
            write_text(draw, (x + 20, y + 7), word, 14, SOFT, "lm")
            x += 20 + text_width(word, 14) + 20
    axis = "one cell a denoising step"
    if x + text_width(axis, 14) <= right:
        write_text(draw, (right, y + 7), axis, 14, SOFT, "rm")
