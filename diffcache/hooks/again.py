"""Running a denoiser call once more, and telling whether it returned the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

#: largest relative difference of a repeated result that rounding explains
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2.0**-6}
_ROUNDING_OF_HALF = 2.0**-4


def repeatable(run: Callable[[], Any]) -> Callable[[], Any]:
    """``run`` with copies of its containers: some models take things out of the lists that they are given."""
    if not isinstance(run, partial):
        return run
    return partial(run.func, *map(_copied, run.args), **{name: _copied(value) for name, value in run.keywords.items()})


def _copied(value: Any) -> Any:
    return value.copy() if type(value) in (list, dict) else value


def close_to(dtype: torch.dtype) -> float:
    """Largest relative difference of two ways to compute the same that rounding explains."""
    return _ROUNDING.get(dtype, _ROUNDING_OF_HALF)


def compare(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Whether all of ``wanted`` is finite, and whether ``found`` is the same but for rounding. Nothing is read."""
    finite = torch.stack([w.isfinite().all() for w in wanted]).all()
    if [w.shape for w in wanted] != [f.shape for f in found]:
        return finite, torch.zeros_like(finite)
    pairs = [(w.double(), f.double(), close_to(w.dtype)) for w, f in zip(wanted, found, strict=True)]
    return finite, torch.stack([(w - f).norm() <= limit * w.norm() for w, f, limit in pairs]).all()
