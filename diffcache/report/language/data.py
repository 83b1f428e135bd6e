"""What a report on a language model holds, as typed data; kept in the same ``report.json`` as one on denoisers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ..data import SCHEMA, Machine, plain, save_report


@dataclass
class TextModel:
    """The model, without paths."""

    name: str
    architecture: str
    regime: str
    layers: int
    parameters: int
    device: str
    dtype: str


@dataclass
class TextSettings:
    """What was asked for. A run is continued only under the same settings (and more problems)."""

    model: str
    methods: list[str]
    problems: int
    prompts: str
    gen_length: int
    block_length: int
    steps: int | None
    decoder: str
    seed: int
    raw: bool
    guidance: float = 0.0


@dataclass
class Run:
    """One generation, as :class:`diffcache.llm.GenerationStats` counts it; ``seconds`` are of the wall clock."""

    seconds: float
    new_tokens: int
    steps: int
    forwards: int
    full_forwards: int
    rows: int
    row_layers: int
    kv_bytes: int
    residual_bytes: int
    external_used: int
    external_share: float | None
    external_saved: float | None = None
    attention_saved: float | None = None
    external_seconds: float = 0.0
    external_seconds_saved: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.new_tokens / max(self.seconds, 1e-9)


@dataclass
class Asked:
    """One prompt, and what vanilla made of it.

    Attributes:
        label: the problem's family and settings, or "".
        answer: the known answer, or None.
        text: vanilla's; ``right``: to the letter; ``score``: of the problem's own verifier, 0 to 1, None without it.
        runs: every timed run of vanilla.
        repeats: whether all of them gave the same tokens.
    """

    number: int
    label: str
    prompt: str
    answer: str | None
    text: str
    right: bool | None
    score: float | None
    runs: list[Run]
    repeats: bool


@dataclass
class TextSample:
    """What a row made of one prompt.

    Attributes:
        agreement: share of the tokens that are vanilla's; ``same``: all of them.
        around: numbers of vanilla's runs just before and just after.
    """

    number: int
    text: str
    right: bool | None
    score: float | None
    agreement: float
    same: bool
    run: Run
    around: list[int]


@dataclass
class TextRow:
    """One method with its settings, or vanilla with fewer steps.

    Attributes:
        kind: ``method`` or ``fewer-steps``.
        exact: whether it changes nothing on this kind of model by its construction.
        steps, block_length: of the decoding; steps None where the decoder decides.
        failure: why there are no figures, in one line.
    """

    name: str
    family: str
    kind: str
    config: dict[str, Any]
    exact: bool
    steps: int | None
    block_length: int
    failure: str | None = None
    samples: list[TextSample] = field(default_factory=list)


@dataclass
class TextReport:
    """Everything that was measured; what the page shows is computed from it."""

    kind: ClassVar[str] = "language"

    settings: TextSettings
    machine: Machine
    model: TextModel
    command: str
    rows: list[TextRow] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)  # what could not be measured -> how to get it
    schema: int = SCHEMA

    def row(self, name: str) -> TextRow:
        return next(row for row in self.rows if row.name == name)

    def vanilla(self, number: int) -> Asked:
        """Of a prompt."""
        return next(a for a in self.asked if a.number == number)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return plain({"schema": self.schema, "kind": self.kind, **asdict(self)})

    def save(self, folder: Path) -> Path:
        """Write ``report.json`` in one piece."""
        return save_report(self.to_dict(), folder)
