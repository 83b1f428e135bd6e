"""The plots, by matplotlib: SVG that takes the page's colours in light and dark, and PNG for sharing.

Families differ in colour (Okabe-Ito), marker and line style at once: readable in grey and by the colour-blind.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from .metrics import METRICS
from .plan import CONTROL
from .statistics import EQUAL
from .summary import Line

#: colours that stand for the page's own: ink, soft text, grid
INK, SOFT, GRID = "#010203", "#020304", "#030405"
_PAGE = {INK: "var(--ink)", SOFT: "var(--soft)", GRID: "var(--grid)"}  # besides the families' colours
_PRINT = {INK: "#16181d", SOFT: "#5c626e", GRID: "#e3e5ea"}
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F6EDB", "#8C6D31")
_MARKERS = ("o", "s", "^", "v", "P", "X", "p", "h", "<", ">", "*", "8")
_PAGE |= {color.lower(): f"var(--c{i})" for i, color in enumerate(_COLORS)}  # lighter in the dark
_LINES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 3)))
SPEEDS = (0.8, 1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 15, 20)


@dataclass(frozen=True)
class Style:
    """How a family is drawn everywhere."""

    color: str
    marker: str
    line: str | tuple


def styles(families: Iterable[str]) -> dict[str, Style]:
    """A style for each family, in order of appearance; the control is drawn in ink."""
    found: dict[str, Style] = {}
    for family in dict.fromkeys(families):
        if family == CONTROL:
            found[family] = Style(INK, "D", (0, (2, 2)))
            continue
        i = sum(name != CONTROL for name in found)
        found[family] = Style(_COLORS[i % len(_COLORS)], _MARKERS[i % len(_MARKERS)], _LINES[i % len(_LINES)])
    return found


# -- figures -----------------------------------------------------------------------------------------------------------


def trade_off(
    lines: Sequence[Line], metric: str, question: str, whole: bool, looks: dict[str, Style], dense: float | None = None
) -> Figure:
    """Speed-up against a metric; up and right is better. Points on the front are filled.

    Args:
        lines: rows that skip something.
        whole: of the pipeline, not of the denoiser alone.
        dense: dense's own value, drawn as a line where the reference is not dense.
    """
    figure, axes = blank(5.6, 4.2)
    kind = METRICS[metric]
    similar = metric in ("ssim", "ms_ssim")
    value = (lambda v: max(1 - v, 1e-6)) if similar else (lambda v: v)
    families: dict[str, list[Line]] = {}
    for line in lines:
        if metric in line.metrics.get(question, {}):
            families.setdefault(line.row.family, []).append(line)
    for family, members in families.items():
        _family(axes, members, metric, question, whole, looks[family], value)
    if dense is not None:
        axes.axhline(value(dense), color=SOFT, linewidth=1, linestyle=(0, (1, 2)))
        axes.annotate("dense", (1, value(dense)), (-4, 3), "data", "offset points", color=SOFT, fontsize=9, ha="right")
    _value_axis(
        axes,
        [value(m.metrics[question][metric].mean) for f in families.values() for m in f],
        similar or not kind.higher,
    )
    speed_axis(axes, [(line.whole if whole else line.denoiser).median for line in lines])
    axes.set_ylabel(f"1 - {kind.label}" if similar else kind.label, color=INK)
    axes.set_xlabel(f"{'whole-pipeline' if whole else 'denoiser'} speed-up against dense", color=INK)
    return figure


def _family(
    axes: Axes,
    members: list[Line],
    metric: str,
    question: str,
    whole: bool,
    look: Style,
    value: Callable[[float], float],
) -> None:
    members = sorted(members, key=lambda line: (line.whole if whole else line.denoiser).median)
    xs = [(line.whole if whole else line.denoiser).median for line in members]
    ys = [value(line.metrics[question][metric].mean) for line in members]
    if len(xs) > 1:
        axes.plot(xs, ys, color=look.color, linestyle=look.line, linewidth=1.4, alpha=0.75, zorder=2)
    for line, x, y in zip(members, xs, ys, strict=True):
        over, speed = line.metrics[question][metric], line.whole if whole else line.denoiser
        if over.half == over.half and over.half > 0:
            axes.plot([x, x], [value(over.low), value(over.high)], color=look.color, linewidth=1, alpha=0.5, zorder=1)
        axes.plot([speed.low, speed.high], [y, y], color=look.color, linewidth=1, alpha=0.35, zorder=1)
        face = look.color if line.best else "none"
        (mark,) = axes.plot([x], [y], look.marker, color=look.color, markerfacecolor=face, markersize=7.5, zorder=3)
        mark.set_gid(f"tip|{line.name}: {x:.2f}x, {METRICS[metric].label} {over.mean:.{METRICS[metric].digits}f}")


def _value_axis(axes: Axes, values: Sequence[float], less_is_better: bool) -> None:
    """As far as the means reach: wide intervals of few seeds may be cut."""
    if less_is_better:
        positive = [v for v in values if v > 0] or [1.0]
        axes.set_yscale("log")
        axes.set_ylim(max(positive) * 1.5, min(positive) / 1.5)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif values:
        room = 0.15 * (max(values) - min(values)) + 0.5
        axes.set_ylim(min(values) - room, max(values) + room)


def speed_axis(axes: Axes, speeds: Sequence[float]) -> None:
    """Logarithmic, from a little below 1x, or the slowest, to beyond 2x, or the fastest."""
    axes.set_xscale("log")
    low, high = min([*speeds, 1.0]) * 0.95, max([*speeds, 2.0]) * 1.08
    axes.set_xlim(low, high)
    ticks = [s for s in SPEEDS if low <= s <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}x"))


def rollout(
    curves: Sequence[tuple[str, Style, Sequence[float]]], marks: Sequence[int], label: str, width: float = 5.6
) -> Figure:
    """PSNR of each frame; ``marks`` are frames at which a chunk begins."""
    figure, axes = blank(width, 3.6)
    for mark in marks:
        axes.axvline(mark + 0.5, color=GRID, linewidth=1.5, zorder=0)
    for name, look, values in curves:
        frames = range(1, len(values) + 1)
        every = max(1, len(values) // 8)
        axes.plot(
            frames,
            values,
            color=look.color,
            linestyle=look.line,
            marker=look.marker,
            markersize=5,
            markevery=every,
            linewidth=1.5,
            gid=f"tip|{name}",
        )
    axes.set_xlabel("frame", color=INK)
    axes.set_ylabel(label, color=INK)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def heard(
    steps: Sequence[Sequence[float | None]], threshold: float | None, computed: Sequence[int], look: Style
) -> Figure:
    """What a schedule compared with its threshold at each step, one line a branch; computed steps are marked below."""
    figure, axes = blank(5.6, 2.6)
    peak = max([v for row in steps for v in row if v is not None] + [threshold or 0.0])
    for number, row in enumerate(steps):
        points = [(i, v) for i, v in enumerate(row, 1) if v is not None]
        style = _LINES[number % len(_LINES)]
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        axes.plot(xs, ys, look.marker, linestyle=style, color=look.color, markersize=3.5, linewidth=1)
    if threshold is not None:
        axes.axhline(threshold, color=INK, linestyle=(0, (4, 2)), linewidth=1.2)
        place = dict(xycoords=("axes fraction", "data"), textcoords="offset points", ha="right", fontsize=9)
        axes.annotate("threshold", (0.995, threshold), (0, 3), color=INK, **place)
        axes.set_ylim(top=max(peak * 1.08, threshold * 1.2))
    axes.plot([step + 1 for step in computed], [-0.08 * peak] * len(computed), "|", color=SOFT, markersize=7)
    axes.set_ylim(bottom=-0.16 * peak)
    axes.set_xlim(0.5, max(len(row) for row in steps) + 0.5)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("step (ticks below: computed)", color=INK)
    axes.set_ylabel("heard", color=INK)
    return figure


def blank(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure in the page's style, in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    figure.patch.set_alpha(0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(SOFT)
    axes.tick_params(which="both", colors=SOFT, labelcolor=INK, labelsize=10)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.label.set_size(11)
    axes.yaxis.label.set_size(11)
    return figure, axes


# -- files -------------------------------------------------------------------------------------------------------------

_SETTINGS = {"svg.fonttype": "none", "font.family": "DejaVu Sans", "path.simplify": True}


def to_svg(figure: Figure, name: str) -> str:
    """Inline SVG as wide as its place; points have their figures as tooltips. ``name`` is unique on the page."""
    buffer = io.StringIO()
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg ([^>]*?)width="[^"]+"', r"<svg \1", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]+"', r"<svg \1", svg, count=1)
    svg = re.sub(r' xmlns(:xlink)?="[^"]+"', "", svg)  # inside HTML they are known
    svg = svg.replace("xlink:href", "href")
    for color, variable in _PAGE.items():
        svg = svg.replace(color, variable)
    svg = re.sub(r'<g id="tip\|([^"]*)">', r"<g><title>\1</title>", svg)
    # ids are per figure in matplotlib, but the page has many figures
    prefix = re.sub(r"\W", "", name)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    return re.sub(r"font: ([\d.]+)px '[^']*'(, [^;\"]*)?", r"font-size: \1px", svg)


def to_png(figure: Figure, title: str, names: dict[str, Style]) -> bytes:
    """A PNG on white, with what the page says beside the plot: a title, and a legend of ``names``."""
    marks = [
        Line2D([], [], color=look.color, marker=look.marker, linestyle=look.line, label=name)
        for name, look in names.items()
    ]
    figure.set_size_inches(7, 5.4)
    figure.legend(handles=marks, loc="outside lower center", ncols=2, frameon=False, labelcolor=INK, fontsize=9)
    figure.suptitle(title, color=INK, fontsize=12)
    for artist in figure.findobj():
        for name in ("color", "edgecolor", "facecolor", "markeredgecolor", "markerfacecolor"):
            _repaint(artist, name)
    figure.patch.set_alpha(1)
    figure.patch.set_facecolor("white")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    return buffer.getvalue()


def _repaint(artist: object, name: str) -> None:
    getter, setter = getattr(artist, f"get_{name}", None), getattr(artist, f"set_{name}", None)
    if getter is None or setter is None:
        return
    try:
        color = matplotlib.colors.to_hex(getter())
    except (ValueError, TypeError):
        return
    if color in _PRINT and matplotlib.colors.to_rgba(getter())[3] > 0:
        setter(_PRINT[color])


def glyph(look: Style) -> str:
    """A family's marker and line as a small SVG for legends."""
    figure = Figure(figsize=(0.44, 0.2))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    figure.patch.set_alpha(0)
    axes.plot([0, 2], [0, 0], color=look.color, linestyle=look.line, linewidth=1.4)
    axes.plot([1], [0], look.marker, color=look.color, markersize=7)
    axes.set_xlim(0, 2)
    axes.set_ylim(-1, 1)
    return to_svg(figure, f"glyph{look.color}{look.marker}")


def drawable(line: Line) -> bool:
    """Rows that skip nothing sit at 1x and equal, and would only squeeze the others."""
    return line.skips and line.psnr < EQUAL
