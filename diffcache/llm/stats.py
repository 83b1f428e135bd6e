"""What a generation computed, as numbers and as text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..sizes import size_text


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
        external_used: forwards that took attention outside the block from memory.
        external_share: mean weight of that part in the attention of those forwards, in [0, 1]; None without any.
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
        return self.new_tokens / (self.steps * self.batch) if self.steps else 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            **asdict(self),
            "notes": list(self.notes),
            "tokens_per_second": self.tokens_per_second,
            "tokens_per_step": self.tokens_per_step,
        }

    def __str__(self) -> str:
        lines = [
            f"{self.method}, {self.decoder}: {self.new_tokens} tokens in {self.steps} steps "
            f"({self.tokens_per_step:.2f} a step), {self.seconds:.2f} s, {self.tokens_per_second:.1f} tokens/s",
            f"  {self.forwards} forwards, {self.full_forwards} of them full; {self.rows} rows, "
            f"{100 * self.row_share:.1f}% of the row-layers of a full pass each step",
            f"  {size_text(self.kv_bytes)} keys and values, {size_text(self.residual_bytes)} besides",
        ]
        if self.external_used:
            lines.append(
                f"  attention outside the block from memory in {self.external_used} forwards, "
                f"{100 * (self.external_share or 0.0):.0f}% of the weight there"
            )
        if self.guide_forwards:
            lines.append(f"  guide: {self.guide_forwards} forwards, {self.guide_rows} rows")
        return "\n".join(lines + [f"  {note}" for note in self.notes])


class Tally:
    """Counts while a generation runs."""

    def __init__(self) -> None:
        self.steps = self.forwards = self.full = self.rows = self.row_layers = self.used = 0
        self.dense = self.kv_bytes = self.residual_bytes = 0
        self.shares: list[Any] = []

    def external_share(self) -> float | None:
        """Mean over forwards and layers; reads the device once."""
        if not self.shares:
            return None
        return sum(share.item() for share in self.shares) / len(self.shares)
