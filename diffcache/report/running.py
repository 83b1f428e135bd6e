"""``diffcache.report.run``: check, load, warm up, measure seed by seed, keep what was measured, draw the page."""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..media.request import Request, check_model, short_name
from ..media.subject import Subject, read_prompts
from . import extras
from .data import DATA, Machine, Report, Row, Settings, load_report
from .machine import examine_machine, examine_model
from .measuring import Bench, OnStep, turned, without_folders
from .pictures import DENSE, FOLDER, REAL, Album
from .plan import Spec, make_plan

MOST_SEEDS = 1000
MOST_PICTURES = 6  # single pictures shown of as many seeds; of films one seed is shown


def run(
    model: str = "tiny-wan",
    methods: str | Sequence[Any] | None = None,
    *,
    steps: int | None = None,
    seeds: int = 8,
    out: str | Path = "out/report",
    sweep: bool = False,
    prompts: Sequence[str] | str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dtype: str | None = None,
    device: str | None = None,
    command: str | None = None,
    on_step: OnStep | None = None,
    say: Callable[[str], None] | None = None,
    **options: Any,
) -> Report:
    """Measure methods on a model and write ``report.json``, ``report.html`` and pictures.

    Args:
        model: zoo name, folder or hub id.
        methods: as ``--methods``, or a list of such entries and of configuration objects; None takes a default set.
        steps: sampler steps of dense; None takes the model's own number.
        seeds: seeds 0 ... seeds - 1, each a generation of every row.
        out: folder to write.
        sweep: vary the one natural knob of each method that has one.
        prompts: a text file with one prompt a line, or a list of prompts, one for each seed in turn.
        resume: go on where an interrupted run stopped; ``overwrite``: begin anew. Without either a folder that holds a
            report is refused.
        dtype, device: as for ``diffcache sample``.
        command: how to repeat it, for the page.
        on_step: told about progress: label, denoiser calls done, of how many.
        say: told notes in a sentence.
        options: what to sample, fields of a request: prompt, actions, image, clip, guidance, height, width, frames ...

    Returns:
        What was measured, also in ``report.json``.

    Raises:
        ConfigError: a wrong argument, a folder that cannot be written, another run's report there.
        ModelNotAvailableError, UnsupportedModelError: as for sampling.
    """
    tell = say or (lambda text: None)
    entry = check_model(model)
    own = entry.num_inference_steps if entry else 50
    steps = _whole("steps", own if steps is None else steps, 2, 10_000)
    _whole("seeds", seeds, 1, MOST_SEEDS)
    lines = tuple(prompts) if isinstance(prompts, (list, tuple)) else read_prompts(Path(prompts) if prompts else None)
    request = _request(options)
    specs = make_plan(methods, steps, sweep)
    folder = check_folder(Path(out), resume, overwrite)
    subject = _open(model, entry, request, lines, dtype, device, steps)
    report = Report(
        Settings(
            short_name(model),
            [spec.name for spec in specs],
            steps,
            seeds,
            list(lines),
            {**request.options(), "image": request.image.name if request.image else None},
        ),
        examine_machine(),
        examine_model(short_name(model), subject.pipe, entry.task if entry else ""),
        command or _call_text(model, methods, steps, seeds, out, sweep),
        [Row(spec.name, spec.family, spec.kind, dict(spec.settings), spec.steps) for spec in specs],
        metrics=extras.missing(),
    )
    if resume and (folder / DATA).exists():
        report = _continued(load_report(folder / DATA, "resume"), report)
    if overwrite:
        _clear(folder)  # not before everything is known to be right
    try:
        _measure(report, subject, specs, folder, on_step or (lambda *_: None), tell)
    finally:  # an interrupted run has a page of what it measured
        if report.dense:
            _drop_unfinished(report)
            render(report, folder)
    return report


def _drop_unfinished(report: Report) -> None:
    """Rows that ran on a seed before it was interrupted lose it again."""
    for row in report.rows:
        row.samples = [sample for sample in row.samples if sample.seed in report.seeds]


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name}: {value!r} is out of range, must be a whole number from {low} to {high}")
    return value


def _request(options: dict[str, Any]) -> Request:
    known = [name for name in Request.__dataclass_fields__ if name not in ("steps", "seed")]
    for name in options:
        if name not in known:
            raise ConfigError(f"{name}: unknown option, known: {', '.join(known)}")
    return Request(**options)


def check_folder(folder: Path, resume: bool, overwrite: bool) -> Path:
    """The folder, made and known to be writable; raises ConfigError where it is not, or holds another report."""
    if resume and overwrite:
        raise ConfigError("resume: cannot go with overwrite: one continues a run, the other begins anew")
    if (folder / DATA).exists() and not (resume or overwrite):
        raise ConfigError(f"out: '{folder}' holds a {DATA}: --resume continues it, --overwrite begins anew")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise ConfigError(f"out: '{folder}' cannot be written ({why}), must be a folder that can be") from error
    return folder


def _clear(folder: Path) -> None:
    (folder / DATA).unlink(missing_ok=True)
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def _open(model: str, entry: Any, request: Request, prompts: tuple[str, ...], dtype: Any, device: Any, steps: int):
    from ..media.session import check_class, folder_of, open_pipeline

    if not prompts:
        check_class(request, entry)
    pipe = open_pipeline(model, entry, dtype, device)
    pipe.set_progress_bar_config(disable=True)
    subject = Subject(pipe, entry, folder_of(model, entry), request, prompts)
    subject.call(0, steps)  # a wrong argument is told before anything is measured
    return subject


def _continued(old: Report, new: Report) -> Report:
    """The old report, to go on with; raises ConfigError that names what differs."""
    continued(old, new, ("model", "steps", "methods", "prompts", "options"))
    old.settings.seeds, old.command, old.metrics = new.settings.seeds, new.command, new.metrics
    return old


def continued(old: Any, new: Any, names: Sequence[str]) -> None:
    """Raises ConfigError that names what differs: of the settings in ``names``, of the machine, of the model."""
    pairs: list[tuple[str, Any, Any]] = [(n, getattr(old.settings, n), getattr(new.settings, n)) for n in names]
    pairs += [("machine", _kind(old.machine), _kind(new.machine)), ("model", old.model, new.model)]
    for name, before, now in pairs:
        if before != now:
            raise ConfigError(f"resume: {name} differs ({_short(before)} there, {_short(now)} now), must be the same")


def _kind(machine: Machine) -> str:
    versions = ", ".join(f"{name} {machine.versions.get(name)}" for name in ("diffcache", "torch", "diffusers"))
    return f"{machine.gpu or machine.processor}, {machine.threads} threads, {versions}"


def _short(value: Any) -> str:
    text = value.name if hasattr(value, "name") else str(value)
    return text if len(text) <= 90 else text[:87] + "..."


def _measure(report: Report, subject: Subject, specs: list[Spec], folder: Path, on_step: OnStep, tell: Any) -> None:
    todo = [seed for seed in range(report.settings.seeds) if seed not in report.seeds]
    if not todo:
        return
    whole = not report.metrics["fid"]
    progress = Progress(on_step)
    bench = Bench(subject, report.settings.steps, folder, Album(folder, whole), progress)
    report.size = list(bench.warm_dense(todo[0]).frames.shape[:3])
    most = 1 if report.size[0] > 1 else MOST_PICTURES
    rows = {row.name: row for row in report.rows}
    ready = []
    for spec in specs:
        row = rows[spec.name]
        if row.failure is None or not report.dense:
            found = bench.warm(spec, row, todo[0])
            ready += [found] if found is not None else []
        if row.failure is not None:
            tell(f"{row.name}: {row.failure}")
    progress.plan(len(todo), ready)
    for number, seed in enumerate(todo):
        keep = whole or len(report.shown) < most
        progress.seed = f"seed {seed + 1}/{report.settings.seeds}"
        dense = bench.measure_seed(seed, turned(ready, number, len(todo)), rows, keep)
        report.dense.append(dense)
        report.shown += [seed] if keep else []
        report.save(folder)
        gc.collect()
    if whole:
        _add_fid(report, Album(folder))
        report.save(folder)


def _add_fid(report: Report, album: Album) -> None:
    """Frames of all seeds against the real ones, or dense where there are none."""
    reference = REAL if album.path(REAL, report.shown[0]).is_file() else DENSE
    real = album.frames(reference, report.shown, report.size[2])
    for row in report.rows:
        if row.failure is None and row.samples:
            row.fid = extras.fid(album.frames(row.name, report.shown, report.size[2]), real)


class Progress:
    """Adds to each run's label where the whole stands."""

    def __init__(self, on_step: OnStep) -> None:
        self._on_step, self.seed = on_step, ""
        self._runs = self._done = 0

    def plan(self, seeds: int, ready: list[Any]) -> None:
        """How many runs are to come."""
        from .measuring import BETWEEN

        self._runs = seeds * (len(ready) + 1 + -(-len(ready) // BETWEEN))

    def __call__(self, label: str, done: int, total: int) -> None:
        if done == 0 and self._runs:
            self._done += 1
        where = f"{self.seed} · run {self._done}/{self._runs} · " if self._runs else ""
        self._on_step(where + label, done, total)


def render(report: Report, folder: str | Path) -> Path:
    """Write ``report.html`` and the PNGs from what was measured; the page's path."""
    from .page import write_page

    return write_page(report, Path(folder))


def _call_text(model: str, methods: Any, steps: int, seeds: int, out: Any, sweep: bool) -> str:
    parts = [repr(model), f"methods={methods!r}", f"steps={steps}", f"seeds={seeds}"] + (
        ["sweep=True"] if sweep else []
    )
    return f"diffcache.report.run({', '.join(parts)}, out={without_folders(str(out))!r})"
