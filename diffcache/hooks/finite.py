"""Whether the denoiser's result is finite, read when the host reads anyway."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .cache import Cache, Coming, Outlook
from .outputs import flatten


class FiniteOutlook(Outlook):
    """If the result is not finite, some stored value is not: what is stored is dropped.

    ``count`` predictions may follow at once; all of them get the alarm.
    """

    def __init__(self, cache: Cache, result: Any, count: int) -> None:
        tensors, _ = flatten(result)
        self.numbers = torch.stack([~t.isfinite().all() for t in tensors]).any().float().reshape(1)
        self._cache, self._count = cache, count

    def read(self, numbers: Sequence[float]) -> list[tuple[Cache, Coming]]:
        bad = bool(numbers[0])
        if bad:
            self._cache.forget()
        return [(self._cache, Coming([0.0] * self._count, [bad] * self._count))]
