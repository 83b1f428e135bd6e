"""``report.md``: the page's tables as text, for a document or a pull request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from .data import Report, write_atomically
from .equal import leads
from .plan import CONTROL
from .statistics import EQUAL, Difference, Interval
from .summary import QUALITIES, TIMES, Line, Summary

TEXT = "report.md"
#: dB that a picture should have against dense: how many seeds of a row do is told
GOOD = 30.0


def write_markdown(report: Report, summary: Summary, lines: Sequence[Line], folder: Path) -> Path:
    """Write ``report.md``; returns its path."""
    path = folder / TEXT
    write_atomically(path, to_markdown(report, summary, lines))
    return path


def to_markdown(report: Report, summary: Summary, lines: Sequence[Line]) -> str:
    """What was measured, in Markdown: the verdict, families at equal time and quality, every row, what
    looks wrong, what did not run."""
    steps, seeds = report.settings.steps, len(report.dense)
    head = f"# {report.model.name}: {steps} steps, {seeds} seeds"
    said = [*summary.verdict, *summary.warnings]
    parts = [
        head,
        f"`{report.command}`",
        "\n".join(f"* {text}" for text in said),
        "## Families at equal time, at equal quality",
        _families(summary),
        "PSNR is against dense, in dB, with its 95 % interval over seeds; speed-ups are the denoiser's. A family is "
        "all rows of one method, read on a straight line between them.",
        _leads(lines),
        "## Rows",
        _rows(lines),
    ]
    notes = [f"* {line.name}: {note}" for line in lines for note in line.notes]
    if notes:
        parts += ["## What looks wrong, or odd", "\n".join(notes)]
    if summary.failed:
        failed = ([row.name, row.failure or ""] for row in summary.failed)
        parts += ["## Did not run", _table(["row", "reason"], failed)]
    return "\n\n".join(parts) + "\n"


def _families(summary: Summary) -> str:
    head = ["family", *(f"dB at {t:g}x" for t in TIMES), *(f"speed at {q:g} dB" for q in QUALITIES)]
    rows = (
        [s.family, *map(_psnr, s.at_time), *("-" if v is None else f"{v:.2f}x" for v in s.at_quality)]
        for s in summary.standings
    )
    return _table(head, rows)


def _leads(lines: Sequence[Line]) -> str:
    head = ["about as fast", "best family", "next best", "ahead by, paired by seed"]
    rows = ([f"{o.speed:g}x", o.best, o.second, _ahead(o.over)] for o in leads(lines, TIMES))
    return _table(head, rows)


def _ahead(over: Difference) -> str:
    half = "" if over.verdict == "one seed" else f" ± {over.over.half:.1f}"
    return f"{over.over.mean:+.1f}{half} dB" + (" (tie)" if over.verdict == "tie" else "")


def _rows(lines: Iterable[Line]) -> str:
    head = ["row", "denoiser", "whole pipeline", "work", "PSNR dB", "worst seed", f"seeds ≥ {GOOD:g} dB", "SSIM"]
    head += ["vs fewer steps", "cached kB"]
    return _table(head, (_row(line) for line in lines))


def _row(line: Line) -> list[str]:
    metrics, told = line.metrics["dense"], line.row.samples[0].trajectories
    values = line.values().values()
    margin = "control" if line.row.kind == CONTROL else "-"
    if line.margin is not None:
        margin = f"{line.margin.over.mean:+.1f} dB" + (" (tie)" if line.margin.verdict == "tie" else "")
    return [
        line.name,
        f"{line.denoiser.median:.2f}x",
        f"{line.whole.median:.2f}x",
        "-" if line.row.work_share is None else f"{line.row.work_share:.0%}",
        _psnr(metrics["psnr"]),
        _psnr(Interval(min(values), 0.0, 1)),
        f"{sum(v >= GOOD for v in values)} of {len(values)}",
        f"{metrics['ssim'].mean:.4f}",
        margin,
        f"{max(s.cached_bytes for s in line.row.samples) / 1e3:.0f}" if told else "-",
    ]


def _psnr(over: Interval | None) -> str:
    if over is None:
        return "-"
    if over.mean >= EQUAL:
        return "equal"
    return f"{over.mean:.1f}" + (f" ± {over.half:.1f}" if over.half > 0 else "")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
