"""Small drawings of the page that are plain SVG: what each step did, and how long it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median

from markupsafe import Markup

from ..media.strip import ABSENT, FULL, PART, strip_rows
from .data import Report, Row

CELL, TALL, SPARK = 10, 26, 22
#: of a step that was partly computed, where its share is not known
HALF = 0.5


@dataclass(frozen=True)
class Strip:
    """One line of steps: its label, the share of the work that ran at each step (None: not called), and its summary."""

    label: str
    shares: list[float | None]
    about: str

    @property
    def svg(self) -> Markup:
        return draw_shares(self.shares)


def strips(report: Report, row: Row) -> list[Strip]:
    """What each step of the first seed did: by the engine's decisions, or by the work that was counted."""
    trajectories = row.samples[0].trajectories if row.samples else []
    if trajectories:
        return _merged([Strip(r.label, [_share(d) for d in r.decisions], _about(r)) for r in strip_rows(trajectories)])
    chunks = chunks_of(report)
    parts = []
    for number, part in enumerate(split(row.work, chunks), 1):
        shares = fold(part, row.steps)
        label = f"chunk {number}" if chunks > 1 else "all"
        parts.append(Strip(label, list(shares), f"{sum(shares):.1f} of {len(shares)} steps' work"))
    return _merged(parts)


def _share(letter: str) -> float | None:
    return None if letter == ABSENT else 1.0 if letter == FULL else HALF if letter == PART else 0.0


def _about(row: object) -> str:
    return f"{row.computed} of {len(row.decisions)} computed"


def _merged(found: list[Strip]) -> list[Strip]:
    """Lines that are alike are shown once."""
    groups: dict[tuple, list[Strip]] = {}
    for strip in found:
        groups.setdefault(tuple(strip.shares), []).append(strip)
    return [
        Strip(
            members[0].label if len(members) == 1 else _joined([m.label for m in members]), list(key), members[0].about
        )
        for key, members in groups.items()
    ]


def _joined(labels: list[str]) -> str:
    words = [label.rpartition(" ") for label in labels]
    if len({head for head, _, _ in words}) == 1 and words[0][0]:
        return f"{words[0][0]} {', '.join(tail for _, _, tail in words)}"
    return ", ".join(labels)


def chunks_of(report: Report) -> int:
    """Trajectories of one generation (a rollout has one a chunk), as far as a row told them."""
    return max((len(s.trajectories) for row in report.rows for s in row.samples[:1]), default=1) or 1


def split(values: Sequence[float], parts: int) -> list[list[float]]:
    """Equal parts, in order."""
    size = -(-len(values) // parts) if values else 1
    return [list(values[i : i + size]) for i in range(0, len(values), size)]


def fold(calls: Sequence[float], steps: int) -> list[float]:
    """One value a step: the mean of its calls (branches); other numbers of calls stay as they are."""
    per = len(calls) // steps if steps and len(calls) % steps == 0 else 1
    return [mean(calls[i : i + per]) for i in range(0, len(calls), max(per, 1))]


def call_times(report: Report, row: Row) -> list[float]:
    """Seconds of each step, median over seeds and chunks, over the median of dense calls."""
    chunks = chunks_of(report)
    dense = median(call for d in report.dense for timing in d.timings for call in timing.calls)
    steps = [fold(part, row.steps) for s in row.samples for part in split(s.timing.calls, chunks)]
    length = min(map(len, steps), default=0)
    return [median(part[i] for part in steps) / dense for i in range(length)]


def draw_shares(shares: Sequence[float | None]) -> Markup:
    """A cell a step: filled from below by the share that was computed; the height tells it without colour, too."""
    width = max(len(shares), 1) * CELL
    cells = []
    for i, share in enumerate(shares):
        kind = "absent" if share is None else "predicted"
        cells.append(f'<rect class="{kind}" x="{i * CELL}" y="0" width="{CELL - 1.5}" height="{TALL}"/>')
        if share:
            tall = max(TALL * min(share, 1.0), 2)
            cells.append(
                f'<rect class="computed" x="{i * CELL}" y="{TALL - tall:g}" width="{CELL - 1.5}" height="{tall:g}"/>'
            )
    return _svg(width, TALL, "".join(cells))


def draw_times(times: Sequence[float]) -> Markup:
    """Time of each step; the dashed line is a dense call."""
    if not times:
        return Markup()
    top = max(1.4, min(max(times), 2.5))
    width = len(times) * CELL
    heights = [SPARK * min(t, top) / top for t in times]
    steps = "".join(
        f'<rect class="time" x="{i * CELL}" y="{SPARK - h:.2f}" width="{CELL - 1.5}" height="{h:.2f}"/>'
        for i, h in enumerate(heights)
    )
    level = SPARK - SPARK / top
    line = f'<line class="level" x1="0" x2="{width}" y1="{level:.2f}" y2="{level:.2f}"/>'
    return _svg(width, SPARK, steps + line)


def _svg(width: int, height: int, inside: str) -> Markup:
    shape = f'viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true"'
    return Markup(f'<svg class="strip" {shape}>{inside}</svg>')
