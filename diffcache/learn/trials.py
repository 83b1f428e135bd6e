"""Sampling densely and under keep tables: how far a table's result is from the dense one."""

from __future__ import annotations

import functools
import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import ConfigError, NothingSkippedWarning
from ..hooks.batch import folded
from ..hooks.identity import identify
from ..hooks.modules import find_units, unit_kinds
from ..hooks.recipe import Recipe
from ..methods import MethodConfig
from ..methods.sparse import sparse_recipe, with_tables
from ..pipeline import accelerated, handle_of
from ..schedules import NEVER
from ..schedules.calibration import Identity
from ..schedules.selectors import Selector
from ..schedules.sparsity import KeepTable
from .calibrator import Call, run
from .kept import Kept
from .measuring import Reporter

Table = NDArray[np.float64]
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


@dataclass(frozen=True)
class Part:
    """One denoiser's part of a trajectory.

    Attributes:
        name: of the component.
        identity: which model it is.
        units: names of its attention and feed-forward modules.
        start, steps: of the trajectory.
        branches: names of its conditionings.
    """

    name: str
    identity: Identity
    units: tuple[str, ...]
    start: int
    steps: int
    branches: tuple[str, ...]


@dataclass
class Course:
    """What dense runs showed.

    Attributes:
        parts: denoisers, in the order in which they run.
        folded: whether a call's batch is the same noise twice.
        timesteps: of the trajectory, empty where no sampler told them.
        sampler: its class name.
        finals: the sample that each run ended with.
        outputs: of each run, what the sampler was given at each step, fp32; empty where no sampler was seen.
    """

    parts: list[Part] = field(default_factory=list)
    folded: bool = False
    timesteps: tuple[float, ...] = ()
    sampler: str | None = None
    finals: list[Tensor] = field(default_factory=list)
    outputs: list[list[Tensor]] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return sum(part.steps for part in self.parts)

    @property
    def units(self) -> tuple[str, ...]:
        return self.parts[0].units

    @property
    def starts(self) -> list[int]:
        """First step of each part: computed in full whatever a table says."""
        return [part.start for part in self.parts]

    def tables(self, keep: Table) -> dict[str, KeepTable]:
        """``[steps, units]`` of the trajectory as a table for each denoiser."""
        return {
            part.name: KeepTable(
                part.units,
                tuple(map(tuple, keep[part.start : part.start + part.steps].tolist())),
                self.timesteps[part.start : part.start + part.steps],
                len(part.branches),
                self.folded,
                "calibration",
            )
            for part in self.parts
        }


class Trials:
    """Runs a pipeline under tables and compares with dense runs.

    Args:
        pipe: a pipeline, or a bare denoiser whose runs return their final sample.
        calls: one run a seed.
        site: ``output`` or ``token``.
        selector: how tokens are ranked.
        loss: see :func:`measure`.
        reporter: told about every step.
    """

    def __init__(
        self, pipe: Any, calls: Sequence[Call], site: str, selector: Selector, loss: str, reporter: Reporter
    ) -> None:
        self.pipe, self.calls, self.site, self.selector = pipe, list(calls), site, selector
        self._loss, self.reporter = loss, reporter
        self._pictures: list[Any] = []
        self.course = self._dense()
        self.kept = Kept(None, None)
        self.count = 0

    # -- dense -----------------------------------------------------------------------------------------------------

    def _dense(self) -> Course:
        course = Course()
        for number, call in enumerate(self.calls, 1):
            with accelerated(self.pipe, "none"), sampled(self.pipe) as seen, self.counted(f"dense {number}"):
                with _looked_at(self.pipe) as noticed:
                    result = run(self.pipe, call)
                course.finals.append(final(result, seen))
                course.outputs.append(seen.outputs)
                self._pictures.append(result if self._loss == "decoded" else None)
                parts = _parts(self.pipe)
                if course.parts and parts != course.parts:
                    raise ConfigError("calls: the runs differ in their steps or conditionings, must be alike")
                course.parts, course.folded = parts, any(noticed)
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

    # -- under a table ---------------------------------------------------------------------------------------------

    def losses(self, keep: Table, seeds: Sequence[int], label: str = "table") -> list[float]:
        """The true loss of a table for some of the runs; each is sampled once."""
        digest = hashlib.sha1(np.round(keep, 6).tobytes()).hexdigest()[:16]
        found = (self.kept.numbers(f"{digest}/{seed}", lambda s=seed: self._loss_of(keep, s, label)) for seed in seeds)
        return [float(loss) for loss in found]

    def loss(self, keep: Table, seeds: Sequence[int], label: str = "table") -> float:
        """Geometric mean over some of the runs: that of PSNR, so that no seed outweighs the others."""
        return math.exp(sum(math.log(max(v, _LEAST)) for v in self.losses(keep, seeds, label)) / len(seeds))

    def _loss_of(self, keep: Table, seed: int, label: str) -> float:
        config = Trial(site=self.site, selector=self.selector, tables=self.course.tables(keep))
        self.count += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NothingSkippedWarning)
            with accelerated(self.pipe, config), sampled(self.pipe) as seen, self.counted(f"{label} {self.count}"):
                result = run(self.pipe, self.calls[seed])
                return measure(self._loss, final(result, seen), result, self.course.finals[seed], self._pictures[seed])

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


# -- watching a run ----------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What went through a sampler: what it was given at each step, and what it returned last."""

    outputs: list[Tensor] = field(default_factory=list)
    last: Tensor | None = None
    change: Callable[[int, Tensor], Tensor] | None = None


@contextmanager
def sampled(pipe: Any) -> Iterator[Seen]:
    """Within: the steps of a pipeline's sampler are seen; ``change`` may replace what it is given."""
    seen, scheduler = Seen(), getattr(pipe, "scheduler", None)
    if scheduler is None:
        yield seen
        return
    inner = scheduler.step
    had = scheduler.__dict__.get("step")

    @functools.wraps(inner)
    def step(model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
        if seen.change is not None:
            model_output = seen.change(len(seen.outputs), model_output)
        seen.outputs.append(model_output.detach().float().cpu())
        result = inner(model_output, *args, **kwargs)
        found = result[0] if isinstance(result, tuple) else result.prev_sample
        seen.last = found.detach().float().cpu()
        return result

    scheduler.__dict__["step"] = step
    try:
        yield seen
    finally:
        if had is None:
            del scheduler.__dict__["step"]
        else:
            scheduler.__dict__["step"] = had


@contextmanager
def _looked_at(pipe: Any) -> Iterator[list[bool]]:
    """Within: whether the batch of each denoiser's first call is the same noise twice."""
    noticed: list[bool] = []
    hooks = []
    for model, hook in handle_of(pipe).hooks.values():

        def look(module: nn.Module, args: Any, kwargs: Any, anatomy: Any = hook.anatomy) -> None:
            if not noticed:
                noticed.append(folded(anatomy.bind(args, kwargs).get(anatomy.sample)))

        hooks.append(model.register_forward_pre_hook(look, with_kwargs=True))
    try:
        yield noticed
    finally:
        for hook in hooks:
            hook.remove()


def _parts(pipe: Any) -> list[Part]:
    handle, parts, start = handle_of(pipe), [], 0
    segments = handle.stats().segments
    for name, (model, hook) in handle.hooks.items():
        mine = [segment for segment in segments if segment.expert == name]
        if not mine:
            continue
        units = tuple(unit.name for unit in find_units(model, "module", unit_kinds("module")))
        steps = len(mine[0].decisions)
        branches = tuple(segment.branch for segment in mine)
        parts.append(Part(name, identify(model, hook.anatomy), units, start, steps, branches))
        start += steps
    if not parts:
        raise ConfigError("calls: the denoiser never ran with a known number of steps")
    return parts


def final(result: Any, seen: Seen) -> Tensor:
    """The sample that a run ended with: the sampler's last one, or what a bare denoiser's run returned."""
    if seen.last is not None:
        return seen.last
    if isinstance(result, Tensor):
        return result.detach().float().cpu()
    raise ConfigError("calls: a bare denoiser's run must return its final sample, a tensor")


# -- losses ------------------------------------------------------------------------------------------------------------

LOSSES = ("latent", "decoded")


def measure(loss: str, found: Tensor, picture: Any, wanted: Tensor, reference: Any) -> float:
    """How far a run is from the dense one of its seed.

    Args:
        loss: ``latent``, mean squared error over mean square of the final sample; or ``decoded``, 1 - SSIM of what the
            pipeline returned.
        found, wanted: final samples.
        picture, reference: what the pipeline returned.
    """
    if loss == "latent":
        return float((found - wanted).square().mean() / wanted.square().mean())
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    from ..media.frames import read_output

    first, second = (torch.as_tensor(read_output(p).pixels).float().movedim(-1, 1) for p in (picture, reference))
    return float(1.0 - ssim(first, second, data_range=float(second.max()) or 1.0))
