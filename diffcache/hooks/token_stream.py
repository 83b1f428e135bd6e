"""The hidden stream of a partial pass on its way through the blocks: what either layout of it does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from .selection import Place, Selection
from .token_passes import Memory


@dataclass(frozen=True)
class Update:
    """What a module adds to the stream.

    Attributes:
        held: of the module.
        cache: its results, ``[B, tokens, D]``: those of stale tokens count.
        fresh: ``[B, count, D]``, of the first ``count`` tokens of the ranking, in the selection's order.
        gate: ``[B, 1, D]``, or ``[B, tokens, D]`` in the stream's order.
    """

    held: Memory
    cache: Tensor
    fresh: Tensor
    gate: Tensor


class TokenStream(ABC):
    """The hidden stream under way.

    The last update waits for the norm that reads it, so that kernel F can do both in one pass.

    Args:
        whole: ``[B, length, D]`` in the layout's order, ours to write to.
        place: where the tokens are in it.
        selection: the tokens of the pass.

    Attributes:
        whole: the complete stream; in token order behind :meth:`finish`.
        face: what blocks hand on for it.
        rows: rows of the first ``count`` tokens, with text, where blocks run on them; else ``whole``.
    """

    def __init__(self, whole: Tensor, place: Place, selection: Selection) -> None:
        self.whole = self.face = self.rows = whole
        self.count = selection.tokens
        self._place, self._selection = place, selection

    @property
    def tokens(self) -> Tensor:
        """The tokens' rows in ``whole``."""
        return self.whole.narrow(self._place.axis, self._place.offset, self._selection.tokens)

    @abstractmethod
    def hand_on(self, poison: bool) -> Tensor:
        """What the block returns as its stream; with ``poison`` rows that nobody may look at are NaN."""

    @abstractmethod
    def finish(self) -> Tensor:
        """Write everything to its place: the complete stream in token order."""

    # -- blocks that run on rows -----------------------------------------------------------------------------------

    @abstractmethod
    def narrow(self, count: int) -> None:
        """Go on with the first ``count`` tokens of the ranking in ``rows``."""

    @abstractmethod
    def unpack(self) -> None:
        """Write ``rows`` to their places."""

    @abstractmethod
    def advance(self, updates: list[Update]) -> None:
        """A block has run on ``rows``: what its modules computed goes into the caches, and to the other rows."""

    # -- kernels S, G and F ----------------------------------------------------------------------------------------

    @abstractmethod
    def add(self, update: Update) -> None:
        """Fresh rows into the cache, and gate * cache onto the stream, before anything else reads either."""

    @abstractmethod
    def flush(self) -> None:
        """Kernel S, if fresh rows wait."""

    @abstractmethod
    def take(self, count: int) -> Tensor:
        """The first ``count`` tokens of the ranking, ``[B, count, D]``."""

    @abstractmethod
    def normed(
        self, count: int, kind: str, eps: float, scale: Tensor | None, shift: Tensor | None, out: Tensor
    ) -> None:
        """The same, normed and modulated, into ``out``: kernel F if an update waits, else G.

        Args:
            count: of tokens, >= 1.
            kind, eps: of the norm.
            scale, shift: ``[B, 1, D]``, or ``[B, tokens, D]`` in the stream's order; None for none.
            out: ``[B, count, D]``.
        """
