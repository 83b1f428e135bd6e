"""What it is worth to compute a share of the tokens at a predicted step: measured, planned with, and run (ours).

Two things are measured of each share, a level: what such a step costs, in a run or a few in which steps take turns,
and how much of the error of predictions it leaves at the end, in probes of single spans. Where it pays by these, plans
with levels are made, and run like the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from ..methods.auto import NOISE
from ..schedules.levels import Level, Market, Offer, Placement
from ..schedules.planning import Landscape, tabulate
from .bench import Bench, Measured
from .latency import DENOISER, timed
from .piloting import Flight, fly

#: share of a computed step's time from which on a level is not looked at further
DEAR = 0.85
#: times of each level that are wanted, and most runs for them
SAMPLES, RUNS = 4, 3
#: of so many probes one is run again with each level, and one more
PROBES = 4
#: shares that have a name
_NAMES = {0.25: "a quarter", 0.5: "half", 0.75: "three quarters"}


@dataclass(frozen=True)
class Finding:
    """What was measured of one level.

    Attributes:
        share: of the tokens.
        time: of a step at it, in computed steps; None where tokens cannot be computed by themselves.
        left: of a prediction's error (RMS) at the end of the trajectory; None where that was not looked at.
        plans: of the file that use it.
    """

    share: float
    time: float | None = None
    left: float | None = None
    plans: int = 0

    def __str__(self) -> str:
        if self.time is None:
            return "tokens cannot be computed by themselves: not used"
        left = "" if self.left is None else f", leaves {self.left:.2f} of the error"
        used = f"used in {self.plans} plan{'s' * (self.plans != 1)}" if self.plans else "not used"
        return f"{self.time:.2f} of a step's time{left}: {used}"


class Levels:
    """The levels of one calibration.

    Args:
        bench: has measured the gains.
        shares: of the tokens; empty for no levels.
        probes: spans that were probed for the gains.
        dear: share of a computed step's time from which on a level is not looked at further.

    Attributes:
        findings: one a share.
    """

    def __init__(self, bench: Bench, shares: Sequence[float], probes: int, dear: float = DEAR) -> None:
        self._bench, self._starts = bench, bench.probed(probes)
        self.findings = [Finding(share) for share in shares]
        # Where denoisers take turns, or errors were not probed, none is looked at.
        if not shares or not self._starts or len(bench.segments) > 1:
            self.findings = []
            return
        times = bench.kept.once("levels", self._times)
        bare, bench.levelling.hold = float(times["bare"]), float(times["hold"])
        if bare > 0.0:
            self.findings = [
                replace(f, time=float(time) / bare) for f, time in zip(self.findings, times["levels"], strict=True)
            ]
        self.findings = [self._looked_at(f) if f.time is not None and f.time < dear else f for f in self.findings]

    # -- measuring -------------------------------------------------------------------------------------------------

    def _times(self) -> dict[str, Tensor]:
        """Seconds of a step of each kind; all 0 where a level's steps were not computed in part."""
        found: dict[str, list[float]] = {}
        shares = [finding.share for finding in self.findings]
        for number in range(RUNS):
            kinds = _turns(self._bench.steps, shares, number)
            flight, times = self._clocked(kinds, f"time of levels {number + 1}")
            if flight.partial < sum(share > 0.0 for share, _ in kinds):
                return {"bare": torch.zeros(()), "hold": torch.zeros(()), "levels": torch.zeros(len(shares))}
            for step, seconds in times.items():
                found.setdefault(kinds[step][1], []).append(seconds)
            if all(len(found.get(_name(share), ())) >= SAMPLES for share in shares):
                break
        bare = float(np.median(found["bare"]))
        return {
            "bare": torch.tensor(bare, dtype=torch.float64),
            "hold": torch.tensor(max(np.median(found["held"]) / bare - 1.0, 0.0), dtype=torch.float64),
            "levels": torch.tensor([np.median(found[_name(share)]) for share in shares], dtype=torch.float64),
        }

    def _clocked(self, kinds: Sequence[tuple[float, str]], label: str) -> tuple[Flight, dict[int, float]]:
        """A run under turns, and the seconds of its steps but the first of all and the one at which it is learned where
        tokens are."""
        bench, read = self._bench, []

        @contextmanager
        def meter(pipe: Any) -> Iterator[None]:
            with timed(pipe, units=False) as times:
                yield
            read.append(times())

        plan = tabulate(bench.evidence, [step for step, (share, _) in enumerate(kinds) if not share])
        plan = replace(plan, levels=tuple(share for share, _ in kinds))
        flight = fly(bench.pipe, bench.calls[0], plan, bench.reporter, label, False, bench.levelling, meter)
        learned = next((step for step, (_, kind) in enumerate(kinds) if kind == "held"), 0)
        times = {step: spent / 1e3 for (step, name), spent in read[0].items() if name == DENOISER}
        return flight, {step: spent for step, spent in times.items() if step not in (0, learned)}

    def _looked_at(self, finding: Finding) -> Finding:
        """With what is left of an error: a geometric mean over spans that were probed without levels as well."""
        picked = np.unique(np.linspace(0, len(self._starts) - 1, len(self._starts) // PROBES + 1).round().astype(int))
        ratios = []
        for start in (self._starts[i] for i in picked.tolist()):
            errors = (float(self._bench.probe(start, s)["error"]) for s in (finding.share, 0.0))
            with_level, without = (max(error, 1e-30) for error in errors)
            ratios.append(with_level / without)
        return replace(finding, left=float(np.exp(0.5 * np.mean(np.log(ratios)))))

    # -- planning --------------------------------------------------------------------------------------------------

    @property
    def offer(self) -> Offer | None:
        """To the planner; None if no level is worth a look."""
        (compute, predict, _), *_ = self._bench.prices.costs
        cheap, least = [f for f in self.findings if f.left is not None], predict / compute
        levels = tuple(Level(f.share, max(f.time - least, 0.0) / (1.0 - least), f.left) for f in cheap)
        return Offer(levels, self._bench.levelling.hold / (1.0 - least)) if levels else None

    def better(self, landscape: Landscape, plain: Mapping[float, Measured], rounds: int) -> list[Measured]:
        """Plans with levels that are better, at the speed-up that they are made for, than those without.

        Args:
            landscape: that agrees with all runs so far.
            plain: speed-up -> the plan without levels.
            rounds: see :meth:`.Bench.improve`.
        """
        offer, found = self.offer, {}
        if offer is None:
            return []
        market = Market(landscape, offer)
        for speedup, rival in plain.items():
            placement = market.plan(self._bench.prices.room(speedup))
            if placement is None or not placement.partial or placement in found:
                continue
            measured = self._run(placement, offer, rival, rounds)
            if measured is not None and measured.speedup >= NOISE * speedup:
                found[placement] = measured
        self._count(list(found.values()))
        return list(found.values())

    def _run(self, placement: Placement, offer: Offer, rival: Measured, rounds: int) -> Measured | None:
        """A plan that is better than its rival: by some runs, then by all."""
        levels = offer.shares(placement, self._bench.steps)
        if self._bench.score(placement.computed, levels) <= self._bench.score(rival.plan.computed):
            return None
        measured = self._bench.improve(placement.computed, rounds, levels)
        return measured if sum(measured.psnr) > sum(rival.psnr) else None

    def _count(self, found: Sequence[Measured]) -> None:
        used = [set(measured.plan.levels) for measured in found]
        self.findings = [replace(f, plans=sum(f.share in levels for levels in used)) for f in self.findings]

    # -- telling ---------------------------------------------------------------------------------------------------

    @property
    def facts(self) -> dict[str, Any]:
        """JSON-ready; nothing where no level was looked at."""
        return {"levels": [asdict(finding) for finding in self.findings]} if self.findings else {}


def check_levels(levels: Any) -> tuple[float, ...]:
    """The option; raises ConfigError unless all are shares of the tokens."""
    found = tuple(dict.fromkeys(levels)) if isinstance(levels, (list, tuple)) else None
    if found is None or not all(isinstance(share, (int, float)) and 0 < share < 1 for share in found):
        raise ConfigError("levels: must be a list of shares of the tokens, between 0 and 1: [0.25,0.5]")
    return found


def told(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a file says about levels, in words."""
    findings = [Finding(**found) for found in facts.get("levels", ())]
    rows = [(f"{_NAMES.get(f.share, f'{f.share:.0%}')} of the tokens", str(f)) for f in findings]
    return [("levels", _verdict(findings)), *rows]


def _verdict(findings: Sequence[Finding]) -> str:
    if not findings:
        return "none was looked at: a predicted step is predicted for all tokens"
    if any(finding.plans for finding in findings):
        return "helped: some plans compute a share of the tokens at predicted steps"
    return "no level helped: to compute a share of the tokens at predicted steps, too, made no plan better"


def _name(share: float) -> str:
    return f"level {share:g}"


def _turns(steps: int, shares: Sequence[float], number: int) -> list[tuple[float, str]]:
    """(share, kind) of each step: computed, computed and held, at a level, and so on; every level in turn."""
    kinds = [(0.0, "bare")]
    while len(kinds) < steps:
        share = shares[(len(kinds) // 3 + number) % len(shares)]
        kinds += [(0.0, "bare"), (0.0, "held"), (share, _name(share))]
    kinds = kinds[:steps]
    return kinds if kinds[-1][1] != "held" else [*kinds[:-1], (0.0, "bare")]
