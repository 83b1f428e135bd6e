"""Families at equal time and at equal quality: the rows of a sweep are a curve, read between its points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING

from .statistics import Difference, Interval, between, compare, front, interval

if TYPE_CHECKING:
    from .summary import Line


@dataclass(frozen=True)
class Curve:
    """A family's rows that skip something and that none of its own rows beats, from slow to fast."""

    family: str
    lines: tuple[Line, ...]

    def values_at(self, speed: float) -> dict[int, float] | None:
        """Seed -> PSNR in dB at a denoiser speed-up, linear between rows; None where no row is that fast.

        Below the slowest row that row itself counts: it takes less time than was allowed.
        """
        slowest, fastest = self.lines[0], self.lines[-1]
        if speed > fastest.denoiser.median:
            return None
        if speed <= slowest.denoiser.median:
            return slowest.values()
        rows = [(line.denoiser.median, line.values()) for line in self.lines]
        found = {seed: between([(x, v[seed]) for x, v in rows if seed in v], speed) for seed in slowest.values()}
        return {seed: value for seed, value in found.items() if value is not None}

    def speed_at(self, psnr: float) -> float | None:
        """Denoiser speed-up at a mean PSNR, linear between rows; None where no row is that good.

        Where every row is better, the fastest one counts.
        """
        worst, best = min(line.psnr for line in self.lines), max(line.psnr for line in self.lines)
        if psnr > best:
            return None
        if psnr <= worst:
            return self.lines[-1].denoiser.median
        return between([(line.psnr, line.denoiser.median) for line in self.lines], psnr)


@dataclass(frozen=True)
class Standing:
    """A family beside the others.

    Attributes:
        at_time: PSNR over seeds at each speed-up asked for; None where no row is that fast.
        at_quality: speed-up at each PSNR asked for; None where no row is that good.
    """

    family: str
    at_time: tuple[Interval | None, ...]
    at_quality: tuple[float | None, ...]


def curves(lines: Sequence[Line]) -> list[Curve]:
    """The curve of every family, in the order of the rows."""
    families = dict.fromkeys(line.row.family for line in lines if line.skips)
    return [Curve(family, _front([o for o in lines if o.skips and o.row.family == family])) for family in families]


def _front(lines: list[Line]) -> tuple[Line, ...]:
    return tuple(lines[i] for i in front([(line.denoiser.median, line.psnr) for line in lines]))


def standings(lines: Sequence[Line], times: Sequence[float], qualities: Sequence[float]) -> list[Standing]:
    """Every family at equal time and equal quality; the best at the middle one of ``times`` first."""
    found = [
        Standing(
            curve.family,
            tuple(None if (v := curve.values_at(t)) is None else interval(list(v.values())) for t in times),
            tuple(curve.speed_at(q) for q in qualities),
        )
        for curve in curves(lines)
    ]
    return sorted(found, key=lambda s: tuple(-_mean(s.at_time[i]) for i in _from_middle(len(times))))


def _from_middle(count: int) -> list[int]:
    """Indices, the middle one first.

    >>> _from_middle(4)
    [1, 2, 0, 3]
    """
    return sorted(range(count), key=lambda i: abs(i - (count - 1) / 2))


def _mean(over: Interval | None) -> float:
    return 0.0 if over is None else over.mean


@dataclass(frozen=True)
class Lead:
    """The best family at a speed-up, the next best, and how far it is behind, seed by seed."""

    speed: float
    best: str
    second: str
    over: Difference


def leads(lines: Sequence[Line], times: Sequence[float]) -> list[Lead]:
    """At each speed-up that two methods reach: the best family, and the best one of another method."""
    found = []
    for speed in times:
        values = {curve.family: v for curve in curves(lines) if (v := curve.values_at(speed))}
        order = sorted(values, key=lambda name: -mean(values[name].values()))
        others = [name for name in order if _method(name) != _method(order[0])]
        if others:
            found.append(Lead(speed, order[0], others[0], compare(values[order[0]], values[others[0]])))
    return found


def _method(family: str) -> str:
    """``auto:min_psnr=30`` is a family beside ``auto``, of the same method."""
    name, setting, _ = family.partition("=")
    return name.rpartition(":")[0] if setting else family
