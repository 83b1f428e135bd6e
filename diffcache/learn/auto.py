"""Calibration of ``auto``: measures, plans, fits, and measures the plans (ours)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from ..hooks.anatomy import find_denoisers, inspect_denoiser
from ..hooks.compiled import unwrapped
from ..hooks.identity import identify
from ..methods.auto import FORM, GUARD, NOISE, assured
from ..predictors import Plan
from ..predictors.evidence import Evidence, Track
from ..schedules.calibration import Calibration, Expert, Identity
from ..schedules.motion import Motion
from ..schedules.planning import Landscape, frontier, tabulate
from .calibrator import Calibrator, Call, Facts, Progress, check_whole
from .climbing import Climb
from .kept import Kept
from .measuring import Reporter
from .piloting import Flight, fly, psnr
from .refitting import misses, refit, surprises

#: what a predicted step is taken to cost, in computed ones, until it is measured
CHEAP = 0.01
#: plans are made a little faster than asked for, so that they are as fast when they are measured
SLACK = 1.01
#: runs that are left out of the last fit of each plan, one at a time, to see what it promises too much
LEFT_OUT = 2
#: powers of the measured gains of which each gives a placement of a plan's steps to begin with
BENDS = (1.0, 0.6)
#: how many runs a placement is judged by
TRIALS = 3
#: how many steps fewer a plan may compute than was reckoned, where it turns out too slow for what is asked for
FEWER = 2
#: longest span that a probe predicts
PROBE = 3


@dataclass(frozen=True)
class AutoCalibrator(Calibrator):
    """Dense runs, probes of how far an error at each step is felt at the end, and runs of each plan.

    Args:
        speedups: for each of them there is a plan.
        rounds: how often the weights of a plan are fitted anew on the trajectories that it makes.
        probes: steps at which it is measured what an error there does to the result; 0 takes all to matter alike.
        trials: further placements of each plan's steps that are tried in some runs.
    """

    method: ClassVar[str] = "auto"
    measures: ClassVar[str] = "what spans of predicted steps do to the result, and plans for a range of speed-ups"
    seeds: ClassVar[str] = ",".join(map(str, range(1000, 1008)))

    speedups: tuple[float, ...] = (1.4, 1.7, 2.0, 2.4, 2.7, 3.0, 3.5, 4.0, 5.0, 6.0)
    rounds: int = 2
    probes: int = 8
    trials: int = 6

    def __post_init__(self) -> None:
        object.__setattr__(self, "speedups", tuple(self.speedups) if isinstance(self.speedups, (list, tuple)) else ())
        if not self.speedups or not all(isinstance(s, (int, float)) and 1 < s <= 100 for s in self.speedups):
            raise ConfigError("speedups: must be a list of numbers > 1, at most 100: [2,3,4]")
        check_whole("rounds", self.rounds, 0)
        check_whole("probes", self.probes, 0)
        check_whole("trials", self.trials, 0)

    def measure(self, pipe: Any, calls: Sequence[Call], progress: Progress | None, kept: Path | None) -> Calibration:
        if len(calls) < 2:
            raise ConfigError("seeds: one is too few, auto fits on some and must see how they differ: at least 2")
        name, identity = _denoiser(pipe)
        about = {"model": identity.model, "settings": identity.settings, "runs": len(calls), "form": f"{FORM}.1"}
        bench = _Bench(pipe, list(calls), Reporter(progress), Kept(kept, {**about, **asdict(self)}))
        bench.fly_dense()
        gains = bench.gains(self.probes)
        counts = {speedup: count for speedup in sorted(self.speedups) if (count := bench.count(speedup)) >= 2}
        if not counts:
            raise ConfigError(f"speedups: {bench.steps} steps are too few for any of them")
        landscapes = [Landscape(bench.evidence, gains**bend) for bend in (BENDS if self.probes else BENDS[:1])]
        fewest = max(min(counts.values()) - FEWER, 2)
        plans = [frontier(landscape, fewest, max(counts.values())) for landscape in landscapes]
        climb, found = Climb(landscapes, bench.score), dict[int, _Measured]()
        for speedup, most in counts.items():
            for count in range(most, max(most - FEWER, 2) - 1, -1):
                if count in plans[0] and count not in found:
                    found[count] = bench.improve(climb.best([p[count] for p in plans], self.trials), self.rounds)
                if count in found and found[count].speedup >= NOISE * speedup:
                    break
        expert = Expert(
            identity,
            bench.steps,
            tuple(dict.fromkeys(bench.evidence.branches)),
            *_numbers(list(found.values()), bench),
            facts={"form": FORM},
        )
        bench.kept.discard()
        guidance = getattr(pipe, "_guidance_scale", None)
        return Calibration(
            self.method,
            bench.sampler,
            bench.steps,
            len(calls),
            {name: expert},
            guidance=float(guidance) if isinstance(guidance, (int, float)) else None,
        )

    def describe(self, expert: Expert) -> Facts:
        n = expert.numbers
        rows = zip(n["speedup"].tolist(), n["computed"].sum(1).tolist(), n["psnr"].mean(1).tolist(), assured(expert))
        return [
            (f"{speed:.2f}x", f"{count:.0f} of {expert.steps} computed: {mean:.1f} dB, nine in ten above {sure:.1f} dB")
            for speed, count, mean, sure in rows
        ]


@dataclass(frozen=True)
class _Measured:
    plan: Plan
    psnr: list[float]
    costs: tuple[float, float, float]
    optimism: float
    computed: float

    @property
    def speedup(self) -> float:
        """Of the denoiser: steps at the cost of a computed one, over what this plan's cost, with those that the guard
        computes besides it."""
        compute, predict, decide = self.costs
        steps, count = self.plan.steps, self.computed
        return steps * compute / (count * compute + (steps - count) * predict + steps * decide)


class _Bench:
    """What is measured, stage by stage."""

    def __init__(self, pipe: Any, calls: list[Call], reporter: Reporter, kept: Kept) -> None:
        self.pipe, self.calls, self.reporter, self.kept = pipe, calls, reporter, kept
        self.tracks: list[list[Track]] = []
        self.pictures: list[Tensor] = []
        scheduler = getattr(pipe, "scheduler", None)
        self.sampler = None if scheduler is None else type(scheduler).__name__
        self.tried = 0
        self.predict, self.decide = CHEAP, 0.0  # what these cost a step, in computed ones

    def fly_dense(self) -> None:
        for number, call in enumerate(self.calls, 1):
            label = f"dense run {number}/{len(self.calls)}"
            stage = self.kept.once(label, partial(self._dense, call, label))
            tracks, pictures, timesteps = _unpack(stage)
            self.tracks.append(tracks)
            self.pictures.append(pictures)
        lengths = {track.steps for track in self._all()}
        if len(lengths) != 1:
            raise ConfigError(
                f"steps: the runs differ ({', '.join(map(str, sorted(lengths)))}), must be the same in all"
            )
        (self.steps,), self.timesteps = lengths, timesteps
        self.evidence = Evidence.of(self._all(), self.steps)
        self.motion = Motion.of(self.evidence)

    def _dense(self, call: Call, label: str) -> dict[str, Tensor]:
        return _pack(self._fly(call, None, label))

    def _fly(self, call: Call, plan: Plan | None, label: str, watching: bool = True) -> Flight:
        flight = fly(self.pipe, call, plan, self.reporter, label, watching)
        self.sampler = flight.sampler
        return flight

    def _all(self) -> list[Track]:
        return [track for tracks in self.tracks for track in tracks]

    def count(self, speedup: float) -> int:
        """Computed steps of a plan that is that much faster."""
        rest = self.steps * (1.0 / (SLACK * speedup) - self.predict - self.decide)
        return int(rest / (1.0 - self.predict))

    def gains(self, probes: int) -> np.ndarray:
        """How much of an error at each step is felt in the result: measured at some, between them interpolated."""
        if probes == 0 or self.steps < 2 * PROBE + 2:
            return np.ones(self.steps)
        flat = Landscape(self.evidence)
        starts = np.unique(np.linspace(1, self.steps - PROBE - 1, probes).round().astype(int))
        felt, costs = [], []
        for number, start in enumerate(starts.tolist(), 1):
            computed = [s for s in range(self.steps) if not start < s <= start + PROBE]
            plan = tabulate(self.evidence, computed)
            label = f"probe {number}/{len(starts)}"
            stage = self.kept.once(label, partial(self._felt, plan, label))
            felt.append(float(stage["error"]) / max(flat.error(computed), 1e-30))
            costs.append(stage["costs"])
        compute, self.predict, self.decide = torch.stack(costs).median(0).values.tolist()
        self.predict, self.decide = self.predict / compute, self.decide / compute
        found = np.interp(np.arange(self.steps), starts + 0.5 * (PROBE + 1), np.log(np.maximum(felt, 1e-30)))
        return np.exp(0.5 * (found - found.mean()))

    def _felt(self, plan: Plan, label: str) -> dict[str, Tensor]:
        flight = self._fly(self.calls[0], plan, label, watching=False)
        error = (flight.pictures - self.pictures[0]).double().square().mean()
        return {"error": error, "costs": torch.tensor(flight.costs, dtype=torch.float64)}

    def improve(self, computed: Sequence[int], rounds: int) -> _Measured:
        """A plan with this placement, after some rounds of fitting; the best of them by PSNR."""
        label = f"{len(computed)} of {self.steps} steps"
        found = self.kept.once(label, partial(self._improve, computed, rounds, label))
        plan = tabulate(self.evidence, computed, self.timesteps)
        plan = _with(plan, found["weights"], tuple(found["limits"].tolist()))
        psnrs, costs = found["psnr"].tolist(), tuple(found["costs"].tolist())
        return _Measured(plan, psnrs, costs, float(found["optimism"]), float(found["computed"]))

    def score(self, computed: Sequence[int]) -> float:
        """Mean PSNR of some runs with this placement."""
        self.tried += 1
        label, plan = f"placement {self.tried}", tabulate(self.evidence, computed)
        runs = range(min(TRIALS, len(self.calls)))
        name = f"placement {','.join(map(str, computed))}"
        return float(self.kept.numbers(name, lambda: sum(self._quality(plan, i, label) for i in runs) / len(runs)))

    def _quality(self, plan: Plan, number: int, label: str) -> float:
        return psnr(self._fly(self.calls[number], plan, label, watching=False).pictures, self.pictures[number])

    def _improve(self, computed: Sequence[int], rounds: int, label: str) -> dict[str, Tensor]:
        plan, made, tried = tabulate(self.evidence, computed, self.timesteps), [], []
        for turn in range(1, rounds + 2):
            flights = [
                self._fly(call, plan, f"{label}, round {turn}/{rounds + 1}, run {i}/{len(self.calls)}")
                for i, call in enumerate(self.calls, 1)
            ]
            made.append([flight.tracks for flight in flights])
            quality = [psnr(flight.pictures, dense) for flight, dense in zip(flights, self.pictures, strict=True)]
            costs = [median(flight.costs[i] for flight in flights) for i in range(3)]
            count = sum(flight.computed for flight in flights) / len(flights)
            tried.append((sum(quality), turn, plan, quality, costs, count))
            plan = self._refit(plan, made) if turn <= rounds else plan
        _, turn, best, quality, costs, count = max(tried, key=lambda t: t[:2])
        errors = [misses(best, run, dense) for run, dense in zip(made[turn - 1], self.tracks, strict=True)]
        limits = np.concatenate(errors).max(0).tolist()
        return {
            "psnr": torch.tensor(quality, dtype=torch.float64),
            "costs": torch.tensor(costs, dtype=torch.float64),
            "computed": torch.tensor(count + surprises(best, errors, GUARD), dtype=torch.float64),
            "limits": torch.tensor(limits, dtype=torch.float32),
            "weights": _table(best),
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


def _table(plan: Plan) -> Tensor:
    return torch.tensor(list(plan.weights.values()), dtype=torch.float32)


def _with(plan: Plan, table: Tensor, limits: tuple[float, ...]) -> Plan:
    return replace(plan, weights=dict(zip(plan.weights, table.tolist(), strict=True)), limits=limits)


def _pack(flight: Flight) -> dict[str, Tensor]:
    stage = {"pictures": flight.pictures, "timesteps": torch.tensor(flight.timesteps, dtype=torch.float64)}
    for i, track in enumerate(flight.tracks):
        for branch, seen in track.outputs.items():
            stage[f"{i}.output.{branch}"] = torch.stack([seen[step] for step in sorted(seen)])
        if track.sampled:
            stage[f"{i}.sample"] = torch.stack([track.samples[step] for step in sorted(track.samples)])
    return stage


def _unpack(stage: dict[str, Tensor]) -> tuple[list[Track], Tensor, tuple[float, ...]]:
    tracks: dict[int, Track] = {}
    for key, value in stage.items():
        if key not in ("pictures", "timesteps"):
            number, kind, *rest = key.split(".", 2)
            track = tracks.setdefault(int(number), Track())
            if kind == "sample":
                for step, sample in enumerate(value):
                    track.take(step, sample)
            else:
                track.outputs.setdefault(rest[0], {}).update(enumerate(value))
    return [tracks[i] for i in sorted(tracks)], stage["pictures"], tuple(stage["timesteps"].tolist())


def _denoiser(pipe: Any) -> tuple[str, Identity]:
    models = {"denoiser": pipe} if isinstance(pipe, torch.nn.Module) else find_denoisers(pipe)
    if len(models) != 1:
        raise ConfigError(f"model: has {len(models)} denoisers ({', '.join(models)}), auto plans one")
    ((name, model),) = models.items()
    return name, identify(unwrapped(model), inspect_denoiser(unwrapped(model)))


def _numbers(found: Sequence[_Measured], bench: _Bench) -> tuple[dict[str, Tensor], dict[str, float]]:
    steps = bench.steps
    computed = torch.tensor([[float(m.plan.computes(s)) for s in range(steps)] for m in found])
    numbers = {
        "computed": computed,
        "weights": torch.stack([_table(m.plan) for m in found]),
        "limits": torch.tensor([m.plan.limits for m in found], dtype=torch.float32),
        "psnr": torch.tensor([m.psnr for m in found], dtype=torch.float32),
        "optimism": torch.tensor([m.optimism for m in found], dtype=torch.float32),
        "speedup": torch.tensor([m.speedup for m in found], dtype=torch.float32),
        "spread": torch.tensor(list(bench.evidence.spread.values()), dtype=torch.float32),
        "timesteps": torch.tensor(bench.timesteps or [0.0], dtype=torch.float32)[: steps if bench.timesteps else 0],
    }
    if not bench.timesteps:
        numbers["timesteps"] = torch.full((1,), float("nan"))
    compute, predict, decide = (median(m.costs[i] for m in found) for i in range(3))
    return numbers, {"compute": compute, "predict": predict, "decide": decide}
