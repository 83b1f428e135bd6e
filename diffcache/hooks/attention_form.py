"""What is known of an attention module whose parts are run one by one: projections, kernel P, attention, output.

The module's own parts are meant by their names, never by reference: whoever puts another one in a part's place (an
adapter, quantised weights) has it run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .attach import foreign_hooks
from .outputs import Template


@dataclass(frozen=True)
class Turn:
    """Rotary positions of a segment.

    Attributes:
        cos, sin: numbers of the arguments that hold the angles; the same number twice: one table of complex numbers.
        axis: along which the positions stand there.
        joint: whether the tables begin with the sequence, or with the segment.
    """

    cos: int
    sin: int
    axis: int
    joint: bool


@dataclass(frozen=True)
class Segment:
    """Rows of the sequence that come from one argument.

    Attributes:
        argument: its number.
        turn: rotary positions, None where it has none.
    """

    argument: int
    turn: Turn | None = None


@dataclass(frozen=True)
class Projection:
    """Segments that are projected together.

    Attributes:
        segments: in the order of the sequence.
        parts: names of the modules that make q, k and v; one name: they are made in one.
        norms: names of the norms of q and k, None where there are none.
        kind: of the norms, as kernel P has it.
        across: whether a norm spans all heads.
    """

    segments: tuple[Segment, ...]
    parts: tuple[str, ...]
    norms: tuple[str, str] | None = None
    kind: str | None = None
    across: bool = False


@dataclass(frozen=True)
class Way:
    """What becomes of some rows of the attention's result.

    Attributes:
        first, last: segments, ``last`` excluded.
        parts: names of the modules that these rows go through, in order.
    """

    first: int
    last: int
    parts: tuple[str, ...]


@dataclass(frozen=True)
class AttentionForm:
    """How an attention module comes to its results.

    Attributes:
        name: of the unit or feeder.
        module: whose parts are meant.
        processor: that it had.
        template: of its arguments.
        projections: together the whole sequence.
        heads, width: of q; width of a head.
        key_heads: of k and v.
        interleaved: how the rotary pairs stand.
        rest: dropout, causality, scale of torch's attention.
        ways: from the attention's result.
        results: of each tensor that is returned the number of the way, and the first and last segment of it.
    """

    name: str
    module: nn.Module
    processor: Any
    template: Template
    projections: tuple[Projection, ...]
    heads: int
    key_heads: int
    width: int
    interleaved: bool
    rest: dict[str, Any]
    ways: tuple[Way, ...]
    results: tuple[tuple[int, int, int], ...]

    @property
    def segments(self) -> list[Segment]:
        """Of the whole sequence, in order."""
        return [segment for projection in self.projections for segment in projection.segments]

    def changed(self, template: Template) -> str | None:
        """Why the module may not do any more what it was seen to do; None if nothing speaks for that.

        Args:
            template: of its arguments now.
        """
        if getattr(self.module, "processor", None) is not self.processor:
            return "its processor is another one"
        if foreign_hooks(self.module):
            return "it has other hooks"
        names = {name for projection in self.projections for name in projection.norms or ()}
        if any(not is_bare(self.module.get_submodule(name)) for name in names):
            return "its norms have hooks"
        return None if _equal(template, self.template) else "it gets other arguments"


def is_bare(part: nn.Module) -> bool:
    """Whether nobody looks at a module's calls or answers for it, so that its weights tell what it does."""
    return not (part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part))


def weights_of(part: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias of a plain matrix product; None for any other module (adapters, quantised weights)."""
    plain = type(part) is nn.Linear and type(part.weight) is nn.Parameter and is_bare(part)
    return (part.weight, part.bias) if plain else None


def _equal(a: Template, b: Template) -> bool:
    try:
        return bool(a == b)
    except (RuntimeError, TypeError, ValueError):  # something that does not compare to one truth value
        return False
