"""FlashBlock's rule where the loop is a pipeline's: what changed is seen from the ids of two calls."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...methods.language import FlashBlockConfig
from ..dirty import DirtyTokens, fresh
from ..heads import HeadListener, HeadMask, load_heads
from ..plan import External


class Reuse:
    """Whether attention outside the block is computed at a step or taken from memory, for each sequence.

    Args:
        config: of the method; any but ``flashblock`` never stores anything.
        model: that the mask of heads must belong to.
    """

    def __init__(self, config: Any, model: Any) -> None:
        self.config = config if isinstance(config, FlashBlockConfig) else None
        path = None if self.config is None else self.config.heads
        self.heads: HeadMask | None = None if path is None else load_heads(path, model)
        self.listener: HeadListener | None = None
        self.step = 0
        self._dirty = DirtyTokens(1 if self.config is None else self.config.dirty)
        self._ids: Tensor | None = None  # of the call before, whose part outside is stored or was counted since

    def begin(self) -> None:
        """A block begins."""
        self.step, self._ids = 0, None
        if self.listener is not None:
            self.listener.begin()

    def next(self, ids: Tensor, inner: tuple[int, int]) -> External | None:
        """How attention outside ``inner`` is had at this step of the block, whose ids ``[B, b]`` are given.

        Reads the device once; not at all with a mask of heads.
        """
        before, self._ids = self._ids, ids.clone()
        step, self.step = self.step, self.step + 1
        if self.listener is not None:
            self.listener.step = step
            return External(inner, store=False, listener=self.listener)
        if self.config is None:
            return None
        if before is None or before.shape != ids.shape:
            self._dirty.renew(every=True)
            return External(inner)
        if self.heads is not None:
            return External(inner, (), heads=self.heads.of(step, ids.device))
        self._dirty.add(before != ids)
        stale = fresh(self._dirty.stale().tolist())
        self._dirty.renew()
        return External(inner, stale)
