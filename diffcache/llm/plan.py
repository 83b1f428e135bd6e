"""What one forward computes, reads and keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .rows import Rows


@dataclass(frozen=True, eq=False)
class External:
    """Attention over the keys outside the block under way (FlashBlock).

    Attributes:
        inner: keys ``[inner[0], inner[1])`` are the block's own.
        fresh: sequences whose part outside is computed, ascending; of the others it is taken from what is stored.
            None: all of them, and nothing that is stored is looked at.
        store: whether what is computed for all is stored.
        heads: layer -> int64 ``[h]``, heads that are computed for the others, too; None: none.
        listener: hears what is computed (see :mod:`.heads`), or None.
    """

    inner: tuple[int, int]
    fresh: tuple[int, ...] | None = None
    store: bool = True
    heads: dict[int, Tensor] | None = None
    listener: Any = None

    @property
    def use(self) -> bool:
        """Whether anything is taken from what is stored."""
        return self.fresh is not None


@dataclass(frozen=True, eq=False)
class StepPlan:
    """One forward, as a policy wants it.

    Attributes:
        rows: positions whose hidden states are computed; their keys and values are written in place.
        want: positions whose predictions are read, or None for a forward that only writes keys and values.
        stop: keys ``[0, stop)`` are seen.
        seen: bool ``[B, N]``, keys among them that are seen; None: all.
        triangular: length of the blocks behind which a query sees no key (block-causal prefill), or None.
        keep: whether keys and values are written; without, the rows see each other alone.
        external: how attention outside the block is had, or None for all keys at once.
        source: where keys are kept instead of in the position cache, with its ``exchange``; or None.
        probe: what listens to the attention of each layer (``hear_before`` and ``hear_after`` its keys are
            written); or None.
        walker: what takes the hidden states from layer to layer (see :mod:`.walk`); or None.
        full: whether this is a refresh of everything, for the stats.
    """

    rows: Rows
    want: Rows | None
    stop: int
    seen: Tensor | None = None
    triangular: int | None = None
    keep: bool = True
    external: External | None = None
    source: Any = None
    probe: Any = None
    walker: Any = None
    full: bool = False
