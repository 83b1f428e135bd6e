"""What was measured for a method on a model, as ``diffcache info MODEL --method METHOD`` says it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .learn import Calibration, describe, read_calibration
from .methods import MethodConfig
from .methods.auto import AutoConfig, choose, plan_of
from .methods.describe import needs_calibration
from .pipeline import accelerated
from .schedules.calibration import Expert

if TYPE_CHECKING:
    from .media.facts import Subject


@dataclass(frozen=True)
class Table:
    """The numbers that a method would run with.

    Attributes:
        known: them.
        config: of the method.
        home: whether they come with the model; else the user has named a file.
    """

    known: Calibration
    config: MethodConfig
    home: bool

    @property
    def title(self) -> str:
        """Where it is from, and what it holds for."""
        known, source = self.known, "that comes with the model" if self.home else f"of {self.known.source}"
        guided = "" if known.guidance is None else f", guidance {known.guidance:g}"
        return f"The table {source}: {known.steps} steps, {known.sampler or 'no sampler'}{guided}"

    def facts(self) -> list[tuple[str, str]]:
        """What was measured, and which steps are computed under the plan that is taken, as (name, value)."""
        alone = len(self.known.experts) == 1
        placed = [("decisions" if alone else f"{name} decisions", text) for name, text in self.decisions().items()]
        return [*describe(self.known), *placed]

    def decisions(self) -> dict[str, str]:
        """Denoiser -> a letter a step, as in ``stats()``, for methods that know before they run."""
        made = {name: _decisions(expert, self.known, self.config) for name, expert in self.known.experts.items()}
        return {name: text for name, text in made.items() if text}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        known = self.known
        about = {name: getattr(known, name) for name in ("method", "sampler", "steps", "runs", "guidance", "source")}
        return {**about, "facts": dict(describe(known)), "decisions": self.decisions()}


def find_table(subject: Subject, config: MethodConfig) -> Table | None:
    """The numbers that ``config`` would run with on a model, None where it has none.

    Raises:
        ConfigError: no plan of it reaches the target.
        ScheduleFileError: a file that is damaged, or for another model, sampler or number of steps.
    """
    if not needs_calibration(type(config)):
        return None
    named = config.schedule
    path = named or getattr(subject.pipe, "calibrations", {}).get(config.method)
    if path is None:
        return None
    known, steps = read_calibration(path), subject.request.steps
    if steps is not None and steps != known.steps:
        if named is None:
            return None  # another number of steps does without
        known.check_steps(next(iter(known.experts)), steps)
    with accelerated(subject.pipe, config):  # refuses what does not fit
        return Table(known, config, home=named is None or subject.comes_with(Path(named)))


def no_table(subject: Subject, config: MethodConfig) -> str:
    """What to do where a method has no numbers for a model; empty where it needs none."""
    if not needs_calibration(type(config)):
        return ""
    steps = "" if subject.request.steps is None else f" --steps {subject.request.steps}"
    make = f"diffcache calibrate --model {subject.model} --method {config.method}{steps} --out FILE.safetensors"
    if isinstance(config, AutoConfig) and config.min_psnr is None:
        return f"No table is here for it: the first generation is computed in full and measured; better: {make}"
    return f"No table is here for it: {make}"


def _decisions(expert: Expert, known: Calibration, config: MethodConfig) -> str:
    if isinstance(config, AutoConfig):
        plan = plan_of(expert, choose(known, config))
        shares = [1.0 if plan.computes(step) else plan.level(step) for step in range(plan.steps)]
        return "".join(map(_letter, shares, shares))
    keep = expert.numbers.get("keep")
    return "" if keep is None else "".join(map(_letter, keep.amin(1).tolist(), keep.amax(1).tolist()))


def _letter(least: float, most: float) -> str:
    """Of a step at which units compute from ``least`` to ``most`` of their tokens."""
    return "F" if least >= 1.0 else "p" if most > 0.0 else "c"
