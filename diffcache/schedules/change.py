"""The signals that schedules hear, measured from tensors: one number a sample, fp32, no host synchronisation.

``first``
    :func:`relative_change` of the residual of the first block(s) against that of the last *computed* step.
``modulated``
    :func:`relative_change` of the first block's modulated input against the *previous* step, computed or not.
``rate``
    :func:`expected_change` of the output against the previous step, from the change of the denoiser's input and the
    :func:`transformation_rate` of the last computed step. NaN until two steps were computed.

0/0 gives NaN and x/0 gives inf, and both mean *compute*: no epsilon hides them.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

#: by number of axes, those of one sample
_AXES = [tuple(range(1, dims)) for dims in range(65)]  # torch has no more


def relative_change(now: Tensor, before: Tensor, pooled: bool = False) -> Tensor:
    """``mean |now - before| / mean |before|``: the relative L1 distance of TeaCache (arXiv 2411.19108) and FBCache.

    Args:
        now: any shape with the samples on axis 0.
        before: the same shape.
        pooled: one mean over all samples, as the methods' own releases take it; otherwise each has its own, so that
            a still neighbour hides nobody.

    Returns:
        Shape ``[batch]``; ``[1]`` if pooled.
    """
    if pooled:
        now, before = now[None], before[None]
    if not now.dtype is before.dtype is torch.float32:
        now, before = now.float(), before.float()
    change = now - before
    if change.requires_grad or not change.is_cpu:
        return length(change) / length(before)
    axes = _AXES[change.dim()]
    moved = change.abs_().sum(axes)
    # In the place of the change, now that it is summed: fresh memory costs the CPU more than the work done in it.
    return moved / torch.abs(before, out=change).sum(axes)


def transformation_rate(inputs: tuple[Tensor, Tensor], outputs: tuple[Tensor, Tensor]) -> Tensor:
    """``k = |v - v'| / |x - x'|`` of each sample (EasyCache, arXiv 2507.02860: relative transformation rate).

    Both pairs are (this computed step, the computed step before it). The paper writes k for neighbouring steps; its
    release spans the gap, as here: the output of a predicted step in between was never seen.

    Returns:
        Shape ``[batch]``.
    """
    now, before = _change(*outputs), _change(*inputs)
    return _per_number(_length_of_own(now) / _length_of_own(before), now, before)


def _change(now: Tensor, before: Tensor) -> Tensor:
    return _fp32(now) - _fp32(before)


def _fp32(value: Tensor) -> Tensor:
    # Asked in Python: even a conversion that changes nothing costs as much as a small operation.
    return value if value.dtype is torch.float32 else value.float()


def expected_change(rate: Tensor, now: Tensor, before: Tensor, output: Tensor) -> Tensor:
    """``eps = k * |x - x'| / |v|`` of each sample: the relative change of the output since the previous step.

    Args:
        rate: :func:`transformation_rate` of the last computed step, shape ``[batch]``.
        now: the denoiser's input.
        before: its input at the previous step, computed or not.
        output: the previous output. The paper takes the previous step's, its release the last computed one's.

    Returns:
        Shape ``[batch]``, 0.05 for the paper's 5 %.
    """
    change = _change(now, before)
    return rate * _per_number(_length_of_own(change) / length(output), change, output)


def _per_number(ratio: Tensor, value: Tensor, other: Tensor) -> Tensor:
    """The ratio of two sums of absolute values as that of their means."""
    return ratio if value.shape == other.shape else ratio * (prod(other.shape[1:]) / prod(value.shape[1:]))


def length(value: Tensor) -> Tensor:
    """Sum of absolute values of each sample: finite if they all are."""
    if value.is_cpu:  # where the one pass of the norm takes ten times as long as these two
        return total(value.abs())
    return torch.linalg.vector_norm(value, 1, _inner(value), dtype=_wide(value))


def _length_of_own(value: Tensor) -> Tensor:
    """The same of a tensor that nobody else has, and that is of no use afterwards."""
    return total(value.abs_()) if value.is_cpu else length(value)


def total(value: Tensor) -> Tensor:
    """Sum of each sample: finite if all its numbers are, in one pass."""
    if value.dtype is torch.float32:
        return value.sum(_AXES[value.dim()])
    return value.sum(_inner(value), dtype=_wide(value))


def _inner(value: Tensor) -> tuple[int, ...]:
    return _AXES[value.dim()]


def _wide(value: Tensor) -> torch.dtype:
    return torch.float64 if value.dtype == torch.float64 else torch.float32
