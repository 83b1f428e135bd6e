"""The report on a language model in sentences, and what a reader must know before believing it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..statistics import Proportion
from ..verdict import NOISE
from .data import TextReport

if TYPE_CHECKING:
    from .summary import TextLine

#: with fewer prompts than this the page says that intervals are wide
FEW = 100
#: speeds are the same up to this factor
NEAR = 1.05


def verdict(lines: list[TextLine], right: Proportion | None, known: bool) -> list[str]:
    """The best method, fewer steps beside it, and who loses."""
    methods, controls = ([line for line in lines if line.control == wanted] for wanted in (False, True))
    winner, control = (max(_keeping(some), key=_rank(known), default=None) for some in (methods, controls))
    if winner is None:
        said = ["No method is faster than vanilla without losing right answers."]
    else:
        said = [_say_winner(winner, right) + "."]
    if known and control is not None and (winner is None or control.speed.median > winner.speed.median):
        said.append(f"Fewer steps are faster than any method: {_say_winner(control, right)}.")
    elif winner is not None:
        said += _say_control(winner, max((c.speed.median for c in controls), default=0.0), known)
    return said + _say_losers(methods)


def _keeping(lines: list[TextLine]) -> list[TextLine]:
    """Faster than vanilla, without a loss that can be told."""
    return [line for line in lines if line.speed.median >= 1.05 and line.word != "less"]


def _rank(known: bool) -> Callable[[TextLine], float]:
    """Where answers are known, the fastest that keeps them; else the one that is as fast as it is faithful."""
    return (lambda line: line.speed.median) if known else (lambda line: line.speed.median * line.agreement)


def _say_winner(line: TextLine, right: Proportion | None) -> str:
    text = f"{line.name} gives {line.speed.median:.2f}x vanilla's tokens/s"
    if line.right is None or right is None or line.difference is None:
        return f"{text}, and {line.agreement:.1%} of its tokens are vanilla's"
    count = line.right.count
    text += f" with {round(line.right.mean * count)} of {count} right, vanilla {round(right.mean * count)}"
    low, high = (f"{100 * value:+.1f}" for value in (line.difference.low, line.difference.high))
    return f"{text} (95% interval of the difference: {low} to {high} points)"


def _say_control(line: TextLine, fastest: float, known: bool) -> list[str]:
    """``fastest``: speed-up of the fastest control, which stands for all speeds beyond."""
    margin, what = line.margin, "right answers" if known else "agreement"
    if margin is None or margin.verdict == "one seed":
        return []
    over = 100 * margin.over.mean
    at = "at that speed" if fastest >= line.speed.median / NEAR else f"{fastest:.2f}x at most"
    if margin.verdict == "tie":
        return [f"Vanilla with fewer steps, {at}, ties with it ({what}: {0.0 - over:+.1f} points)."]
    word = "fewer" if over > 0 else "more"
    return [f"Vanilla with fewer steps, {at}, has {abs(over):.1f} points {word} of {what}."]


def _say_losers(methods: list[TextLine]) -> list[str]:
    wrong = [f"{m.name} ({100 * m.difference.mean:+.1f} points)" for m in methods if m.word == "less"]
    slow = [f"{m.name} ({m.speed.median:.2f}x)" for m in methods if m.slower]
    said = [f"These lose right answers: {', '.join(wrong)}."] if wrong else []
    return said + ([f"These are slower than vanilla: {', '.join(slow)}."] if slow else [])


def warnings_of(report: TextReport, noise: float, known: bool) -> list[str]:
    """What to know first."""
    found, count = [], len(report.asked)
    if noise > NOISE:
        found.append(
            f"The machine was noisy: vanilla's runs on one prompt differ by {noise:.0%} of their median. Answers and "
            "counts are not touched by that; of the speeds believe what holds beyond their middle half."
        )
    if count < report.settings.problems:
        found.append(f"Interrupted: {count} of {report.settings.problems} prompts are measured (--resume goes on).")
    if known and count < FEW:
        found.append(f"{count} prompts: a difference of a few points cannot be told (--problems asks more).")
    if not known:
        found.append("The right answers are not known: agreement with vanilla is shown, which is not quality.")
    if not all(a.repeats for a in report.asked):
        found.append("Vanilla's runs on one prompt differ in tokens: this device does not repeat itself.")
    return found
