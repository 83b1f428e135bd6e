"""The page of a language model: what the template needs, from a report."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from statistics import mean
from typing import Any

from markupsafe import Markup, escape

from .. import plots
from ..data import write_atomically
from ..formats import bytes_text, settings_text, share_text
from ..page import PAGE, Tab
from ..statistics import Proportion
from ..templating import render_page
from .data import Asked, TextReport
from .plots import LABELS, trade_off
from .summary import TextLine, share_of, summarise

#: prompts whose texts are shown
SHOWN = 2
ABOUT = {
    "right": "Share of answers that are the known one to the letter, with its 95% interval (Wilson).",
    "agreement": "Share of tokens that vanilla has at the same place; how close to vanilla, not how good.",
}


def write_text_page(report: TextReport, folder: Path) -> Path:
    """Write ``report.html`` and the plot as PNG; returns the page's path."""
    page = TextPage(report)
    figure, looks = page.figure(page.metrics[0]), {family: page.looks[family] for family in page.families}
    if page.summary.lines:
        (folder / f"{page.metrics[0]}.png").write_bytes(plots.to_png(figure, page.title, looks))
    path = folder / PAGE
    write_atomically(path, page.html())
    return path


@dataclass(frozen=True)
class Text:
    """One text of an example, and whose it is."""

    names: list[str]
    right: bool | None
    marked: Markup


class TextPage:
    """A report's page."""

    def __init__(self, report: TextReport) -> None:
        self.report, self.summary = report, summarise(report)
        self.lines = sorted(self.summary.lines, key=lambda line: (line.control, -line.speed.median))
        self.families = list(dict.fromkeys(line.row.family for line in self.lines))
        self.looks = plots.styles(self.families)

    @property
    def title(self) -> str:
        return f"{self.report.model.name}, {len(self.report.asked)} prompts"

    def html(self) -> str:
        """The page as text."""
        return render_page("language.html", r=self.report, s=self.summary, page=self, lines=self.lines)

    # -- figures ---------------------------------------------------------------------------------------------------

    @property
    def metrics(self) -> list[str]:
        """What speed is drawn against."""
        return ["right", "agreement"] if self.summary.known else ["agreement"]

    def figure(self, metric: str) -> Any:
        """Speed against a metric."""
        vanilla = self.summary.right.mean if metric == "right" else 1.0
        return trade_off(self.lines, metric, self.looks, vanilla)

    @property
    def tabs(self) -> list[Tab]:
        return [Tab(m, LABELS[m], ABOUT[m], [Markup(plots.to_svg(self.figure(m), f"p{m}"))]) for m in self.metrics]

    @property
    def legend(self) -> list[tuple[str, Markup]]:
        return [(family, Markup(plots.glyph(self.looks[family]))) for family in self.families]

    # -- words -----------------------------------------------------------------------------------------------------

    def share(self, over: Proportion | None) -> Markup:
        """``75.0%`` with its interval in small."""
        if over is None:
            return Markup("-")
        low, high = 100 * over.low, 100 * over.high
        return Markup(f"{100 * over.mean:.1f}%<small>{low:.0f} - {high:.0f}</small>")

    def bytes(self, count: int) -> str:
        return bytes_text(count) if count else "0"

    def agreement(self, line: TextLine) -> str:
        return share_text(line.agreement)

    def config(self, line: TextLine) -> str:
        return settings_text(line.row.config)

    @property
    def groups(self) -> list[tuple[str, int, list[Proportion]]]:
        """By family and settings of the problems: name, count, and the right answers of vanilla and of every line."""
        labels = list(dict.fromkeys(a.label for a in self.report.asked))
        if not self.summary.known or len(labels) < 2:
            return []
        found = []
        for label in labels:
            numbers = {a.number for a in self.report.asked if a.label == label}
            shares = [share_of([a.right for a in self.report.asked if a.number in numbers])]
            shares += [share_of([s.right for s in line.row.samples if s.number in numbers]) for line in self.lines]
            found.append((label, len(numbers), shares))
        return found

    @property
    def external(self) -> list[tuple[str, str, str, str, str]]:
        """Of rows that keep attention outside the block: name, work saved there and of all attention, seconds."""
        found = []
        for line in self.lines:
            runs = [s.run for s in line.row.samples if s.run.external_saved is not None]
            if runs:
                shares = (f"{mean(getattr(r, n) for r in runs):.0%}" for n in ("external_saved", "attention_saved"))
                names = ("external_seconds_saved", "external_seconds", "seconds")
                saved, spent, whole = (sum(getattr(r, n) for r in runs) for n in names)
                found.append((line.name, *shares, f"{saved:.2f} s beside {spent:.2f} s", f"{whole:.2f} s"))
        return found

    # -- texts -----------------------------------------------------------------------------------------------------

    @property
    def examples(self) -> list[tuple[Asked, list[Text]]]:
        """Prompts on which rows differ most, with every different text side by side."""
        order = sorted(self.report.asked, key=lambda asked: (-self._different(asked), asked.number))
        return [(asked, self._texts(asked)) for asked in order[:SHOWN]]

    def _different(self, asked: Asked) -> int:
        return sum(not s.same for line in self.lines for s in line.row.samples if s.number == asked.number)

    def _texts(self, asked: Asked) -> list[Text]:
        by_text: dict[str, list[str]] = {asked.text: ["vanilla"]}
        right = {asked.text: asked.right}
        for line in self.lines:
            sample = next((s for s in line.row.samples if s.number == asked.number), None)
            if sample is not None:
                by_text.setdefault(sample.text, []).append(line.name)
                right[sample.text] = sample.right
        against = asked.text if asked.answer is None else asked.answer
        return [Text(names, right[text], marked(text, against)) for text, names in by_text.items()]


def marked(text: str, against: str) -> Markup:
    """A text with the words marked that another one does not have there.

    >>> str(marked("1 2 2", "1 2 3"))
    '1 2 <mark>2</mark>'
    """
    words, others = (re.findall(r"\S+|\s+", t.strip()) for t in (text, against))
    parts = []
    for kind, a, b, _, _ in SequenceMatcher(None, words, others, autojunk=False).get_opcodes():
        piece = str(escape("".join(words[a:b])))
        parts.append(piece if kind == "equal" or not piece else f"<mark>{piece}</mark>")
    return Markup("".join(parts))
