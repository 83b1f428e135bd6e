"""The report in sentences: the verdict, and what a reader must know before believing it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .data import Report
from .plan import CONTROL
from .statistics import EQUAL

if TYPE_CHECKING:
    from .summary import Readout

#: dense runs that differ by more than this share make a noisy machine
NOISE = 0.10


def verdict(times: list[Readout], qualities: list[Readout]) -> list[str]:
    reached = [r for r in times if r.winner is not None]
    about = next((r for r in reached if r.target == 2.0), reached[-1] if reached else None)
    said = [_say_time(about)] if about is not None else ["No row is 1.5 times faster than dense."]
    good = [r for r in qualities if r.winner is not None and r.winner.denoiser.median > 1.05]
    if good:
        said.append(_say_quality(next((r for r in good if r.target == 35.0), good[0])))
    return said


def _say_time(readout: Readout) -> str:
    winner, target = readout.winner, f"{readout.target:g}x"
    quality = "equal to dense in every pixel" if winner.psnr >= EQUAL else f"{winner.psnr:.1f} dB"
    if winner.row.kind == CONTROL:
        return f"At about {target} nothing beats fewer steps: {winner.row.steps} steps give {quality}."
    text = f"At about {target}, {winner.name} is best: {quality}"
    if winner.margin is not None:
        over = winner.margin.over.mean
        text += f", {abs(over):.1f} dB {'above' if over >= 0 else 'below'} fewer steps at equal time"
        text += " (within the interval: a tie)" if winner.margin.verdict == "tie" else ""
    return text + _say_ties(readout)


def _say_quality(readout: Readout) -> str:
    winner = readout.winner
    who = f"{winner.row.steps} steps without a cache are" if winner.row.kind == CONTROL else f"{winner.name} is"
    text = f"At {readout.target:g} dB or more, {who} fastest: {winner.denoiser.median:.2f}x in the denoiser, "
    text += f"{winner.whole.median:.2f}x for the whole pipeline"
    return text + _say_ties(readout)


def _say_ties(readout: Readout) -> str:
    """The end of a sentence: with whom the winner ties, two of them by name."""
    names = readout.ties
    if not names:
        return "."
    more = len(names) - 2
    told = f"{', '.join(names[:2])} and {more} more" if more > 0 else " and ".join(names)
    return f". It ties with {told}."


def warnings_of(report: Report, spread_of: float) -> list[str]:
    found = []
    if spread_of > NOISE:
        found.append(
            f"The machine was noisy: dense runs differ by {spread_of:.0%} of their median. Quality "
            "is not touched by that; of the speed-ups believe what holds beyond their range."
        )
    if len(report.dense) < report.settings.seeds:
        found.append(
            f"Interrupted: {len(report.dense)} of {report.settings.seeds} seeds are measured (--resume goes on)."
        )
    if len(report.dense) == 1:
        found.append("One seed: there are no intervals, and nothing can be called a difference.")
    if not all(d.repeats for d in report.dense):
        found.append("Dense runs of one seed differ in pixels: this device does not repeat itself to the bit.")
    return found
