"""From measurements to what the page says: a line for each row, read-outs, the verdict, and what looks wrong."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from statistics import mean, median

from .data import Report, Row, Sample
from .equal import Standing, standings
from .metrics import METRICS
from .plan import CONTROL
from .statistics import Difference, Interval, between, bounded, compare, front, interval, spread
from .verdict import verdict, warnings_of

#: a share of dense work above this means that nothing was skipped
NOTHING = 0.995
#: achieved speed-up below this share of what the skipped work allows is worth a remark
LOST = 0.85
TIMES, QUALITIES = (1.5, 2.0, 3.0, 4.0), (30.0, 35.0, 40.0, 50.0)
#: rows count for "at about T times" from this share of T on
ABOUT = 0.95


@dataclass(frozen=True)
class Speed:
    """A speed-up against dense: median over seeds, smallest and largest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Speed:
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True)
class Part:
    """A part of the time of a pipeline call, in shares of dense's."""

    name: str
    share: float


@dataclass
class Line:
    """A row's figures.

    Attributes:
        denoiser, whole: speed-ups; ``speeds``: of the denoiser, by seed.
        achieved: denoiser speed-up over what the skipped work allows; None where the work is not known.
        metrics: question -> metric -> interval over seeds.
        margin: paired difference of PSNR to fewer steps at equal time, in dB; None where the control has no such speed.
        best: on the Pareto front of denoiser speed-up and PSNR.
        notes: what looks wrong, or odd.
    """

    row: Row
    denoiser: Speed
    whole: Speed
    achieved: float | None
    metrics: dict[str, dict[str, Interval]]
    parts: list[Part]
    speeds: dict[int, float]
    margin: Difference | None = None
    best: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.row.name

    @property
    def psnr(self) -> float:
        return self.metrics["dense"]["psnr"].mean

    @property
    def skips(self) -> bool:
        """Whether it does less work than dense, or that is not known."""
        return self.row.work_share is None or self.row.work_share <= NOTHING

    @property
    def logs(self) -> dict[int, float]:
        """Seed -> logarithm of the denoiser's speed-up."""
        return {seed: math.log(value) for seed, value in self.speeds.items()}

    def values(self, metric: str = "psnr", question: str = "dense") -> dict[int, float]:
        """Seed -> value."""
        return {s.seed: bounded(s.metrics[question][metric]) for s in self.row.samples if question in s.metrics}


@dataclass(frozen=True)
class Readout:
    """Who is best at equal time, or fastest at equal quality.

    Attributes:
        target: speed-up, or dB.
        winner: its line, or None where nobody gets there.
        ties: names of those that do not differ from it beyond the interval.
    """

    target: float
    winner: Line | None
    ties: list[str]


@dataclass
class Summary:
    """Everything that the page shows besides pictures."""

    lines: list[Line]
    failed: list[Row]
    times: list[Readout]
    qualities: list[Readout]
    standings: list[Standing]
    verdict: list[str]
    warnings: list[str]
    dense_spread: float
    real: dict[str, Interval]  # dense against what really followed


def summarise(report: Report) -> Summary:
    """What the measurements say."""
    lines = [_line(report, row) for row in report.rows if row.failure is None and row.samples]
    skipping = [line for line in lines if line.skips]
    for index in front([(line.denoiser.median, line.psnr) for line in skipping]):
        skipping[index].best = True
    controls = [line for line in lines if line.row.kind == CONTROL]
    for line in lines:
        if line.row.kind != CONTROL and line.name != "none":
            line.margin = _margin(line, controls)
        line.notes = _notes(line)
    times = [_at_time(lines, target) for target in TIMES]
    qualities = [_at_quality(lines, target) for target in QUALITIES]
    spread_of = dense_spread(report)
    real = _intervals([d.metrics["real"] for d in report.dense if "real" in d.metrics])
    return Summary(
        lines,
        [row for row in report.rows if row.failure is not None],
        times,
        qualities,
        standings(lines, TIMES, QUALITIES),
        verdict(times, qualities),
        warnings_of(report, spread_of),
        spread_of,
        real,
    )


def dense_spread(report: Report) -> float:
    """How far the dense runs' denoiser times differ: (largest - smallest) / median over all."""
    times = [timing.denoiser for dense in report.dense for timing in dense.timings]
    return spread(times) if len(times) > 1 else 0.0


# -- a row -------------------------------------------------------------------------------------------------------------


def speedups(report: Report, row: Row, whole: bool = False) -> dict[int, float]:
    """Seed -> dense time (mean of the runs before and after) over the row's; of the denoiser, or the whole pipeline."""
    found = {}
    for sample in row.samples:
        around = report.reference(sample)
        dense = mean(t.seconds if whole else t.denoiser for t in around)
        found[sample.seed] = dense / max(sample.timing.seconds if whole else sample.timing.denoiser, 1e-9)
    return found


def _line(report: Report, row: Row) -> Line:
    speeds = speedups(report, row)
    speed = Speed.of(list(speeds.values()))
    questions = dict.fromkeys(question for sample in row.samples for question in sample.metrics)
    return Line(
        row,
        speed,
        Speed.of(list(speedups(report, row, whole=True).values())),
        None if row.work_share is None else speed.median * row.work_share,
        {q: _intervals([s.metrics[q] for s in row.samples if q in s.metrics]) for q in questions},
        _parts(report, row),
        speeds,
    )


def _intervals(metrics: list[dict[str, float]]) -> dict[str, Interval]:
    """Of metrics that all seeds have, in the order of :data:`METRICS`."""
    return {
        key: interval([bounded(m[key]) for m in metrics])
        for key in METRICS
        if metrics and all(key in m for m in metrics)
    }


def _parts(report: Report, row: Row) -> list[Part]:
    shares: dict[str, list[float]] = {}
    for sample in row.samples:
        full = mean(t.seconds for t in report.reference(sample))
        for name, seconds in _seconds(sample).items():
            shares.setdefault(name, []).append(seconds / full)
    return [Part(name, median(values)) for name, values in shares.items()]


def _seconds(sample: Sample) -> dict[str, float]:
    """Of a pipeline call: what the engine tells of the denoiser's time; all of it where another package runs it."""
    denoiser, whole = sample.timing.denoiser, sample.timing.seconds
    segments = [segment for t in sample.trajectories for segment in t.segments]
    if not segments:
        return {"denoiser": denoiser, "rest": max(whole - denoiser, 0.0)}
    compute = sum(s.compute_seconds for s in segments)
    predict = sum(s.predict_seconds for s in segments)
    decide = sum(s.decide_seconds for s in segments)
    rest = max(whole - compute - predict - decide, 0.0)
    return {"compute": compute, "predict": predict, "decide": decide, "rest": rest}


def _margin(line: Line, controls: list[Line]) -> Difference | None:
    """Against fewer steps at the row's own speed-up, interpolated between the control's rows, seed by seed."""
    curve = sorted(controls, key=lambda c: c.denoiser.median)
    if not curve:
        return None
    speed = line.denoiser.median
    values = {c.name: c.values() for c in curve}
    slowest, fastest = curve[0], curve[-1]
    if speed <= slowest.denoiser.median:
        behind = compare(line.values(), values[slowest.name])  # the control is faster here: behind it is behind
        return behind if behind.over.mean < 0 else None
    if speed >= fastest.denoiser.median:
        return compare(line.values(), values[fastest.name])  # the control takes more time here
    own, control = line.values(), {}
    for seed in own:
        points = [(c.denoiser.median, values[c.name][seed]) for c in curve if seed in values[c.name]]
        found = between(points, speed)
        if found is not None:
            control[seed] = found
    return compare(own, control)


def _notes(line: Line) -> list[str]:
    row, notes = line.row, []
    skips = row.family not in ("none", "exact")
    if skips and not line.skips:
        why = next((t.reason for s in row.samples for t in s.trajectories if t.reason), None)
        notes.append("skipped nothing" + (f": {why}" if why else ": it is on and has no effect"))
    elif skips and line.denoiser.median < 1:
        notes.append(f"slower than dense ({line.denoiser.median:.2f}x)")
    elif line.achieved is not None and line.achieved < LOST:
        notes.append(f"only {line.achieved:.0%} of what the skipped work allows: time is lost around it")
    if line.margin is not None and line.margin.verdict == "less":
        notes.append(f"fewer steps are {-line.margin.over.mean:.1f} dB better at equal time")
    counts: Counter[str] = Counter()
    for fallback in (f for s in row.samples for t in s.trajectories for seg in t.segments for f in seg.fallbacks):
        counts[fallback.reason] += fallback.count
    notes += [f"computed anyway, {count}x: {why}" for why, count in counts.items()]
    return notes


# -- read-outs ---------------------------------------------------------------------------------------------------------


def _at_time(lines: list[Line], target: float) -> Readout:
    there = [line for line in lines if line.skips and line.denoiser.median >= ABOUT * target]
    if not there:
        return Readout(target, None, [])
    winner = max(there, key=lambda line: (line.psnr, line.denoiser.median))
    ties = [o.name for o in there if o is not winner and _tied(winner.values(), o.values())]
    return Readout(target, winner, ties)


def _tied(a: dict[int, float], b: dict[int, float]) -> bool:
    return compare(a, b).verdict == "tie"


def _at_quality(lines: list[Line], target: float) -> Readout:
    there = [line for line in lines if line.skips and line.psnr >= target]
    if not there:
        return Readout(target, None, [])
    winner = max(there, key=lambda line: (line.denoiser.median, line.psnr))
    return Readout(target, winner, [o.name for o in there if o is not winner and _tied(winner.logs, o.logs)])
