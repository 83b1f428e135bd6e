"""What a generation computed, as numbers and as text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..sizes import size_text
from .external import ExternalWork


@dataclass(frozen=True)
class GenerationStats:
    """Of one generation. ``print`` it, or take ``to_dict()`` for JSON.

    Attributes:
        method, decoder: their names.
        batch, prompt_tokens, length: sequences; positions of the prompt and in all.
        new_tokens: tokens decoded, up to the end token, over all sequences.
        steps: denoising steps.
        forwards: calls of the model: the steps, and those that only write keys and values.
        full_forwards: those of them that computed every row.
        rows: rows computed, over all forwards, of one sequence.
        row_layers: rows times layers; more than ``rows * layers`` suggests nothing: a probe may widen a forward.
        row_share: ``row_layers`` over what a full pass at each step would compute.
        kv_bytes, residual_bytes: most held in keys and values, and besides.
        external_used: forwards that took attention outside the block from memory, for one sequence at least.
        external_share: mean weight of that part in the attention of those forwards, in [0, 1]; None without any.
        external_saved: share of the query-key products outside the block that memory saved, in [0, 1]; None without
            a method that keeps them.
        attention_saved: the same, of the products outside and inside the block.
        external_seconds: time in attention outside the block.
        guide_forwards, guide_rows: of the autoregressive model that guides.
        seconds: wall clock of the whole generation.
        notes: what a user should know, e.g. that a result is approximate.
    """

    method: str
    decoder: str
    batch: int
    prompt_tokens: int
    length: int
    new_tokens: int
    steps: int
    forwards: int
    full_forwards: int
    rows: int
    row_layers: int
    row_share: float
    kv_bytes: int
    residual_bytes: int
    external_used: int
    external_share: float | None
    external_saved: float | None
    attention_saved: float | None
    external_seconds: float
    guide_forwards: int
    guide_rows: int
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def tokens_per_second(self) -> float:
        """New tokens of all sequences a second."""
        return self.new_tokens / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_step(self) -> float:
        """New tokens of one sequence a step."""
        return self.new_tokens / (self.steps * self.batch) if self.steps * self.batch else 0.0

    @property
    def external_seconds_saved(self) -> float:
        """What the saved part of attention outside the block would have taken, at the speed of the computed one."""
        if self.external_saved is None or self.external_saved == 1.0:
            return 0.0
        return self.external_seconds * self.external_saved / (1.0 - self.external_saved)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            **asdict(self),
            "notes": list(self.notes),
            "tokens_per_second": self.tokens_per_second,
            "tokens_per_step": self.tokens_per_step,
            "external_seconds_saved": self.external_seconds_saved,
        }

    def __str__(self) -> str:
        speed = (
            f"{self.new_tokens} tokens in {self.steps} steps ({self.tokens_per_step:.2f} a step), "
            f"{self.seconds:.2f} s, {self.tokens_per_second:.1f} tokens/s"
        )
        lines = [
            f"{self.method}, {self.decoder}: {speed if self.new_tokens else f'{self.steps} steps'}",
            f"  {self.forwards} forwards, {self.full_forwards} of them full; {self.rows} rows, "
            f"{100 * self.row_share:.1f}% of the row-layers of a full pass each step",
            f"  {size_text(self.kv_bytes)} keys and values, {size_text(self.residual_bytes)} besides",
        ]
        lines += self._external_lines() if self.external_saved is not None else []
        if self.guide_forwards:
            lines.append(f"  guide: {self.guide_forwards} forwards, {self.guide_rows} rows")
        return "\n".join(lines + [f"  {note}" for note in self.notes])

    def _external_lines(self) -> list[str]:
        spent, saved = self.external_seconds, self.external_seconds_saved
        first = f"  attention outside the block: {spent:.3f} s, {saved:.3f} s saved"
        whole = f" of {self.seconds:.2f} s in all" if self.seconds else ""
        work = f"({100 * self.external_saved:.0f}% of its work, {100 * self.attention_saved:.0f}% of all attention)"
        lines = [f"{first} {work}{whole}"]
        if self.external_used:
            lines.append(
                f"  from memory in {self.external_used} forwards, "
                f"{100 * (self.external_share or 0.0):.0f}% of the weight there"
            )
        return lines


class Tally:
    """Counts while a generation runs."""

    def __init__(self) -> None:
        self.steps = self.forwards = self.full = self.rows = self.row_layers = 0
        self.dense = self.kv_bytes = self.residual_bytes = 0
        self.external = ExternalWork()

    def stats(self, method: str, decoder: str, layers: int) -> GenerationStats:
        """What was counted; what only a loop knows is 0. Reads the device once where memory was used."""
        external = self.external
        return GenerationStats(
            method=method, decoder=decoder, batch=0, prompt_tokens=0, length=0, new_tokens=0, steps=self.steps,
            forwards=self.forwards, full_forwards=self.full, rows=self.rows, row_layers=self.row_layers,
            row_share=self.row_layers / max(self.dense * layers, 1), kv_bytes=self.kv_bytes,
            residual_bytes=self.residual_bytes, external_used=external.forwards,
            external_share=external.share, external_saved=external.saved, attention_saved=external.saved_of_all,
            external_seconds=external.seconds, guide_forwards=0, guide_rows=0, seconds=0.0,
        )  # fmt: skip
