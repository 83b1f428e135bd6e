"""Whether the denoiser's result is finite, read when the host reads anyway."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .cache import Cache, Coming, Outlook
from .outputs import tensors_in_order


class FiniteOutlook(Outlook):
    """If the result is not finite, some stored value is not: what is stored is dropped.

    Args:
        cache: of the branch.
        result: of the denoiser.
        count: predictions that may follow at once; all of them get the alarm.
        more: values that must be finite as well.
    """

    def __init__(self, cache: Cache, result: Any, count: int, more: Sequence[Tensor] = ()) -> None:
        totals = [_total(t) for t in (*tensors_in_order(result), *more)]
        self.numbers = totals[0].reshape(1) if len(totals) == 1 else torch.stack(totals)
        self._cache, self._count = cache, count

    def read(self, numbers: Sequence[float]) -> list[tuple[Cache, Coming]]:
        bad = not all(map(math.isfinite, numbers))
        if bad:
            self._cache.drop()
        return [(self._cache, Coming([0.0] * self._count, [bad] * self._count))]


def strays(alarms: Sequence[bool], variances: Iterable[Sequence[Sequence[float]]]) -> bool:
    """Whether the prediction of the first alarm would be finite all the same.

    Args:
        alarms: one a prediction of a coming run.
        variances: for each history those of the predictions, ``[n][samples]``; not looked at without an alarm.
    """
    return True in alarms and all(all(map(math.isfinite, rows[alarms.index(True)])) for rows in variances)


def _total(value: Tensor) -> Tensor:
    """The sum, fp32: finite if every number is, in one pass (what sums beyond fp32 is as good as lost)."""
    value = value.detach() if value.requires_grad else value
    return value.sum() if value.dtype is torch.float32 else value.sum(dtype=torch.float32)
