"""Sampling densely and under keep tables: how far a table's result is from the dense one."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from ..errors import ConfigError, NothingSkippedWarning
from ..hooks.recipe import Recipe
from ..methods import MethodConfig
from ..methods.sparse import sparse_recipe, with_tables
from ..pipeline import accelerated, handle_of
from ..schedules import NEVER
from ..schedules.selectors import Selector
from ..schedules.sparsity import KeepTable
from .calibrator import Call, run
from .course import Course, Table, parts_of
from .kept import Kept
from .losses import measure
from .measuring import Reporter
from .watching import final, looked_at, sampled

#: a loss below this is no difference
_LEAST = 1e-12


@dataclass(frozen=True, kw_only=True)
class Trial(MethodConfig):
    """Method ``diffsparse`` under tables that are not in a file yet."""

    method: ClassVar[str] = "diffsparse"

    warmup: int = 1
    cooldown: int = 0
    max_skip: int = NEVER
    site: str = "output"
    selector: Selector = field(default_factory=Selector)
    tables: Mapping[str, KeepTable] = field(default_factory=dict)

    def recipe(self) -> Recipe:
        return with_tables(sparse_recipe(self, self.site, self.selector), self.tables.__getitem__)


class Trials:
    """Runs a pipeline under tables and compares with dense runs.

    Args:
        pipe: a pipeline, or a bare denoiser whose runs return their final sample.
        calls: one run a seed.
        site: ``output`` or ``token``.
        selector: how tokens are ranked.
        loss: see :func:`diffcache.learn.losses.measure`.
        reporter: told about every step.
    """

    def __init__(
        self, pipe: Any, calls: Sequence[Call], site: str, selector: Selector, loss: str, reporter: Reporter
    ) -> None:
        self.pipe, self.calls, self.site, self.selector = pipe, list(calls), site, selector
        self.loss_name, self.reporter = loss, reporter
        self._pictures: list[Any] = []
        self.course = self._dense()
        self.kept = Kept(None, None)
        self.count = 0

    # -- dense -----------------------------------------------------------------------------------------------------

    def _dense(self) -> Course:
        course = Course()
        for number, call in enumerate(self.calls, 1):
            with accelerated(self.pipe, "none"), sampled(self.pipe) as seen, self.counted(f"dense {number}"):
                with looked_at(self.pipe) as noticed:
                    result = run(self.pipe, call)
                course.finals.append(final(result, seen))
                course.outputs.append(seen.outputs)
                self._pictures.append(result if self.loss_name == "decoded" else None)
                parts = parts_of(self.pipe, list(noticed))
                if course.parts and parts != course.parts:
                    raise ConfigError("calls: the runs differ in their steps or conditionings, must be alike")
                course.parts, course.device = parts, _device(self.pipe)
                if seen.outputs and len(seen.outputs) < course.steps:
                    names = " and ".join(part.name for part in parts)
                    raise ConfigError(
                        f"calls: {names} run side by side: denoisers must take turns, one after the other"
                    )
                if len(set(noticed.values())) > 1:
                    raise ConfigError("calls: guidance is within the batch of one denoiser only, must be alike in all")
                course.folded = any(noticed.values())
        scheduler = getattr(self.pipe, "scheduler", None)
        if scheduler is not None:
            course.sampler = type(scheduler).__name__
            course.timesteps = tuple(float(t) for t in scheduler.timesteps.tolist()[-course.steps :])
        if len({part.units for part in course.parts}) > 1:
            raise ConfigError("model: its denoisers have different modules, diffsparse learns one table for all steps")
        return course

    def recipe(self) -> Recipe:
        """Of site ``token``, without a table: computes every step."""
        return sparse_recipe(Trial(selector=self.selector), "token", self.selector)

    def trial(self, keep: Table) -> Trial:
        """The method under a table of the whole trajectory, ``[steps, units]``."""
        return Trial(site=self.site, selector=self.selector, tables=self.course.tables(keep))

    def run(self, seed: int) -> Any:
        """Sample under the method that is on; what the run returns."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NothingSkippedWarning)
            return run(self.pipe, self.calls[seed])

    # -- under a table ---------------------------------------------------------------------------------------------

    def losses(self, keep: Table, seeds: Sequence[int], label: str = "table") -> list[float]:
        """The true loss of a table for some of the runs; each is sampled once."""
        about = digest(keep)
        found = (self.kept.numbers(f"{about}/{seed}", lambda s=seed: self._loss_of(keep, s, label)) for seed in seeds)
        return [float(loss) for loss in found]

    def loss(self, keep: Table, seeds: Sequence[int], label: str = "table") -> float:
        """Geometric mean over some of the runs: that of PSNR, so that no seed outweighs the others."""
        return math.exp(sum(math.log(max(v, _LEAST)) for v in self.losses(keep, seeds, label)) / len(seeds))

    def _loss_of(self, keep: Table, seed: int, label: str) -> float:
        self.count += 1
        with accelerated(self.pipe, self.trial(keep)), sampled(self.pipe) as seen:
            with self.counted(f"{label} {self.count}"):
                result = self.run(seed)
            return measure(self.loss_name, final(result, seen), result, self.course.finals[seed], self._pictures[seed])

    @contextmanager
    def counted(self, label: str) -> Iterator[None]:
        """Within: each step of a run is reported under a label."""
        self.reporter.begin(label)
        handle = handle_of(self.pipe)
        models = [model for model, _ in handle.hooks.values()]
        report = lambda *_: self.reporter(min(handle.clock.step + 1, handle.clock.total or 1), handle.clock.total or 1)  # noqa: E731
        hooks = [model.register_forward_hook(report) for model in models]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def digest(keep: Table) -> str:
    """Names what was measured of a table."""
    return hashlib.sha1(np.round(keep, 6).tobytes()).hexdigest()[:16]


def _device(pipe: Any) -> str:
    """The name of what computes."""
    model, _ = next(iter(handle_of(pipe).hooks.values()))
    device = next(model.parameters()).device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
