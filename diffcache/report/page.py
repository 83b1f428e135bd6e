"""The page: what the template needs, from a report; one HTML file without a reference to anything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from markupsafe import Markup
from PIL import Image

from . import plots
from .data import Report, write_atomically
from .extras import HOW
from .formats import bytes_text, data_uri, figure_text, settings_text
from .markdown import write_markdown
from .metrics import METRICS, MS_SSIM_SIDE
from .pictures import BRIGHT, DARK, DENSE, REAL, Album, shaded
from .plan import CONTROL
from .statistics import EQUAL, Interval, bounded
from .strips import call_times, chunks_of, draw_shares, draw_times, strips
from .summary import QUALITIES, TIMES, Line, Summary, summarise
from .templating import render_page
from .tokens import WORDS

PAGE = "report.html"
QUESTIONS = {
    "dense": ("Close to dense?", "Fidelity: every method against the same seed, sampled densely."),
    "real": ("Close to reality?", "Quality: every method, and dense, against the frames that really followed."),
    "prompt": ("Close to the prompt?", "Quality: the frames against their prompt."),
}


def write_page(report: Report, folder: Path) -> Path:
    """Write ``report.html``, ``report.md`` and the plots' PNGs; returns the page's path."""
    page = Page(report, folder)
    for name, figure, marks in page.figures():
        (folder / f"{name}.png").write_bytes(plots.to_png(figure, page.title, marks))
    path = folder / PAGE
    write_atomically(path, page.html())
    write_markdown(report, page.summary, page.lines, folder)
    return path


@dataclass(frozen=True)
class Tab:
    """A metric's two panels."""

    key: str
    label: str
    about: str
    panels: list[Markup]


class Page:
    """A report's page.

    Args:
        report: what was measured.
        folder: where its pictures are.
    """

    def __init__(self, report: Report, folder: Path) -> None:
        self.report, self.album = report, Album(folder)
        self.summary: Summary = summarise(report)
        self.drawn = [line for line in self.summary.lines if plots.drawable(line)]
        self.lines = sorted(self.summary.lines, key=_order)
        self.looks = plots.styles(line.row.family for line in self.lines)

    def html(self) -> str:
        """The page as text."""
        r, s = self.report, self.summary
        return render_page(
            "report.html",
            r=r,
            s=s,
            page=self,
            lines=self.lines,
            targets=(TIMES, QUALITIES),
            metrics=METRICS,
            questions=QUESTIONS,
            control=CONTROL,
            missing=self.missing,
            equal=EQUAL,
        )

    # -- figures ---------------------------------------------------------------------------------------------------

    @property
    def title(self) -> str:
        return f"{self.report.model.name}, {self.report.settings.steps} steps, {len(self.report.dense)} seeds"

    def figures(self) -> list[tuple[str, Any, dict[str, plots.Style]]]:
        """The plots that are also written as PNG: name, figure and legend."""
        if not self.drawn:
            return []
        looks = {family: self.looks[family] for family in self._families}
        found = [
            (f"psnr-{'pipeline' if whole else 'denoiser'}", self._trade_off("psnr", "dense", whole), looks)
            for whole in (False, True)
        ]
        curves = self._curves("dense")
        if curves:
            names = {name: look for name, look, _ in curves[0]}
            found.append(("rollout", plots.rollout(*curves, "PSNR against dense (dB)"), names))
        return found

    @property
    def _families(self) -> list[str]:
        """Families that are drawn, in order."""
        return list(dict.fromkeys(line.row.family for line in sorted(self.drawn, key=_order)))

    def _trade_off(self, metric: str, question: str, whole: bool) -> Any:
        real = self.summary.real.get(metric) if question == "real" else None
        return plots.trade_off(self.drawn, metric, question, whole, self.looks, real.mean if real else None)

    @property
    def tabs(self) -> list[Tab]:
        """Speed-up against each metric."""
        found = []
        for question in ("dense", "real"):
            keys = [k for k in METRICS if any(k in line.metrics.get(question, {}) for line in self.drawn)]
            for key in keys if question == "dense" else keys[:1]:
                panels = [
                    self._svg(self._trade_off(key, question, whole), f"p{question}{key}{whole}")
                    for whole in (False, True)
                ]
                label = METRICS[key].label if question == "dense" else f"{METRICS[key].label} to reality"
                found.append(Tab(f"{question}-{key}", label, METRICS[key].about, panels))
        return found

    @property
    def legend(self) -> list[tuple[str, Markup]]:
        return [(family, Markup(plots.glyph(self.looks[family]))) for family in self._families]

    @property
    def rollouts(self) -> list[tuple[str, Markup]]:
        """PSNR of each frame, for films: question and plot."""
        found = []
        for question in ("dense", "real"):
            curves = self._curves(question)
            if curves:
                label = "PSNR against dense (dB)" if question == "dense" else "PSNR against reality (dB)"
                found.append((question, self._svg(plots.rollout(*curves, label), f"roll{question}")))
        return found

    def _curves(self, question: str) -> tuple[list[tuple[str, plots.Style, list[float]]], list[int]] | None:
        """A row of each family, the one nearest to twice as fast; and where chunks begin."""
        if self.report.size[0] < 2:
            return None
        curves = []
        for family in self._families:
            members = [line for line in self.drawn if line.row.family == family]
            line = min(members, key=lambda m: abs(m.denoiser.median - 2))
            frames = [s.frames[question] for s in line.row.samples if question in s.frames]
            if frames:
                name = f"{line.name} ({line.denoiser.median:.1f}x)"
                curves.append((name, self.looks[family], _by_frame(frames)))
        dense = [d.frames["real"] for d in self.report.dense if "real" in d.frames]
        if question == "real" and dense:
            curves.insert(0, ("dense", plots.Style(plots.SOFT, ".", (0, (1, 1))), _by_frame(dense)))
        size = self.report.size[0] // chunks_of(self.report)
        marks = list(range(size, self.report.size[0], size)) if chunks_of(self.report) > 1 else []
        return (curves, marks) if curves else None

    @property
    def curve_names(self) -> list[tuple[str, Markup]]:
        curves = self._curves("real" if "real" in self.questions_asked else "dense")
        return [] if curves is None else [(name, Markup(plots.glyph(look))) for name, look, _ in curves[0]]

    @property
    def heard(self) -> list[tuple[Line, Markup]]:
        """What drift schedules compared with their thresholds, in the first seed's first trajectory."""
        found = []
        for line in self.lines:
            segments = [s for t in line.row.samples[0].trajectories[:1] for s in t.segments if any(s.heard)]
            if segments:
                computed = [i for i, letter in enumerate(segments[0].decisions) if letter == "F"]
                look = self.looks[line.row.family]
                rows = list({tuple(s.heard): s.heard for s in segments}.values())
                figure = plots.heard(rows, segments[0].threshold, computed, look)
                found.append((line, self._svg(figure, f"heard{len(found)}")))
        return found

    def _svg(self, figure: Any, name: str) -> Markup:
        return Markup(plots.to_svg(figure, name))

    # -- pictures --------------------------------------------------------------------------------------------------

    @property
    def films(self) -> bool:
        return self.report.size[0] > 1

    def picture(self, name: str, kind: str = "") -> Markup | None:
        """A strip as a data URI."""
        shown = self.report.shown[:1] if self.films else self.report.shown
        image = self.album.strip(name, shown, self.report.size[2], kind)
        return None if image is None else Markup(data_uri(image))

    @property
    def tokens(self) -> list[tuple[Line, str, Markup]]:
        """Maps of per-token methods: row, what it shows, picture."""
        found = [(line, self.album.path_of_tokens(line.name)) for line in self.summary.lines if line.row.tokens]
        return [
            (line, WORDS[line.row.tokens], Markup(data_uri(Image.open(path)))) for line, path in found if path.is_file()
        ]

    @property
    def equals(self) -> list[str]:
        """Rows whose pictures would show dense again."""
        return [line.name for line in self.summary.lines if line.psnr >= EQUAL]

    @property
    def references(self) -> list[tuple[str, str, Markup]]:
        found = [
            ("dense", "every step computed", self.picture(DENSE)),
            ("recorded", "what really followed", self.picture(REAL)),
        ]
        return [(name, about, uri) for name, about, uri in found if uri is not None]

    @property
    def scale(self) -> tuple[Markup, str, str]:
        """Colours of the error maps, and what their ends mean."""
        import numpy as np

        bar = shaded(np.tile(np.linspace(0, 1, 200), (8, 1)))
        image = Image.fromarray((bar * 255).astype("uint8"))
        return Markup(data_uri(image)), f"{DARK:.2%} or less", f"{BRIGHT:.0%} of full scale or more"

    # -- strips and bars -------------------------------------------------------------------------------------------

    def strips(self, line: Line) -> list[Any]:
        return strips(self.report, line.row)

    def times(self, line: Line) -> Markup:
        return draw_times(call_times(self.report, line.row))

    @property
    def samples_of_cells(self) -> dict[str, Markup]:
        """Legend of the strips."""
        return {"computed": draw_shares([1.0]), "partly": draw_shares([0.4]), "skipped": draw_shares([0.0])}

    @property
    def longest(self) -> float:
        """Longest bar of the time chart, in dense pipeline times."""
        return max([1.0] + [sum(p.share for p in line.parts) for line in self.summary.lines])

    @property
    def dense_parts(self) -> list[tuple[str, float]]:
        inside = [t.denoiser / t.seconds for d in self.report.dense for t in d.timings]
        return [("denoiser", median(inside)), ("rest", 1 - median(inside))]

    @property
    def dense_seconds(self) -> tuple[float, float]:
        """Median of a dense generation: denoiser, whole pipeline."""
        timings = [t for d in self.report.dense for t in d.timings]
        return median(t.denoiser for t in timings), median(t.seconds for t in timings)

    # -- words -----------------------------------------------------------------------------------------------------

    def columns(self, question: str) -> list[str]:
        """Metrics of a question's table."""
        return [k for k in METRICS if any(k in line.metrics.get(question, {}) for line in self.summary.lines)]

    def at_time(self, over: Interval | None) -> Markup:
        """PSNR of a family at equal time."""
        return Markup("-") if over is None else figure_text(over, "psnr")

    def figure(self, line: Line, question: str, key: str) -> Markup:
        """A metric with its interval, or ``equal``."""
        over = line.metrics.get(question, {}).get(key)
        return Markup("-") if over is None else figure_text(over, key)

    def dense_figure(self, key: str) -> Markup:
        """Dense against what really followed."""
        over = self.summary.real.get(key)
        return Markup("-") if over is None else figure_text(over, key)

    def cached(self, line: Line) -> str:
        """Memory held for reuse; other packages do not tell."""
        if not line.row.samples[0].trajectories:
            return "-"
        held = max(sample.cached_bytes for sample in line.row.samples)
        return bytes_text(held)

    def config(self, line: Line) -> str:
        return settings_text(line.row.config)

    @property
    def missing(self) -> dict[str, str]:
        """Metrics that are not here, and what they need."""
        found = {name: HOW[name] for name, how in self.report.metrics.items() if how}
        if min(self.report.size[1:], default=0) < MS_SSIM_SIDE:
            found = {"MS-SSIM": f"needs {MS_SSIM_SIDE} pixels on the shorter side", **found}
        return found

    @property
    def fids(self) -> bool:
        return any(line.row.fid is not None for line in self.summary.lines)

    @property
    def questions_asked(self) -> list[str]:
        return [q for q in QUESTIONS if any(q in line.metrics for line in self.summary.lines)]

    @property
    def generated(self) -> list[str]:
        return list(dict.fromkeys(d.about for d in self.report.dense if d.about))


def _by_frame(frames: Sequence[Sequence[float]]) -> list[float]:
    return [mean(bounded(v) for v in column) for column in zip(*frames, strict=True)]


def _order(line: Line) -> tuple[int, int]:
    """diffcache's own methods first, then peers, then the control; ``none`` is a control as well."""
    rank = {"method": 0, "diffusers": 1, "cache-dit": 2, CONTROL: 4}[line.row.kind]
    return (3 if line.row.family == "none" else rank, 0)
