"""The report on a language model as lines of text: for terminals, and as markdown."""

from __future__ import annotations

from ..formats import bytes_text, share_text
from ..statistics import Proportion
from .data import TextReport
from .summary import Counts, TextLine, TextSummary, summarise

COLUMNS = ("method", "right", "vs vanilla", "tokens/s", "forwards", "rows", "work", "KV", "besides", "as vanilla")
"""Right answers, points against vanilla, ratio of tokens/s, means of an answer, row-layers, bytes, equal tokens."""


def rows(report: TextReport) -> list[tuple[str, ...]]:
    """Vanilla, then every row by speed, the control last; in the order of :data:`COLUMNS`."""
    summary = summarise(report)
    first = ("vanilla", _share(summary.right), "", "1.00x", *_counts(summary.vanilla, 1.0), "100%")
    lines = sorted(summary.lines, key=lambda line: (line.control, -line.speed.median))
    return [first, *(_row(line) for line in lines)]


def _row(line: TextLine) -> tuple[str, ...]:
    difference = "-" if line.difference is None else _points(line.difference, line.word)
    speed = f"{line.speed.median:.2f}x"
    counts = _counts(line.counts, line.share)
    return line.name, _share(line.right), difference, speed, *counts, share_text(line.agreement)


def _counts(counts: Counts, share: float) -> tuple[str, ...]:
    held = (bytes_text(n) if n else "0" for n in (counts.kv_bytes, counts.residual_bytes))
    return f"{counts.forwards:.1f}", f"{counts.rows:.0f}", f"{share:.0%}", *held


def _share(over: Proportion | None) -> str:
    return "-" if over is None else f"{over.mean:.1%} ({100 * over.low:.0f}-{100 * over.high:.0f})"


def _points(over: Proportion, word: str) -> str:
    text = f"{100 * over.mean:+.1f} ({100 * over.low:+.0f} to {100 * over.high:+.0f})"
    return f"{text}, a tie" if word == "tie" else f"{text}, {'loses' if word == 'less' else 'gains'}"


def facts(report: TextReport) -> list[tuple[str, str]]:
    """Verdict, warnings and failures."""
    summary: TextSummary = summarise(report)
    found = [("verdict", text) for text in summary.verdict] + [("warning", text) for text in summary.warnings]
    found += [("did not run", f"{row.name}: {row.failure}") for row in summary.failed]
    return found + [(name, f"not here: {how}") for name, how in report.missing.items()]


def markdown(report: TextReport) -> str:
    """The table for a document."""
    lines = [COLUMNS, tuple("---" for _ in COLUMNS), *((f"`{row[0]}`", *row[1:]) for row in rows(report))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
