"""FlashBlock's rule: attention outside the block holds until so many tokens of the block have changed."""

from __future__ import annotations

from torch import Tensor


class DirtyTokens:
    """Changed tokens of each sequence since its part outside was computed; counted on the device, never read here.

    Args:
        limit: tokens at which the part outside is stale; 0 is as 1: it holds only while nothing has changed.
    """

    def __init__(self, limit: int) -> None:
        self.limit = max(limit, 1)
        self._count: Tensor | None = None

    def add(self, changed: Tensor) -> None:
        """After a step: bool ``[B, n]``, True where a token is another one than before."""
        count = changed.sum(1)
        self._count = count if self._count is None else self._count + count

    def stale(self) -> Tensor | None:
        """Bool ``[B]``, whose part outside must be computed; None where nothing was counted."""
        return None if self._count is None else self._count >= self.limit

    def renew(self, *, every: bool = False) -> None:
        """The stale ones (or all) are computed now."""
        self._count = None if every or self._count is None else self._count.masked_fill(self._count >= self.limit, 0)


def fresh(stale: list[bool]) -> tuple[int, ...] | None:
    """The sequences that are stale, as :class:`diffcache.llm.plan.External` has them: None where all are."""
    return None if all(stale) else tuple(sample for sample, changed in enumerate(stale) if changed)
