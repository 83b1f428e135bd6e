"""Calibration of ``auto``: measures, plans, fits, and measures the plans (ours)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import ConfigError
from ..hooks.anatomy import find_denoisers, inspect_denoiser
from ..hooks.compiled import unwrapped
from ..hooks.identity import identify
from ..methods.auto import FORM, NOISE, assured
from ..predictors import Plan
from ..schedules.calibration import Calibration, Expert, Identity
from ..schedules.planning import Landscape, Placements
from .bench import Bench, Measured, weights_of
from .calibrator import Calibrator, Call, Facts, Progress, check_whole
from .climbing import Climb
from .kept import Kept
from .levels import Levels, check_levels, told
from .measuring import Reporter

#: powers of the measured gains of which each gives a placement of a plan's steps to begin with
BENDS = (1.0, 0.6)
#: how many steps fewer a plan may compute than was reckoned, where it turns out too slow for what is asked for
FEWER = 2


@dataclass(frozen=True)
class AutoCalibrator(Calibrator):
    """Dense runs, probes of how far an error at each step is felt at the end, and runs of each plan.

    Args:
        speedups: for each of them there is a plan.
        rounds: how often the weights of a plan are fitted anew on the trajectories that it makes.
        probes: steps at which it is measured what an error there does to the result; 0 takes all to matter alike.
        trials: further placements of each plan's steps that are tried in some runs; 0 takes the one that the probes
            speak for, without a run.
        levels: shares of the tokens, in (0, 1), that a predicted step may compute; empty for none.
    """

    method: ClassVar[str] = "auto"
    measures: ClassVar[str] = "what spans of predicted steps do to the result, and plans for a range of speed-ups"
    seeds: ClassVar[str] = ",".join(map(str, range(1000, 1008)))
    quick: ClassVar[Mapping[str, Any]] = {"speedups": (1.5, 2.0, 3.0, 4.0), "rounds": 1, "probes": 4, "trials": 0}
    quick_seeds: ClassVar[str] = ",".join(map(str, range(1000, 1004)))

    speedups: tuple[float, ...] = (1.4, 1.7, 2.0, 2.4, 2.7, 3.0, 3.5, 4.0, 5.0, 6.0)
    rounds: int = 2
    probes: int = 8
    trials: int = 6
    levels: tuple[float, ...] = (0.25, 0.5)

    def __post_init__(self) -> None:
        object.__setattr__(self, "speedups", tuple(self.speedups) if isinstance(self.speedups, (list, tuple)) else ())
        if not self.speedups or not all(isinstance(s, (int, float)) and 1 < s <= 100 for s in self.speedups):
            raise ConfigError("speedups: must be a list of numbers > 1, at most 100: [2,3,4]")
        check_whole("rounds", self.rounds, 0)
        check_whole("probes", self.probes, 0)
        check_whole("trials", self.trials, 0)
        object.__setattr__(self, "levels", check_levels(self.levels))

    def measure(self, pipe: Any, calls: Sequence[Call], progress: Progress | None, kept: Path | None) -> Calibration:
        if len(calls) < 2:
            raise ConfigError("seeds: one is too few, auto fits on some and must see how they differ: at least 2")
        models = _identities(pipe)
        about = {
            "models": {name: [found.model, found.settings] for name, found in models.items()},
            "boundary": getattr(getattr(pipe, "config", None), "boundary_ratio", None),
            "runs": len(calls),
            "form": f"{FORM}.2",
        }
        bench = Bench(pipe, list(models), list(calls), Reporter(progress), Kept(kept, {**about, **asdict(self)}))
        bench.fly_dense()
        found, levels = self._plans(bench)
        bench.kept.discard()
        guidance = getattr(pipe, "_guidance_scale", None)
        return Calibration(
            self.method,
            bench.sampler,
            bench.steps,
            len(calls),
            _experts(found, bench, models, {"form": FORM, **levels.facts}),
            guidance=float(guidance) if isinstance(guidance, (int, float)) else None,
        )

    def _plans(self, bench: Bench) -> tuple[list[Measured], Levels]:
        """Plans for all speed-ups."""
        gains = bench.gains(self.probes)
        levels = Levels(bench, self.levels, self.probes)
        wanted = {s: splits for s in sorted(self.speedups) if (splits := bench.prices.splits(s))}
        if not wanted:
            raise ConfigError(f"speedups: {bench.steps} steps are too few for any of them")
        bends = BENDS if self.probes and self.trials else BENDS[:1]
        landscapes = [Landscape(bench.evidence, gains**bend) for bend in bends]
        most = max(max(split) for splits in wanted.values() for split in splits)
        placements = [Placements(landscape, most) for landscape in landscapes]
        climb, tried, found = Climb(landscapes, bench.score), {}, {}
        reached: dict[float, Measured] = {}
        for speedup in wanted:
            for fewer in range(FEWER + 1):
                splits = bench.prices.splits(speedup, fewer)
                starts = list(filter(None, (p.best(splits) for p in placements))) if splits else []
                if not starts:
                    continue
                if splits not in tried:
                    tried[splits] = climb.best(starts, self.trials, splits)
                computed = tried[splits]
                if computed not in found:
                    found[computed] = bench.improve(computed, self.rounds)
                if found[computed].speedup >= NOISE * speedup:
                    reached[speedup] = found[computed]
                    break
        return [*found.values(), *levels.better(climb.landscape, reached, self.rounds)], levels

    def describe(self, expert: Expert) -> Facts:
        n = expert.numbers
        rows = zip(n["speedup"].tolist(), n["computed"].sum(1).tolist(), n["psnr"].mean(1).tolist(), assured(expert))
        return [
            (f"{speed:.2f}x", f"{count:.0f} of {expert.steps} computed: {mean:.1f} dB, nine in ten above {sure:.1f} dB")
            for speed, count, mean, sure in rows
        ] + told(expert.facts)


def _identities(pipe: Any) -> dict[str, Identity]:
    models = {"denoiser": pipe} if isinstance(pipe, torch.nn.Module) else find_denoisers(pipe)
    return {name: identify(unwrapped(m), inspect_denoiser(unwrapped(m))) for name, m in models.items()}


def _experts(
    found: Sequence[Measured], bench: Bench, models: Mapping[str, Identity], facts: Mapping[str, Any]
) -> dict[str, Expert]:
    """What a file holds of each denoiser: its part of every plan, and what the whole plan was measured to do."""
    shared = {
        "psnr": torch.tensor([m.psnr for m in found], dtype=torch.float32),
        "optimism": torch.tensor([m.optimism for m in found], dtype=torch.float32),
        "speedup": torch.tensor([m.speedup for m in found], dtype=torch.float32),
    }
    branches, experts = tuple(dict.fromkeys(bench.evidence.branches)), {}
    for number, (name, steps) in enumerate(bench.segments):
        plans = [m.plan.segments()[number] for m in found]
        costs = (median(m.prices.costs[number][i] for m in found) for i in range(3))
        experts[name] = Expert(
            models[name],
            steps,
            branches,
            {**_numbers(plans), **{key: value.clone() for key, value in shared.items()}},  # a file holds no views
            dict(zip(("compute", "predict", "decide"), costs, strict=True)),
            facts=dict(facts),
        )
    return experts


def _numbers(plans: Sequence[Plan]) -> dict[str, Tensor]:
    """Of one denoiser's part."""
    steps, levelled = plans[0].steps, any(plan.levels for plan in plans)
    return {
        "computed": torch.tensor([[float(plan.computes(s)) for s in range(steps)] for plan in plans]),
        "weights": torch.stack(list(map(weights_of, plans))),
        "limits": torch.tensor([plan.limits for plan in plans], dtype=torch.float32),
        "spread": torch.tensor(list(plans[0].spread.values()), dtype=torch.float32),
        "timesteps": torch.tensor(plans[0].timesteps or [float("nan")], dtype=torch.float32),
        **({"levels": torch.tensor([[plan.level(s) for s in range(steps)] for plan in plans])} if levelled else {}),
    }
