"""``auto``: the plan and the predictor are made from measurements of the model, for a target (ours)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch

from ..errors import ConfigError, OutOfReachError, ScheduleFileError, calibrate_command
from ..hooks.recipe import Recipe
from ..predictors import Fitted, Pilot, Plan
from ..schedules import Planned
from ..schedules.calibration import Calibration, Expert
from ..schedules.files import read_calibration
from ..schedules.pilots import FilePilot, FirstRun
from ..schedules.selectors import Selector
from .base import MethodConfig
from .calibrated import STEPS, CalibratedConfig
from .checks import check_number

#: standard normal quantile of nine in ten
NINE = 1.2816
#: share of a speed-up that a plan must have been measured to have: what two measurements of one plan differ by
NOISE = 0.98
#: of the numbers in a file: 1 had weights for the outputs of the dense trajectories alone
FORM = 2
#: factor on the errors of the calibration beyond which a step more is computed
GUARD = 1.5
#: what is asked for where no target is given
SPEEDUP = 2.0


@dataclass(frozen=True, kw_only=True)
class AutoConfig(CalibratedConfig):
    """Computes the steps that a measured plan says, and predicts the others with weights fitted to the model (ours).

    ``diffcache calibrate --method auto`` measures what every span of predicted steps leaves as an error at the end of
    the trajectory, plans by dynamic programming, fits the weights on the trajectories that the plan itself makes and
    measures quality and time of each plan. Here the best one for the target is taken: the least error for ``speedup``,
    the least time for ``min_psnr``. Without a file the plan that comes with the model is taken; else the first
    generation is computed in full, and the following ones are planned from it. See docs/auto.md.

    Memory of one branch: ``4 * numel(output) * element_size`` bytes (three outputs and one sample). Under a plan with
    levels, from the computed step before some until the next one, that of partial steps besides: over attention and
    feed-forward modules the sum of ``numel(results) * element_size``, of ``numel(keys) + numel(values)`` of each
    attention among the tokens, and the hidden stream, and 4 bytes a token.

    Args:
        speedup: how many times faster the denoiser shall be, >= 1. Default 2, if there is no ``min_psnr``.
        min_psnr: PSNR in dB against dense that nine in ten samples shall have; needs a calibration.
        guard: a step more is computed where a prediction is worse than ``guard`` times the worst of the calibration;
            ``inf`` switches that off.
    """

    method: ClassVar[str] = "auto"
    summary: ClassVar[str] = "plans from measurements of the model: least error for a speedup, least time for a PSNR"
    numbers: ClassVar[dict[str, tuple[int | None, ...]]] = {
        "computed": (None, STEPS),
        "weights": (None, None, STEPS, None),
        "limits": (None, STEPS),
        "psnr": (None, None),
        "optimism": (None,),
        "speedup": (None,),
        "timesteps": (None,),
    }
    optional: ClassVar[dict[str, tuple[int | None, ...]]] = {"spread": (None, STEPS), "levels": (None, STEPS)}

    warmup: int = 1
    cooldown: int = 0
    max_skip: int = 64
    speedup: float | None = None
    min_psnr: float | None = None
    guard: float = GUARD

    def validate(self) -> None:
        super().validate()
        if self.speedup is not None and self.min_psnr is not None:
            raise ConfigError("speedup: cannot go with min_psnr: one bounds the time, the other the error")
        if self.speedup is not None:
            check_number("speedup", self.speedup, 1, 1000, whole=False)
        if self.min_psnr is not None:
            check_number("min_psnr", self.min_psnr, 1, 200, whole=False)
        check_number("guard", self.guard, 0, math.inf, whole=False)
        if self.schedule is not None and self.max_skip > 0:
            choose(self._read(), self)

    def _read(self) -> Calibration:
        known = read_calibration(self.schedule, self.method)
        for expert in known.experts.values():
            form = expert.facts.get("form", 1)
            if known.method == self.method and form != FORM:
                raise ScheduleFileError(
                    f"{self.schedule}: form: the file has {form!r}, this diffcache reads {FORM}; make it again with: "
                    f"diffcache calibrate --method {self.method}"
                )
        known = super()._read()
        if not _agree(list(known.experts.values())):
            raise ScheduleFileError(f"{self.schedule}: damaged: the plans of {' and '.join(known.experts)} differ")
        for name, expert in known.experts.items():
            if not _levels_fit(expert):
                raise ScheduleFileError(f"{self.schedule}: damaged: levels of {name} is not right")
        return known

    @property
    def needs_calibration(self) -> bool:
        """A generation of its own stands in for a missing one."""
        return False

    def recipe(self) -> Recipe:
        return self._recipe(None)

    def recipe_for(self, owner: Any) -> Recipe:
        return self._recipe(getattr(owner, "calibrations", {}).get(self.method))

    def _recipe(self, home: str | None) -> Recipe:
        if self.max_skip == 0:
            shown = self._shown(home)
            return piloted(self, lambda name: shown, self.guard, shown=shown)
        if self.schedule is not None:
            known = self._read()
            return self._with(_pilots(known, self, lambda: None), known)
        watching = lambda: FirstRun(self._count, self.method)  # noqa: E731
        if home is not None:
            known = _read_home(home, self)
            return self._with(_pilots(known, self, watching), known)
        if self.min_psnr is not None:
            raise self.uncalibrated("min_psnr", "measured plans", (), "a target in speedup")
        return self._with(lambda name: watching(), None)

    def _shown(self, home: str | None) -> Pilot:
        """Follows nothing: shows what a plan of this configuration holds."""
        known = self._read() if self.schedule is not None else _read_home(home, self) if home is not None else None
        shown, levels = Pilot(), ()
        if known is not None and "levels" in next(iter(known.experts.values())).numbers:
            levels = plan_of(next(iter(known.experts.values())), choose(known, self)).levels
        shown.levelled = bool(levels)
        shown.plan = Plan(2, (0,), {}, (0.0, 0.0), levels=(0.0, max(levels)) if levels else ())
        return shown

    def _with(self, pilots: Callable[[str], Pilot], known: Calibration | None) -> Recipe:
        return piloted(self, cache(pilots), self.guard, known)

    def _count(self, steps: int) -> int:
        """Computed steps of a plan that nobody has timed: predicted ones are taken to cost nothing."""
        return math.floor(steps / (self.speedup or SPEEDUP))


def _read_home(path: str, config: AutoConfig) -> Calibration:
    return AutoConfig(schedule=path, speedup=config.speedup, min_psnr=config.min_psnr)._read()


def piloted(
    config: MethodConfig,
    pilots: Callable[[str], Pilot],
    guard: float,
    known: Calibration | None = None,
    shown: Pilot | None = None,
) -> Recipe:
    """The recipe in which each denoiser follows a plan of its own.

    Args:
        config: of the method; has warmup, cooldown and max_skip.
        pilots: name of a denoiser -> its pilot, always the same one.
        guard: see :class:`~diffcache.schedules.planned.Planned`.
        known: what the plans were measured on.
        shown: of no denoiser in particular; follows no plan.
    """
    shown = Pilot() if shown is None else shown

    def schedule(pilot: Pilot) -> Planned:
        return Planned(pilot, guard, config.warmup, config.cooldown, config.max_skip)

    return Recipe(
        config.method,
        config,
        "output",
        lambda: schedule(shown),
        Fitted(shown),
        calibration=known,
        calibrated=lambda name: schedule(pilots(name)),
        predicted=lambda name: Fitted(pilots(name)),
        selector=Selector(),
    )


def _pilots(known: Calibration, config: AutoConfig, instead: Callable[[], Pilot | None]) -> Callable[[str], FilePilot]:
    """The pilots of the denoisers, all under the same plan of the trajectory."""
    number = choose(known, config)
    return lambda name: FilePilot(plan_of(known.expert(name), number), known, name, instead())


def _agree(experts: Sequence[Expert]) -> bool:
    """Whether denoisers have the same plans: what a plan promises is about the whole trajectory."""
    first = experts[0].numbers
    shared = ("psnr", "optimism", "speedup")
    counts = {len(e.numbers[name]) for e in experts for name in (*shared, "computed", "weights")}
    return len(counts) == 1 and all(torch.equal(e.numbers[name], first[name]) for e in experts for name in shared)


def choose(known: Calibration, config: AutoConfig) -> int:
    """Number of the plan for the target.

    Raises:
        ConfigError: no plan reaches it; the message says what can be reached.
    """
    expert = next(iter(known.experts.values()))  # of the trajectory, so the same for all
    speeds, sure = expert.numbers["speedup"].double(), assured(expert)
    if config.min_psnr is not None:
        able = [i for i in range(len(speeds)) if float(sure[i]) >= config.min_psnr]
        if not able:
            raise OutOfReachError(
                f"min_psnr: {config.min_psnr:g} is out of reach, the calibration ({known.source}) assures at most "
                f"{float(sure.max()):.1f} dB (at {float(speeds[sure.argmax()]):.2f}x) in {known.steps} steps; "
                f"{_others(known)}"
            )
        return max(able, key=lambda i: float(speeds[i]))
    wanted = config.speedup or SPEEDUP
    able = [i for i in range(len(speeds)) if float(speeds[i]) >= NOISE * wanted]
    if not able:
        raise OutOfReachError(
            f"speedup: {wanted:g} is out of reach, the calibration ({known.source}) has plans from "
            f"{float(speeds.min()):.2f}x to {float(speeds.max()):.2f}x for {known.steps} steps; "
            f"{_others(known, wanted)}"
        )
    quality = expert.numbers["psnr"].mean(1)
    return max(able, key=lambda i: float(quality[i]))


def _others(known: Calibration, speedup: float | None = None) -> str:
    """What to do for a target that no plan of a calibration reaches."""
    more = "" if speedup is None else f"--set speedups=[{speedup:g}]"
    return f"ask for less, or measure others: {calibrate_command(known.method, known.steps, more)}"


def assured(expert: Expert) -> torch.Tensor:
    """``[plans]``: the PSNR in dB that nine in ten samples have.

    From that of each run of the calibration, less what runs lose that the weights were not fitted to.
    """
    psnr, optimism = expert.numbers["psnr"].double(), expert.numbers["optimism"].double()
    if psnr.shape[1] < 2:
        return psnr[:, 0] - optimism
    return psnr.mean(1) - optimism - caution(psnr.shape[1]) * psnr.std(1)


def caution(runs: int) -> float:
    """Standard deviations below the mean where, with 90 % confidence, nine in ten samples are above.

    The one-sided tolerance bound of a normal distribution, for ``runs`` >= 2 samples (Natrella 1963, 2-5.1).

    >>> [round(caution(n), 2) for n in (4, 8, 16)]
    [2.96, 2.14, 1.81]
    """
    a, b = 1.0 - NINE**2 / (2.0 * (runs - 1)), NINE**2 - NINE**2 / runs
    return (NINE + math.sqrt(NINE**2 - a * b)) / a


def plan_of(expert: Expert, number: int) -> Plan:
    """One of the plans of a calibration."""
    tables: Mapping[str, Any] = {name: expert.numbers[name].tolist() for name in ("limits", "weights", "timesteps")}
    computed = [i for i, chosen in enumerate(expert.numbers["computed"][number].tolist()) if chosen]
    weights = dict(zip(expert.branches, tables["weights"][number], strict=True))
    known = expert.numbers.get("spread")  # files of before it was measured lack it
    spread = {} if known is None else dict(zip(expert.branches, known.tolist(), strict=True))
    limits, timesteps = tuple(tables["limits"][number]), tuple(tables["timesteps"])
    levels = tuple(expert.numbers["levels"][number].tolist()) if "levels" in expert.numbers else ()
    levels = levels if any(levels) else ()
    return Plan(expert.steps, tuple(computed), weights, limits, timesteps, spread, levels=levels)


def _levels_fit(expert: Expert) -> bool:
    """Whether only steps that are not computed anyway are computed for a share of the tokens."""
    levels, computed = expert.numbers.get("levels"), expert.numbers["computed"]
    if levels is None:  # a file without levels lacks it
        return True
    within = (levels >= 0.0) & (levels < 1.0) & ((levels == 0.0) | (computed == 0.0))
    return levels.shape == computed.shape and bool(within.all())
