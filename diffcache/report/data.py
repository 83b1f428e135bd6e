"""What a report holds, as typed data, and ``report.json``: schema-versioned, complete, written in one piece."""

from __future__ import annotations

import json
import math
import os
import types
import typing
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..errors import ConfigError
from ..hooks.stats import Stats

SCHEMA = 1
DATA = "report.json"


@dataclass
class Machine:
    """What the figures were measured on; nothing that names the machine or its owner."""

    system: str
    processor: str
    cores: int
    threads: int
    gpu: str | None
    versions: dict[str, str]


@dataclass
class Model:
    """The model, without paths."""

    name: str
    pipeline: str
    sampler: str
    denoisers: dict[str, str]
    parameters: int
    device: str
    dtype: str
    task: str = ""


@dataclass
class Settings:
    """What was asked for. A run is continued only under the same settings (and more seeds)."""

    model: str
    methods: list[str]
    steps: int
    seeds: int
    prompts: list[str]
    options: dict[str, Any]


@dataclass
class Timing:
    """One generation: seconds of the whole pipeline call, and of each denoiser call in order."""

    seconds: float
    calls: list[float]

    @property
    def denoiser(self) -> float:
        return sum(self.calls)


@dataclass
class Sample:
    """One row's generation from one seed.

    Attributes:
        dense: numbers of the dense runs (of the same seed) that were timed just before and just after.
        metrics: question (``dense``: how close to dense; ``real``: to what really followed) -> metric -> value.
        frames: question -> PSNR of each frame in dB.
        trajectories: what diffcache's engine counted; empty for rows that it does not run.
    """

    seed: int
    timing: Timing
    dense: list[int]
    metrics: dict[str, dict[str, float]]
    frames: dict[str, list[float]]
    trajectories: list[Stats] = field(default_factory=list)

    @property
    def cached_bytes(self) -> int:
        """Most memory held for reuse in one trajectory."""
        return max((sum(s.cached_bytes for s in t.segments) for t in self.trajectories), default=0)


@dataclass
class DenseSeed:
    """The reference of one seed.

    Attributes:
        about: what was generated, in a few words.
        timings: each dense run.
        repeats: whether every dense run gave the same pixels to the bit.
        metrics, frames: as for :class:`Sample`, question ``real`` only.
    """

    seed: int
    about: str
    timings: list[Timing]
    repeats: bool
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    frames: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class Row:
    """One method with its settings.

    Attributes:
        name: as it is written in ``--methods``, unique.
        family: the name without settings; the rows of a sweep share it.
        kind: ``method``, ``fewer-steps``, ``diffusers`` or ``cache-dit``.
        config: every setting that was in force.
        steps: sampler steps.
        work: share of a dense call's linear and convolution work that each call of the warm-up run did; empty where it
            could not be counted.
        work_share: of the whole run against dense.
        failure: why there are no figures, in one line.
        tokens: what its token map shows (``groups``, ``damping`` or ``ages``), empty where it treats all tokens alike.
        fid: Frechet Inception distance of all its frames to the reference's, where Inception is there.
    """

    name: str
    family: str
    kind: str
    config: dict[str, Any]
    steps: int
    work: list[float] = field(default_factory=list)
    work_share: float | None = None
    failure: str | None = None
    fid: float | None = None
    tokens: str = ""
    samples: list[Sample] = field(default_factory=list)


@dataclass
class Report:
    """Everything that was measured; what the page shows is computed from it."""

    kind: ClassVar[str] = "denoiser"

    settings: Settings
    machine: Machine
    model: Model
    command: str
    rows: list[Row] = field(default_factory=list)
    dense: list[DenseSeed] = field(default_factory=list)
    metrics: dict[str, str] = field(default_factory=dict)  # metric -> why it is missing, or "" where it is there
    shown: list[int] = field(default_factory=list)  # seeds whose pictures are kept
    size: list[int] = field(default_factory=list)  # frames, height and width of a sample
    schema: int = SCHEMA

    @property
    def seeds(self) -> list[int]:
        """Seeds that are finished."""
        return [d.seed for d in self.dense]

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    def reference(self, sample: Sample) -> list[Timing]:
        """The dense runs that bracket a sample."""
        timings = next(d for d in self.dense if d.seed == sample.seed).timings
        return [timings[number] for number in sample.dense]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; numbers that JSON has no word for are the strings inf, -inf and nan."""
        return plain({"schema": self.schema, **asdict(self)})

    def save(self, folder: Path) -> Path:
        """Write ``report.json`` in one piece: a reader sees the old file or the new one."""
        return save_report(self.to_dict(), folder)


def save_report(data: dict[str, Any], folder: Path) -> Path:
    """Write ``report.json`` in one piece."""
    path = folder / DATA
    write_atomically(path, json.dumps(data, allow_nan=False) + "\n")
    return path


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's content at once."""
    draft = path.with_name(f".{path.name}.new")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def load_report(path: Path | str, name: str = "report", kind: Any = None) -> Any:
    """Read a ``report.json`` (or the folder that holds one): a :class:`Report`, or of the class ``kind``.

    Raises:
        ConfigError: it is missing, damaged, or of another schema or kind of model; ``name`` begins the message.
    """
    kind = kind or Report
    path = Path(path)
    path = path / DATA if path.is_dir() else path
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{name}: '{path}' cannot be read ({error.strerror}), must be a {DATA}") from error
    except ValueError as error:
        raise ConfigError(f"{name}: '{path}' is damaged, must be a {DATA}") from error
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise ConfigError(f"{name}: '{path}' has schema {schema!r}, must be {SCHEMA}: measure again")
    found = data.get("kind", Report.kind)
    if found != kind.kind:
        raise ConfigError(f"{name}: '{path}' is a report on a {found} model, must be one on a {kind.kind} model")
    try:
        return _typed(kind, data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{name}: '{path}' is damaged ({error}), must be a {DATA}") from error


def plain(value: Any) -> Any:
    """JSON-ready."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


def _typed(kind: Any, value: Any) -> Any:
    """``value`` (from JSON) as ``kind``; keys that the class does not have are left out."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        names = {f.name for f in fields(kind)}
        return kind(**{k: _typed(hints[k], v) for k, v in value.items() if k in names})
    if origin is list:
        return [_typed(inner[0], item) for item in value]
    if origin is dict:
        return {key: _typed(inner[1], item) for key, item in value.items()}
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _typed(next(k for k in inner if k is not type(None)), value)
    return float(value) if kind is float else value
