"""The value of a method's one natural knob that reaches a target: searched on some seeds, verified on others."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, median
from typing import Any

from ..errors import CalibratingWarning, ConfigError, OutOfReachError
from ..media.request import Call
from ..media.runs import Run, run_once
from ..methods import MethodConfig, make_config
from .piloting import psnr

#: told about every step: label, steps done, of how many
OnStep = Callable[[str, int, int], None]
#: share of the verifying seeds that must reach a PSNR
SURE = 0.9


@dataclass(frozen=True)
class Knob:
    """A field of a method that trades quality for time.

    Attributes:
        field: its name.
        values: from the slowest and most faithful setting to the fastest.
    """

    field: str
    values: tuple[Any, ...]


def _ladder(low: float, high: float, count: int = 24) -> tuple[float, ...]:
    ratio = (high / low) ** (1.0 / (count - 1))
    return tuple(float(f"{low * ratio**i:.3g}") for i in range(count))


_SHARES = tuple(round(1.0 - 0.03 * i, 2) for i in range(3, 31))
_INTERVALS = tuple(range(2, 17))
KNOBS: dict[str, Knob] = {
    "worldcache": Knob("computed", _SHARES),
    "worldcache-partial": Knob("computed", _SHARES),
    "powerlaw": Knob("computed", _SHARES),
    "auto": Knob("speedup", tuple(round(1.1 * 1.06**i, 2) for i in range(32))),
    **{name: Knob("interval", _INTERVALS) for name in ("interval", "fora", "taylorseer", "hicache", "toca", "duca")},
    **{name: Knob("threshold", _ladder(0.003, 3.0)) for name in ("fbcache", "teacache", "magcache", "easycache")},
}
"""Method -> its knob."""


@dataclass(frozen=True)
class Target:
    """``psnr>=30`` (dB against dense) or ``speedup>=2`` (of the denoiser)."""

    what: str
    value: float

    @staticmethod
    def read(text: str) -> Target:
        """From text; raises ConfigError where it does not read."""
        found = re.fullmatch(r"\s*(psnr|speedup)\s*>=\s*(\d+(?:\.\d+)?)\s*", text)
        if found is None:
            raise ConfigError(f"target: '{text}' is not right, must be psnr>=NUMBER or speedup>=NUMBER, e.g. psnr>=30")
        what, value = found[1], float(found[2])
        if what == "speedup" and value <= 1.0:
            raise ConfigError(f"target: speedup>={value:g} is out of range, must be above 1")
        return Target(what, value)

    def met(self, found: Measured, share: float = 1.0) -> bool:
        """Whether ``share`` of the samples have the PSNR, or the median the speed-up."""
        if self.what == "speedup":
            return median(found.speedup) >= self.value
        return mean(float(p >= self.value) for p in found.psnr) >= share


@dataclass(frozen=True)
class Measured:
    """One setting on some seeds."""

    config: MethodConfig
    psnr: list[float]
    speedup: list[float]

    def __str__(self) -> str:
        return f"{median(self.speedup):.2f}x in the denoiser, {mean(self.psnr):.1f} dB (worst {min(self.psnr):.1f})"


@dataclass(frozen=True)
class Tuned:
    """What was found.

    Attributes:
        search, verified: the same setting on the seeds of the search, and on the others.
        reached: whether the target holds there, too.
        tried: every setting that was measured in the search, in order.
    """

    search: Measured
    verified: Measured
    reached: bool
    tried: list[Measured] = field(default_factory=list)

    @property
    def config(self) -> MethodConfig:
        return self.verified.config


@dataclass
class Tuner:
    """Measures settings of one method on one pipeline.

    Args:
        pipe: the pipeline.
        base: the method; its knob is varied and everything else kept.
        calls: seed -> what to generate.
        on_step: progress.
    """

    pipe: Any
    base: MethodConfig
    calls: dict[int, Call]
    on_step: OnStep
    _dense: dict[int, Run] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.base.method not in KNOBS:
            raise ConfigError(f"method: '{self.base.method}' has no knob to tune; those that have: {', '.join(KNOBS)}")
        knob = KNOBS[self.base.method]
        self.knob = replace(knob, values=tuple(filter(self._known, knob.values)))
        if not self.knob.values:
            known = f"from {knob.values[0]} to {knob.values[-1]}"
            raise ConfigError(f"{knob.field}: no value {known} is in reach of {self.base.method} on this model")

    def _known(self, value: Any) -> bool:
        """Whether a value can be had here: of ``auto``, whether the model's calibration has a plan for it."""
        if self.base.method != "auto":
            return True
        try:
            make_config(self.base, **{KNOBS["auto"].field: value}).recipe_for(self.pipe)
        except OutOfReachError:
            return False
        return True

    def tune(self, target: Target, search: Sequence[int], verify: Sequence[int]) -> Tuned:
        """Bisection over the knob's values: quality falls and speed rises along them.

        For a PSNR the fastest setting with which every seed of the search reaches it; for a speed-up the slowest one
        that reaches it. Where other seeds do not confirm it, the next safer setting is tried, at most three times.

        Raises:
            ConfigError: no value reaches the target; the message says what can be reached.
        """
        known: dict[int, Measured] = {}
        index = self._bisect(target, search, known)
        safer = -1 if target.what == "psnr" else 1
        for _ in range(4):
            verified = self.measure(index, verify, "verifying")
            reached = target.met(verified, SURE)
            following = index + safer
            if reached or not 0 <= following < len(self.knob.values):
                break
            index = following
        found = known.get(index) or self.measure(index, search, "searching")
        return Tuned(found, verified, reached, list(known.values()))

    def _bisect(self, target: Target, seeds: Sequence[int], known: dict[int, Measured]) -> int:
        def met(index: int) -> bool:
            known[index] = self.measure(index, seeds, "searching")
            return target.met(known[index])

        slow, fast = 0, len(self.knob.values) - 1
        wanted, other = (slow, fast) if target.what == "psnr" else (fast, slow)
        if not met(wanted):
            raise ConfigError(
                f"target: {target.what}>={target.value:g} is out of reach of {self.base.method}: "
                f"{self.knob.field}={self.knob.values[wanted]} gives {known[wanted]}"
            )
        while abs(other - wanted) > 1:
            middle = (wanted + other) // 2
            wanted, other = (middle, other) if met(middle) else (wanted, middle)
        return wanted

    def measure(self, index: int, seeds: Sequence[int], label: str) -> Measured:
        """The setting with the ``index``-th value of the knob on some seeds."""
        config = make_config(self.base, **{self.knob.field: self.knob.values[index]})
        psnrs, speedups = [], []
        for seed in seeds:
            dense = self._dense_of(seed)
            name = f"{label}: {self.knob.field}={self.knob.values[index]}, seed {seed}"
            with warnings.catch_warnings(record=True) as notes:
                warnings.simplefilter("always", CalibratingWarning)
                fast = run_once(self.pipe, self.calls[seed], seed, config, self.on_step, name)
            if any(issubclass(note.category, CalibratingWarning) for note in notes):
                raise ConfigError(
                    f"method: {config.method} has no calibration for {self.calls[seed].steps} steps of this model, "
                    f"must have one: diffcache calibrate --method {config.method}, then --set schedule=FILE.safetensors"
                )
            psnrs.append(psnr(fast.clip.pixels, dense.clip.pixels))
            speedups.append(dense.denoiser_seconds / max(fast.denoiser_seconds, 1e-9))
        return Measured(config, psnrs, speedups)

    def _dense_of(self, seed: int) -> Run:
        if seed not in self._dense:
            none = make_config("none")
            self._dense[seed] = run_once(self.pipe, self.calls[seed], seed, none, self.on_step, f"dense, seed {seed}")
        return self._dense[seed]
