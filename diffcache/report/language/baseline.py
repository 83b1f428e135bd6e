"""Two reports on a language model compared: which method lost more than a tolerance."""

from __future__ import annotations

from statistics import mean

from ..baseline import TOLERANCE, Loss, lost_rows, same_settings, slower
from ..statistics import interval, paired_shares
from .data import TextReport, TextRow, TextSample
from .summary import speedups

#: what both runs must have been asked for
SAME = ("model", "prompts", "gen_length", "block_length", "steps", "decoder", "raw", "guidance")


def text_losses(report: TextReport, baseline: TextReport, tolerance: float = TOLERANCE) -> list[Loss]:
    """What methods lost against a baseline of the same decoding; rows that one of the two lacks are left out.

    Tokens/s count as ratios to vanilla in the same run. Right answers, and where none is known agreement with vanilla,
    are compared on the prompts that both have. A fall counts when it is larger than ``tolerance`` times the baseline's
    figure and beyond its own 95 % interval.

    Args:
        tolerance: 0.05 lets a ratio, or a share of right answers, fall by 5 %.

    Raises:
        ConfigError: the reports are of different models, prompts or ways to decode.
    """
    same_settings(report, baseline, SAME)
    return lost_rows(report, baseline, lambda row, old: _figures(report, row, baseline, old, tolerance))


def _figures(report: TextReport, row: TextRow, baseline: TextReport, old: TextRow, tolerance: float) -> list[Loss]:
    ratios = [list(speedups(r, m).values()) for r, m in ((report, row), (baseline, old))]
    found = slower(row.name, "tokens/s over vanilla", *ratios, tolerance)
    prompts = {a.number: a.prompt for a in report.asked}
    common = {a.number for a in baseline.asked if prompts.get(a.number) == a.prompt}
    now, before = ({s.number: s for s in some.samples if s.number in common} for some in (row, old))
    pairs = [(now[number], before[number]) for number in sorted(now.keys() & before.keys())]
    return found + (_quality(row.name, pairs, tolerance) if pairs else [])


def _quality(name: str, pairs: list[tuple[TextSample, TextSample]], tolerance: float) -> list[Loss]:
    known = all(s.right is not None for pair in pairs for s in pair)
    now, before = ([float(s.right if known else s.agreement) for s in some] for some in zip(*pairs, strict=True))
    if known:
        told = paired_shares([x > 0 for x in now], [x > 0 for x in before])[1] == "less"
    else:
        fall = interval([b - a for a, b in zip(now, before, strict=True)])
        told = not fall.mean <= fall.half
    if told and mean(before) - mean(now) > tolerance * mean(before):
        return [Loss(name, "right answers" if known else "agreement with vanilla", mean(before), mean(now))]
    return []
