"""FlashBlock's rule where the loop is a pipeline's: what changed is seen from the ids of two calls."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...methods.language import FlashBlockConfig
from ..heads import HeadListener, HeadMask, load_heads
from ..plan import External


class Reuse:
    """Whether attention outside the block is computed at a step or taken from memory.

    Args:
        config: of the method; any but ``flashblock`` never stores anything.
        model: that the mask of heads must belong to.
        stored: whether something that belongs to this block is stored.
    """

    def __init__(self, config: Any, model: Any) -> None:
        self.config = config if isinstance(config, FlashBlockConfig) else None
        path = None if self.config is None else self.config.heads
        self.heads: HeadMask | None = None if path is None else load_heads(path, model)
        self.listener: HeadListener | None = None
        self.step = 0
        self._dirty = 0
        self._ids: Tensor | None = None
        self._stored = False

    def begin(self) -> None:
        """A block begins."""
        self.step, self._dirty, self._ids, self._stored = 0, 0, None, False
        if self.listener is not None:
            self.listener.begin()

    def next(self, ids: Tensor, inner: tuple[int, int]) -> External | None:
        """How attention outside ``inner`` is had at this step of the block, whose ids ``[B, b]`` are given."""
        if self._ids is not None:
            self._dirty += int((self._ids != ids).sum(1).max())
        self._ids = ids.clone()
        step, self.step = self.step, self.step + 1
        if self.listener is not None:
            self.listener.step = step
            return External(inner, store=False, listener=self.listener)
        if self.config is None:
            return None
        use = self._stored and (self.heads is not None or self._dirty < max(self.config.dirty, 1))
        if not use:
            self._dirty, self._stored = 0, True
        return External(inner, use=use, heads=self.heads.of(step) if use and self.heads is not None else None)
