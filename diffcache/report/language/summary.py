"""From measurements to what the page says: a line for each row, the verdict, and what looks wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import mean, median, quantiles

from ..plan import CONTROL
from ..statistics import Difference, Proportion, between, compare, front, paired_shares, proportion, spread
from ..summary import Speed
from .data import Run, TextReport, TextRow, TextSample
from .verdict import verdict, warnings_of

#: answers that differ from vanilla's in mean length by more than this share are worth a remark
LENGTH = 0.1
#: speed-ups below this are none, and below its inverse a row is slower
FASTER = 1.02


@dataclass(frozen=True)
class Counts:
    """Of a row or of vanilla: means over the prompts, and the most memory."""

    tokens_per_second: float
    tokens: float
    steps: float
    forwards: float
    rows: float
    kv_bytes: int
    residual_bytes: int

    @classmethod
    def of(cls, runs: list[Run]) -> Counts:
        over = [mean(getattr(run, name) for run in runs) for name in ("new_tokens", "steps", "forwards", "rows")]
        held = [max(getattr(run, name) for run in runs) for name in ("kv_bytes", "residual_bytes")]
        return cls(median(run.tokens_per_second for run in runs), *over, *held)


@dataclass
class TextLine:
    """A row's figures.

    Attributes:
        speed: ratio of tokens a second to vanilla's; ``time``: of the time of an answer. Median, and the middle half.
        counts: what was computed and held; ``share``: of vanilla's row-layers.
        right: share of right answers; ``scored``: of full score by the problems' own verifier; None where not known.
        difference: paired difference of right answers to vanilla, and its word (``more``, ``less``, ``tie``).
        agreement: mean share of tokens that are vanilla's; ``same``: share of prompts where all are.
        values: prompt -> right (1 or 0), or agreement where no answer is known.
        margin: paired difference of ``values`` to fewer steps at equal speed; None where there is no such control.
        best: on the Pareto front of speed and quality.
        notes: what looks wrong, or odd.
    """

    row: TextRow
    speed: Speed
    time: Speed
    counts: Counts
    share: float
    right: Proportion | None
    scored: Proportion | None
    difference: Proportion | None
    word: str
    agreement: float
    same: float
    values: dict[int, float]
    margin: Difference | None = None
    best: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.row.name

    @property
    def quality(self) -> float:
        return mean(self.values.values())

    @property
    def control(self) -> bool:
        return self.row.kind == CONTROL

    @property
    def slower(self) -> bool:
        """Than vanilla, by more than what may be nothing."""
        return self.speed.median < 1 / FASTER


@dataclass
class TextSummary:
    """Everything that the page shows besides the texts; ``known``: whether answers are."""

    lines: list[TextLine]
    failed: list[TextRow]
    vanilla: Counts
    right: Proportion | None
    scored: Proportion | None
    known: bool
    noise: float
    verdict: list[str]
    warnings: list[str]


def summarise(report: TextReport) -> TextSummary:
    """What the measurements say."""
    known = all(a.right is not None for a in report.asked)
    lines = [_line(report, row, known) for row in report.rows if row.failure is None and row.samples]
    reference = {a.number: float(a.right) if known else 1.0 for a in report.asked}
    controls = [line for line in lines if line.control]
    for index in front([(line.speed.median, line.quality) for line in lines]):
        lines[index].best = lines[index].speed.median >= FASTER
    for line in lines:
        if not line.control:
            line.margin = _margin(line, controls, reference)
        line.notes = _notes(report, line, known)
    vanilla = Counts.of([run for a in report.asked for run in a.runs])
    noise = median(spread([run.seconds for run in a.runs]) for a in report.asked)
    return TextSummary(
        lines,
        [row for row in report.rows if row.failure is not None],
        vanilla,
        share_of([a.right for a in report.asked]),
        share_of([None if a.score is None else a.score == 1 for a in report.asked]),
        known,
        noise,
        verdict(lines, share_of([a.right for a in report.asked]), known),
        warnings_of(report, noise, known),
    )


def share_of(answers: list[bool | None]) -> Proportion | None:
    """Share of right answers, where all are known."""
    if not answers or any(a is None for a in answers):
        return None
    return proportion(sum(map(bool, answers)), len(answers))


def middle_half(values: list[float]) -> Speed:
    """Median and the quartiles around it; the extremes of less than four."""
    if len(values) < 4:
        return Speed.of(values)
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return Speed(middle, low, high)


def speedups(report: TextReport, row: TextRow, tokens: bool = True) -> dict[int, float]:
    """Prompt -> tokens/s over vanilla's just before and after; without ``tokens``, its time over the row's."""
    found = {}
    for sample in row.samples:
        vanilla = report.vanilla(sample.number)
        time = mean(vanilla.runs[n].seconds for n in sample.around) / max(sample.run.seconds, 1e-9)
        share = sample.run.new_tokens / max(vanilla.runs[0].new_tokens, 1)
        found[sample.number] = time * share if tokens else time
    return found


def _line(report: TextReport, row: TextRow, known: bool) -> TextLine:
    pairs = [(s, report.vanilla(s.number)) for s in row.samples]
    speeds, times = (list(speedups(report, row, tokens).values()) for tokens in (True, False))
    right = [s.right for s, _ in pairs]
    difference, word = (
        paired_shares(list(map(bool, right)), [bool(a.right) for _, a in pairs]) if known else (None, "tie")
    )
    return TextLine(
        row,
        middle_half(speeds),
        middle_half(times),
        Counts.of([s.run for s, _ in pairs]),
        sum(s.run.row_layers for s, _ in pairs) / max(sum(a.runs[0].row_layers for _, a in pairs), 1),
        share_of(right),
        share_of([None if s.score is None else s.score == 1 for s, _ in pairs]),
        difference,
        word,
        mean(s.agreement for s, _ in pairs),
        mean(s.same for s, _ in pairs),
        {s.number: _value(s, known) for s, _ in pairs},
    )


def _value(sample: TextSample, known: bool) -> float:
    return float(bool(sample.right)) if known else sample.agreement


def _margin(line: TextLine, controls: list[TextLine], vanilla: dict[int, float]) -> Difference | None:
    """Against fewer steps at the row's own speed, between the control's rows and vanilla, prompt by prompt."""
    speed, fastest = line.speed.median, max(controls, key=lambda c: c.speed.median, default=None)
    if fastest is None or speed < FASTER:
        return None
    if speed >= fastest.speed.median:
        return compare(line.values, fastest.values)  # the control takes more time here
    curve = [(1.0, vanilla), *((c.speed.median, c.values) for c in controls)]
    control = {number: between([(x, values[number]) for x, values in curve], speed) for number in line.values}
    return compare(line.values, {number: value for number, value in control.items() if value is not None})


def _notes(report: TextReport, line: TextLine, known: bool) -> list[str]:
    notes = []
    if line.word == "less":
        notes.append(f"loses {-100 * line.difference.mean:.1f} points of right answers against vanilla")
    if line.slower and not line.control:
        notes.append(f"slower than vanilla ({line.speed.median:.2f}x)")
    if line.margin is not None and line.margin.verdict == "less":
        what = "points" if known else "points of agreement"
        notes.append(f"fewer steps are {-100 * line.margin.over.mean:.1f} {what} better at equal speed")
    usual = Counts.of([a.runs[0] for a in report.asked]).tokens
    if abs(line.counts.tokens / usual - 1) > LENGTH:
        longer = "longer" if line.counts.tokens > usual else "shorter"
        notes.append(f"answers are {abs(line.counts.tokens / usual - 1):.0%} {longer} than vanilla's")
    if line.row.exact and line.same < 1:
        notes.append(f"exact by construction, and {1 - line.same:.0%} of the answers differ from vanilla's: rounding")
    return notes
