"""What a model answered, and how far two answers agree."""

from __future__ import annotations

from dataclasses import dataclass

from ..llm.stats import GenerationStats


@dataclass(frozen=True, eq=False)
class Answer:
    """One answer.

    Attributes:
        text: up to the end token.
        ids: its tokens, without the end token.
        ended: whether the end token came; without, the answer filled the canvas.
        stats: what was computed.
        seconds: of the generation, without what drawing took.
    """

    text: str
    ids: list[int]
    ended: bool
    stats: GenerationStats
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """New tokens a second, the end token among them."""
        return self.stats.new_tokens / self.seconds if self.seconds > 0 else 0.0


def agreement(a: list[int], b: list[int]) -> float:
    """Share of positions at which two answers have the same token, of those that the longer one has.

    >>> agreement([5, 6, 7], [5, 6]), agreement([], [])
    (0.6666666666666666, 1.0)
    """
    longer = max(len(a), len(b))
    return sum(x == y for x, y in zip(a, b)) / longer if longer else 1.0


def first_difference(a: list[int], b: list[int]) -> int | None:
    """The first position at which two answers differ; None where they are the same."""
    apart = (n for n, (x, y) in enumerate(zip(a, b)) if x != y)
    return None if a == b else next(apart, min(len(a), len(b)))
