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
        self._ids: Tensor | None = None  # of the last call
        self._stored = False  # whether the part outside of an earlier call of this block is

    def begin(self) -> None:
        """A block begins."""
        self.step, self._ids = 0, None
        if self.listener is not None:
            self.listener.begin()

    def asks(self, ids: Tensor) -> Tensor | None:
        """The ids ``[B, b]`` of the block at this step; what of the device :meth:`next` must be told, bool ``[B]``."""
        before, self._ids = self._ids, ids.clone()
        self._stored = before is not None and before.shape == ids.shape
        if self.config is None or self.listener is not None or self.heads is not None or not self._stored:
            return None
        self._dirty.add(before != ids)
        return self._dirty.stale()

    def next(self, inner: tuple[int, int], stale: list[bool] | None = None) -> External | None:
        """How attention outside ``inner`` is had at this step.

        Args:
            stale: what :meth:`asks` asked, read; None where it asked nothing.
        """
        step, self.step = self.step, self.step + 1
        if self.listener is not None:
            self.listener.step = step
            return External(inner, store=False, listener=self.listener)
        if self.config is None:
            return None
        if not self._stored or (stale is None and self.heads is None):
            self._dirty.renew(every=True)
            return External(inner)
        if self.heads is not None:
            return External(inner, (), heads=self.heads.of(step, self._ids.device))
        self._dirty.renew()
        return External(inner, fresh(stale))
