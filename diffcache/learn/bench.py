"""What the calibration of ``auto`` measures: dense runs, probes, placements, and rounds of each plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from ..methods.auto import GUARD
from ..predictors import Plan
from ..predictors.evidence import Evidence, Track
from ..schedules.motion import Motion
from ..schedules.planning import Landscape, tabulate
from .calibrator import Call
from .kept import Kept
from .measuring import Reporter
from .packing import pack, unpack
from .piloting import Flight, Levelling, fly, psnr
from .prices import Costs, Prices
from .refitting import misses, refit, surprises

#: runs that are left out of the last fit of each plan, one at a time, to see what it promises too much
LEFT_OUT = 2
#: how many runs a placement is judged by
TRIALS = 3
#: longest span that a probe predicts
PROBE = 3


@dataclass(frozen=True)
class Measured:
    """A plan that was run.

    Attributes:
        plan: of the whole trajectory.
        psnr: of each run, in dB.
        prices: of its steps.
        optimism: what runs lose that the weights were not fitted to, in dB.
        computed: steps of each segment that it computes, with those that the guard computes besides.
    """

    plan: Plan
    psnr: list[float]
    prices: Prices
    optimism: float
    computed: tuple[float, ...]

    @property
    def speedup(self) -> float:
        """Of the denoisers."""
        return self.prices.speedup(self.computed)


class Bench:
    """Runs a pipeline for one calibration.

    Args:
        pipe: a pipeline, or a bare denoiser.
        names: of its denoisers.
        calls: one run a seed.
        reporter: told about every step.
        kept: where results are kept meanwhile.

    Attributes:
        segments: (denoiser, steps), in the order in which they run.
        steps, timesteps, sampler: of a trajectory.
        evidence, motion: what the dense runs tell.
        prices: of its steps, as far as they are known.
    """

    def __init__(self, pipe: Any, names: Sequence[str], calls: list[Call], reporter: Reporter, kept: Kept) -> None:
        self.pipe, self.names, self.calls, self.reporter, self.kept = pipe, list(names), calls, reporter, kept
        self.tracks: list[list[Track]] = []
        self.pictures: list[Tensor] = []
        scheduler = getattr(pipe, "scheduler", None)
        self.sampler = None if scheduler is None else type(scheduler).__name__
        self.tried = 0
        self.levelling = Levelling()

    def fly_dense(self) -> None:
        """Run every call, computed in full."""
        found = []
        for number, call in enumerate(self.calls, 1):
            label = f"dense run {number}/{len(self.calls)}"
            stage = self.kept.once(label, partial(self._dense, call, label))
            self.tracks.append(unpack(stage))
            self.pictures.append(stage["pictures"])
            self.timesteps = tuple(stage["timesteps"].tolist())
            found.append(tuple((self.names[index], steps) for index, steps in stage["segments"].tolist()))
        lengths = {track.steps for track in self._all()}
        if len(lengths) != 1 or len(set(found)) != 1:
            raise ConfigError(f"steps: the runs differ ({_told(found)}), must be the same in all")
        (self.steps,), self.segments = lengths, found[0]
        if sum(steps for _, steps in self.segments) != self.steps:
            raise ConfigError(f"calls: a run broke off after step {self.steps} of {_told(found)}")
        starts = np.cumsum([0, *(steps for _, steps in self.segments[:-1])]).tolist()
        self.evidence = Evidence.of(self._all(), self.steps, starts)
        self.motion = Motion.of(self.evidence)
        self.prices = Prices.unknown([steps for _, steps in self.segments])

    def _dense(self, call: Call, label: str) -> dict[str, Tensor]:
        return pack(self._fly(call, None, label), self.names)

    def _fly(self, call: Call, plan: Plan | None, label: str, watching: bool = True) -> Flight:
        flight = fly(self.pipe, call, plan, self.reporter, label, watching, self.levelling)
        self.sampler = flight.sampler
        return flight

    def _all(self) -> list[Track]:
        return [track for tracks in self.tracks for track in tracks]

    # -- probes ----------------------------------------------------------------------------------------------------

    def gains(self, probes: int) -> np.ndarray:
        """How much of an error at each step is felt in the result: measured at some, between them interpolated."""
        starts = self.probed(probes)
        if not starts:
            return np.ones(self.steps)
        flat = Landscape(self.evidence)
        felt, costs = [], []
        for start in starts:
            stage = self.probe(start)
            felt.append(float(stage["error"]) / max(flat.error(self._but(start)), 1e-30))
            costs.append(stage["costs"].numpy())
        self.prices = Prices(self.prices.lengths, _typical(np.stack(costs)))
        middles = np.array(starts) + 0.5 * (PROBE + 1)
        found = np.interp(np.arange(self.steps), middles, np.log(np.maximum(felt, 1e-30)))
        return np.exp(0.5 * (found - found.mean()))

    def probed(self, probes: int) -> list[int]:
        """The steps behind which a span is predicted, evenly spread; each span within a segment."""
        able = [
            start
            for begin, end in self.evidence.segments
            for start in range(begin + 1, end - PROBE)
            if end - begin >= 2 * PROBE + 2
        ]
        picked = np.linspace(0, len(able) - 1, min(probes, len(able))).round().astype(int)
        return [able[i] for i in np.unique(picked).tolist()]

    def probe(self, start: int, share: float = 0.0) -> dict[str, Tensor]:
        """What predicting a single span behind ``start`` does to the result: its mean squared ``error``, and ``costs``.

        Args:
            start: one of :meth:`probed`.
            share: of the tokens that is computed at its steps.
        """
        computed = self._but(start)
        plan = tabulate(self.evidence, computed)
        if share:
            plan = replace(plan, levels=tuple(0.0 if plan.computes(s) else share for s in range(self.steps)))
        label = f"probe at step {start}" + (f", {share:g} of the tokens" if share else "")
        return self.kept.once(label, partial(self._felt, plan, label))

    def _but(self, start: int) -> list[int]:
        """All steps but those of the span behind ``start``."""
        return [s for s in range(self.steps) if not start < s <= start + PROBE]

    def _felt(self, plan: Plan, label: str) -> dict[str, Tensor]:
        flight = self._fly(self.calls[0], plan, label, watching=False)
        error = (flight.pictures - self.pictures[0]).double().square().mean()
        return {"error": error, "costs": torch.tensor(flight.costs, dtype=torch.float64)}

    # -- plans -----------------------------------------------------------------------------------------------------

    def score(self, computed: Sequence[int], levels: tuple[float, ...] = ()) -> float:
        """Mean PSNR of some runs with this placement."""
        self.tried += 1
        label, plan = f"placement {self.tried}", self._plan(computed, levels)
        runs = range(min(TRIALS, len(self.calls)))
        name = f"placement {_listed(computed)}{_levels(levels)}"
        return float(self.kept.numbers(name, lambda: sum(self._quality(plan, i, label) for i in runs) / len(runs)))

    def _quality(self, plan: Plan, number: int, label: str) -> float:
        return psnr(self._fly(self.calls[number], plan, label, watching=False).pictures, self.pictures[number])

    def _plan(self, computed: Sequence[int], levels: tuple[float, ...]) -> Plan:
        return replace(tabulate(self.evidence, computed, self.timesteps), levels=levels)

    def improve(self, placed: Sequence[int], rounds: int, levels: tuple[float, ...] = ()) -> Measured:
        """A plan with this placement, after some rounds of fitting; the best of them by PSNR.

        Args:
            placed: the steps that are computed.
            rounds: how often its weights are fitted anew.
            levels: for each step the share of the tokens that is computed if the step is not; empty for none.
        """
        label = f"{len(placed)} of {self.steps} steps" + (f", {_count(levels)} in part" if levels else "")
        plan = self._plan(placed, levels)
        name = f"plan {_listed(placed)}{_levels(levels)}"
        found = self.kept.once(name, partial(self._improve, plan, rounds, label))
        weights = dict(zip(plan.weights, found["weights"].tolist(), strict=True))
        plan = replace(plan, weights=weights, limits=tuple(found["limits"].tolist()))
        prices = Prices(self.prices.lengths, tuple(map(tuple, found["costs"].tolist())))
        computed = tuple(found["computed"].tolist())
        return Measured(plan, found["psnr"].tolist(), prices, float(found["optimism"]), computed)

    def _improve(self, plan: Plan, rounds: int, label: str) -> dict[str, Tensor]:
        made, tried = [], []
        for turn in range(1, rounds + 2):
            flights = [
                self._fly(call, plan, f"{label}, round {turn}/{rounds + 1}, run {i}/{len(self.calls)}")
                for i, call in enumerate(self.calls, 1)
            ]
            made.append([flight.tracks for flight in flights])
            quality = [psnr(flight.pictures, dense) for flight, dense in zip(flights, self.pictures, strict=True)]
            tried.append((sum(quality), turn, plan, quality, flights))
            plan = self._refit(plan, made) if turn <= rounds else plan
        _, turn, best, quality, flights = max(tried, key=lambda t: t[:2])
        costs = [[median(column) for column in zip(*rows)] for rows in zip(*(flight.costs for flight in flights))]
        errors = [misses(best, run, dense) for run, dense in zip(made[turn - 1], self.tracks, strict=True)]
        counts = np.mean([flight.computed for flight in flights], 0) + surprises(best, errors, GUARD)
        return {
            "psnr": torch.tensor(quality, dtype=torch.float64),
            "costs": torch.tensor(costs, dtype=torch.float64),
            "computed": torch.from_numpy(counts),
            "limits": torch.tensor(np.concatenate(errors).max(0).tolist(), dtype=torch.float32),
            "weights": weights_of(best),
            "optimism": torch.tensor(self._optimism(best, made[: turn - 1], quality, label), dtype=torch.float64),
        }

    def _refit(self, plan: Plan, made: Sequence[Sequence[list[Track]]], without: int | None = None) -> Plan:
        """New weights from all runs but one."""
        taken = [i for i in range(len(self.calls)) if i != without]
        rounds = [[track for i in taken for track in tracks[i]] for tracks in made]
        return refit(plan, rounds, [track for i in taken for track in self.tracks[i]], self.motion)

    def _optimism(
        self, plan: Plan, made: Sequence[Sequence[list[Track]]], quality: Sequence[float], label: str
    ) -> float:
        """How much better runs are that the weights were fitted to, in dB: some are left out of the last fit."""
        lost = []
        for left_out in range(min(LEFT_OUT, len(self.calls) if made else 0)):
            blind = self._quality(self._refit(plan, made, left_out), left_out, f"{label}, check")
            lost.append(quality[left_out] - blind)
        return max(0.0, sum(lost) / len(lost)) if lost else 0.0


def weights_of(plan: Plan) -> Tensor:
    """``[branches, steps, k]``."""
    return torch.tensor(list(plan.weights.values()), dtype=torch.float32)


def _typical(costs: np.ndarray) -> tuple[Costs, ...]:
    """Medians of ``[runs, segments, 3]``, where 0 is what was not seen; a denoiser whose predictions were never seen
    costs for them what the others do."""
    known = np.where(costs > 0.0, costs, np.nan)
    seen = [[column[~np.isnan(column)] for column in segment.T] for segment in known.transpose(1, 0, 2)]
    spare = np.concatenate([segment[1] for segment in seen])
    return tuple(
        tuple(float(np.median(c if len(c) else spare)) if len(c) or i == 1 else 0.0 for i, c in enumerate(segment))
        for segment in seen
    )


def _listed(computed: Sequence[int]) -> str:
    return ",".join(map(str, computed))


def _levels(levels: Sequence[float]) -> str:
    return "".join(f" {step}:{share:g}" for step, share in enumerate(levels) if share)


def _count(levels: Sequence[float]) -> int:
    return sum(share > 0.0 for share in levels)


def _told(found: Sequence[Sequence[tuple[str, int]]]) -> str:
    """The steps of runs, in words."""
    return ", ".join(dict.fromkeys(" + ".join(str(steps) for _, steps in segments) for segments in found))
