"""What is known of a block whose tokens are computed apart from the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .selection import Place
from .token_passes import Call, Lesson

#: sources of an argument that are norms of the stream, by the name that kernel G has for them
NORMS = ("layer", "rms")


@dataclass(frozen=True)
class Source:
    """How a tensor with the tokens in it comes to a unit.

    Attributes:
        kind: ``layer`` or ``rms``, modulated norms of the stream; ``stream``, itself; ``argument`` of the block;
            ``fed`` by modules whose results only the unit reads.
        eps: of the norm.
        number: of the block's argument.
        readers: units that get the very tensor: call, depth and kind.
        ahead: of a norm of the stream as it was in front of an earlier unit, that unit's call; None of the stream now.
    """

    kind: str
    eps: float = 0.0
    number: int = 0
    readers: tuple[tuple[Call, int, str], ...] = ()
    ahead: Call | None = None


@dataclass
class BlockLesson:
    """What was learned of one call of a block.

    Attributes:
        inputs: of each tensor among the arguments, where the tokens are in it; None where it has none.
        stream: number of the argument that carries the tokens.
        result: number of the result that carries them on.
        units: calls of the units inside in order, with their depth, kind, and whether only another unit reads them.
        modulated: whether its gates and norms are others for each token.
        chained: whether its result, the very tensor, is the stream of the next block.
        whole: why it cannot run on some rows, or None.
        sources: of each unit's call, how each tensor among its arguments comes about; where kernels can make them all.
        unfused: why they cannot, or None.
    """

    inputs: list[Place | None] = field(default_factory=list)
    stream: int = 0
    result: int = 0
    units: list[tuple[Call, int, str, bool]] = field(default_factory=list)
    modulated: bool = False
    chained: bool = False
    whole: str | None = None
    sources: dict[Call, list[Source | None]] | None = None
    unfused: str | None = None

    def parts(self, lessons: Mapping[Call, Lesson]) -> list[tuple[Call, int]]:
        """What is added to the stream, in order: results of units by call and number."""
        return [
            (call, number)
            for call, _, _, feeds in self.units
            if not feeds
            for number, place in enumerate(lessons[call].results)
            if place is not None
        ]
