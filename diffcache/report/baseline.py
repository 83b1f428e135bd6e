"""Two reports compared: which method lost more than a tolerance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from .data import Report, Row
from .statistics import Interval, bounded, interval
from .summary import speedups

TOLERANCE = 0.05


@dataclass(frozen=True)
class Loss:
    """A method that is worse than in the baseline.

    Attributes:
        row: its name.
        what: the figure, or ``runs`` where it does not run any more.
        before, now: the figure there and here.
    """

    row: str
    what: str
    before: float
    now: float
    reason: str = ""

    def __str__(self) -> str:
        if self.what == "runs":
            return f"{self.row}: does not run any more: {self.reason}"
        return f"{self.row}: {self.what} fell from {self.before:.4g} to {self.now:.4g}"


def losses(report: Report, baseline: Report, tolerance: float = TOLERANCE) -> list[Loss]:
    """What methods lost against a baseline of the same settings; rows that one of the two lacks are left out.

    Speed-ups are ratios to dense in the same run, so that two machines of a kind can be compared. A fall counts when it
    is larger than ``tolerance`` times the baseline's figure and larger than the half width of its own 95 % interval.

    Args:
        tolerance: 0.05 lets a speed-up, and a PSNR in dB, fall by 5 %.

    Raises:
        ConfigError: the reports are of different models or steps.
    """
    same_settings(report, baseline, ("model", "steps"))
    return lost_rows(report, baseline, lambda row, old: _figures(report, row, baseline, old, tolerance))


def same_settings(report: Any, baseline: Any, names: Iterable[str]) -> None:
    """Raises ConfigError unless both were asked for the same."""
    for name in names:
        before, now = getattr(baseline.settings, name), getattr(report.settings, name)
        if before != now:
            raise ConfigError(f"baseline: {name} differs ({before} there, {now} here), must be the same")


def lost_rows(report: Any, baseline: Any, figures: Callable[[Any, Any], list[Loss]]) -> list[Loss]:
    """What rows lost that both reports have: everything, where one does not run any more, or some ``figures``."""
    known = {row.name: row for row in baseline.rows}
    found: list[Loss] = []
    for row in report.rows:
        old = known.get(row.name)
        if old is None or old.failure is not None or not old.samples:
            continue
        if row.failure is not None:
            found.append(Loss(row.name, "runs", 1, 0, row.failure))
        elif row.samples:
            found += figures(row, old)
    return found


def _figures(report: Report, row: Row, baseline: Report, old: Row, tolerance: float) -> list[Loss]:
    found = []
    for what, whole in (("denoiser speed-up", False), ("pipeline speed-up", True)):
        found += slower(row.name, what, *(_ratios(r, m, whole) for r, m in ((report, row), (baseline, old))), tolerance)
    now, before = _psnr(row), _psnr(old)
    common = [seed for seed in now if seed in before]
    fall = interval([before[seed] - now[seed] for seed in common])
    mean = interval([before[seed] for seed in common]).mean
    if common and fall.mean > tolerance * mean and not fall.mean <= fall.half:
        found.append(Loss(row.name, "PSNR (dB)", mean, mean - fall.mean))
    return found


def _ratios(report: Report, row: Row, whole: bool) -> list[float]:
    return list(speedups(report, row, whole).values())


def slower(name: str, what: str, ratios: list[float], old: list[float], tolerance: float) -> list[Loss]:
    """A row whose mean ratio to the reference fell by more than the tolerance, and than what may be chance."""
    now, before = (interval([math.log(ratio) for ratio in some]) for some in (ratios, old))
    drop = before.mean - now.mean
    if drop > -math.log(1 - tolerance) and drop > _apart(now, before):
        return [Loss(name, what, math.exp(before.mean), math.exp(now.mean))]
    return []


def _apart(a: Interval, b: Interval) -> float:
    """Half width of the interval of the difference of two independent means; 0 where there are no intervals."""
    halves = [i.half for i in (a, b) if not math.isnan(i.half)]
    return math.hypot(*halves) if halves else 0.0


def _psnr(row: Row) -> dict[int, float]:
    return {s.seed: bounded(s.metrics["dense"]["psnr"]) for s in row.samples}
