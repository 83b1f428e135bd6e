"""Running the rows: warm-up, then seed by seed, dense between them, the order turned at every seed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError
from ..media.frames import Clip, read_output
from ..media.request import Call
from ..media.runs import trajectories_of
from ..media.subject import Subject
from ..methods import MethodConfig, make_config
from ..pipeline import accelerated
from . import extras
from .data import DenseSeed, Row, Sample, Timing
from .metrics import frame_psnr, measure
from .peers import complete, peer_on
from .pictures import Album
from .plan import CONTROL, Spec
from .stopwatch import counting, timed
from .tokens import TokenMaps

#: rows between two dense runs: each row is compared with the dense runs on both sides of it
BETWEEN = 5

# Told about every run: its label, how many denoiser calls are done, of how many (0: unknown).
OnStep = Callable[[str, int, int], None]


@dataclass
class Bench:
    """Everything that measuring a row needs.

    Attributes:
        subject: the model.
        steps: of dense.
        folder: where calibrations are written.
        album: where pictures are kept.
        on_step: progress.
    """

    subject: Subject
    steps: int
    folder: Path
    album: Album
    on_step: OnStep
    calls: int = 0
    work: list[int] = field(default_factory=list)

    @property
    def pipe(self) -> Any:
        return self.subject.pipe

    def generate(
        self, label: str, seed: int, steps: int, watch: Callable[[int], None] | None = None
    ) -> tuple[Clip, Timing]:
        """One generation with whatever is on the pipeline; ``watch`` is told the number of denoiser calls so far."""
        call = self.subject.call(seed, steps)
        total = round((self.calls or self.steps) * steps / self.steps)
        self.on_step(label, 0, total)

        def tell(count: int) -> None:
            if count <= total:
                self.on_step(label, count, total)
            if watch is not None:
                watch(count)

        output, timing = timed(self.pipe, call.arguments, seed, tell)
        return read_output(output), timing

    # -- warming up ------------------------------------------------------------------------------------------------

    def warm_dense(self, seed: int) -> Clip:
        """One dense run, not timed: everything lazy has happened afterwards, and the full work of a call is known."""
        with counting(self.pipe) as work:
            clip, timing = self.generate("warm-up: dense", seed, self.steps)
        self.calls, self.work = len(timing.calls), work()
        return clip

    def warm(self, spec: Spec, row: Row, seed: int) -> Ready | None:
        """Set a row up and run it once, not timed; a row that fails says why."""
        if spec.missing is not None:
            row.failure = spec.missing
            return None
        try:
            ready = self._set_up(spec, seed)
            row.config = ready.told
            maps = TokenMaps(self.pipe, self.calls)
            with ready.on(self.pipe), counting(self.pipe) as work:
                self.generate(f"warm-up: {spec.name}", seed, spec.steps, maps)
            if maps.found:
                row.tokens = maps.kind
                self.album.keep_tokens(spec.name, maps.picture)
        except Exception as error:  # a method or a peer that cannot do this model is a result, whatever it raises
            row.failure = reason(error)
            return None
        row.work, row.work_share = self._shares(work())
        return ready

    def _shares(self, work: list[int]) -> tuple[list[float], float | None]:
        full = sum(self.work)
        if not full:
            return [], None
        return [round(w * len(self.work) / full, 4) for w in work], sum(work) / full

    def _set_up(self, spec: Spec, seed: int) -> Ready:
        if spec.kind == CONTROL:
            return Ready(spec, {"steps": spec.steps})
        if spec.kind == "method":
            config = self._calibrated(spec.config, seed)
            told = config.to_dict()
            if told.get("schedule"):
                told["schedule"] = Path(told["schedule"]).name  # a report holds no paths
            return Ready(spec, told, config=config)
        once = lambda: self.generate(f"calibrating {spec.method}", seed, self.steps)  # noqa: E731
        settings = complete(self.pipe, spec.method, spec.settings, self.steps, once)
        return Ready(spec, settings, settings=settings)

    def _calibrated(self, config: MethodConfig, seed: int) -> MethodConfig:
        """Methods that need numbers of the model get the shipped ones, or measure them in one dense run.

        Where one run is too few the method itself says which command makes its file.
        """
        shipped = self.subject.entry.methods.get(config.method, {}) if self.subject.entry else {}
        if getattr(config, "needs_calibration", False) and "schedule" in shipped:
            return make_config(config, schedule=shipped["schedule"])
        numbers = any(getattr(config, name, None) for name in ("published", "ratios", "polynomial"))
        if not getattr(config, "needs_calibration", False) or numbers:
            return config
        from ..learn import calibrate, write_calibration
        from ..learn.calibrators import CALIBRATORS

        if CALIBRATORS[config.method].least > 1:
            return config
        path = self.folder / f"calibration-{config.method}.safetensors"
        run = lambda pipe: self.generate(f"calibrating {config.method}", seed, self.steps)  # noqa: E731
        write_calibration(calibrate(self.pipe, config.method, run), path)
        return make_config(config, schedule=str(path))

    # -- a seed ----------------------------------------------------------------------------------------------------

    def measure_seed(self, seed: int, ready: list[Ready], rows: dict[str, Row], keep: bool) -> DenseSeed:
        """Dense, some rows, dense, some rows, dense; the samples are added to the rows."""
        call = self.subject.call(seed, self.steps)
        dense, timing = self.generate("dense", seed, self.steps)
        result = DenseSeed(seed, call.about, [timing], True)
        real = _cut(call.truth, dense)
        if real is not None:
            result.metrics["real"], result.frames["real"] = measure(dense, real), frame_psnr(dense, real)
        self._score_prompt(result.metrics, dense, call)
        if keep:
            self.album.keep_references(seed, dense, real, call.start)
        for first in range(0, len(ready), BETWEEN):
            for one in ready[first : first + BETWEEN]:
                row, number = rows[one.spec.name], len(result.timings)
                if row.failure is None:
                    self._measure_row(row, one, (dense, real, call), seed, [number - 1, number], keep)
            again, timing = self.generate("dense", seed, self.steps)
            result.timings.append(timing)
            result.repeats &= bool((again.frames == dense.frames).all())
        return result

    def _measure_row(
        self, row: Row, ready: Ready, against: tuple[Clip, Clip | None, Call], seed: int, dense: list[int], keep: bool
    ) -> None:
        reference, real, call = against
        try:
            with ready.on(self.pipe):
                clip, timing = self.generate(row.name, seed, row.steps)
                handle = self.pipe.__dict__.get("diffcache")
                trajectories = [] if handle is None else trajectories_of(handle)
        except Exception as error:
            row.failure = f"seed {seed}: {reason(error)}"
            return
        sample = Sample(seed, timing, dense, {"dense": measure(clip, reference)}, {}, trajectories)
        sample.frames["dense"] = frame_psnr(clip, reference)
        if real is not None:
            sample.metrics["real"], sample.frames["real"] = measure(clip, real), frame_psnr(clip, real)
        self._score_prompt(sample.metrics, clip, call)
        if keep:
            self.album.keep(row.name, seed, clip, reference)
        row.samples.append(sample)

    def _score_prompt(self, metrics: dict[str, dict[str, float]], clip: Clip, call: Call) -> None:
        prompt, score = call.arguments.get("prompt"), extras.clip()
        if score is not None and isinstance(prompt, str):
            metrics["prompt"] = {"clip": score(clip.pixels, prompt)}


def _cut(truth: Clip | None, made: Clip) -> Clip | None:
    """What really followed, where it is known for all generated frames."""
    return truth if truth is not None and truth.frames.shape == made.frames.shape else None


@dataclass(frozen=True)
class Ready:
    """A row that has been set up.

    Attributes:
        told: every setting in force, for the report.
        config: of a method.
        settings: of a peer.
    """

    spec: Spec
    told: dict[str, Any]
    config: MethodConfig | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def on(self, pipe: Any) -> Iterator[None]:
        """The pipeline under this row, for the block only."""
        if self.spec.kind == CONTROL:
            yield
        elif self.config is not None:
            with accelerated(pipe, self.config):
                yield
        else:
            with peer_on(pipe, self.spec.method, self.settings):
                yield


def turned(ready: list[Ready], number: int, seeds: int) -> list[Ready]:
    """The order for a seed: each begins elsewhere, so that no row always runs on a cold or a warm machine.

    >>> turned("abcdef", 1, 3)
    'cdefab'
    """
    shift = number * max(1, len(ready) // max(seeds, 1)) % max(len(ready), 1)
    return ready[shift:] + ready[:shift]


def reason(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, ConfigError) and isinstance(error.__cause__, ValueError):
        error = error.__cause__  # a pipeline's own words, see `generate`
    text = " ".join(str(error).split())
    kind = type(error).__name__
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "out of memory"
    return f"{kind}: {without_folders(text)[:300]}" if text else kind


def without_folders(text: str) -> str:
    """Absolute paths by their last part: a report tells nobody's folders.

    >>> without_folders("cannot read /home/me/x.json, see docs/report.md")
    'cannot read x.json, see docs/report.md'
    """
    return re.sub(r"(?<![\w.])(?:[A-Za-z]:)?[\\/](?:[^\s\\/'\"]+[\\/])*(?=[^\s\\/'\"])", "", text)
