"""Speed against right answers, and against agreement with vanilla."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from ..plots import INK, SOFT, Style, blank, speed_axis
from .summary import TextLine

LABELS = {"right": "right answers (%)", "agreement": "tokens that are vanilla's (%)"}


def trade_off(lines: Sequence[TextLine], metric: str, looks: dict[str, Style], vanilla: float) -> Figure:
    """Speed against a share in percent; up and right is better. Points on the front are filled.

    Args:
        metric: a key of :data:`LABELS`.
        vanilla: its own value, in [0, 1], drawn as a line.
    """
    figure, axes = blank(5.6, 4.2)
    axes.axhline(100 * vanilla, color=SOFT, linewidth=1, linestyle=(0, (1, 2)))
    place = dict(xycoords=("axes fraction", "data"), textcoords="offset points", ha="left", fontsize=9)
    axes.annotate("vanilla", (0.005, 100 * vanilla), (0, 3), color=SOFT, **place)
    families: dict[str, list[TextLine]] = {}
    for line in sorted(lines, key=lambda line: line.speed.median):
        families.setdefault(line.row.family, []).append(line)
    for family, members in families.items():
        look = looks[family]
        xs, ys = [m.speed.median for m in members], [100 * value_of(m, metric) for m in members]
        if len(xs) > 1:
            axes.plot(xs, ys, color=look.color, linestyle=look.line, linewidth=1.4, alpha=0.75, zorder=2)
        for line, x, y in zip(members, xs, ys, strict=True):
            _point(axes, line, x, y, look, metric)
    speed_axis(axes, [line.speed.median for line in lines])
    values = [100 * vanilla, *(end for line in lines for end in _ends(line, metric))]
    room = 0.1 * (max(values) - min(values)) + 2
    axes.set_ylim(max(min(values) - room, -3), min(max(values) + room, 103))
    axes.set_ylabel(LABELS[metric], color=INK)
    axes.set_xlabel("tokens/s against vanilla", color=INK)
    return figure


def _point(axes: object, line: TextLine, x: float, y: float, look: Style, metric: str) -> None:
    axes.plot([x, x], _ends(line, metric), color=look.color, linewidth=1, alpha=0.35, zorder=1)
    axes.plot([line.speed.low, line.speed.high], [y, y], color=look.color, linewidth=1, alpha=0.35, zorder=1)
    face = look.color if line.best else "none"
    (mark,) = axes.plot([x], [y], look.marker, color=look.color, markerfacecolor=face, markersize=7.5, zorder=3)
    mark.set_gid(f"tip|{line.name}: {x:.2f}x, {y:.1f}%")


def _ends(line: TextLine, metric: str) -> tuple[float, float]:
    """Of the interval in percent; twice the value where there is none."""
    if metric == "agreement" or line.right is None:
        return 100 * value_of(line, metric), 100 * value_of(line, metric)
    return 100 * line.right.low, 100 * line.right.high


def value_of(line: TextLine, metric: str) -> float:
    """A share, in [0, 1]."""
    return line.agreement if metric == "agreement" or line.right is None else line.right.mean
