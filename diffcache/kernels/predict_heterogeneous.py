"""H: WorldCache's prediction in one pass: a token's group says how it combines up to three stored outputs.

Source: WorldCache, arXiv 2603.06331, Eqs. 9-11; the rules are linear, see :mod:`diffcache.predictors.hermite`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ConfigError
from .combine import combine
from .dispatch import kernel
from .rows import target

#: groups, and stored outputs
GROUPS = VALUES = 3


@kernel("(Tensor[] values, Tensor group, Tensor(a!) out, float[] coefficients, int channel_dim)", rows=False)
def _predict_heterogeneous(values, group, out, coefficients, channel_dim) -> None:
    table = torch.tensor(coefficients, device=group.device).view(-1, len(values))
    combine(values, [each[group.long()] for each in table.unbind(1)], out=out)


@torch.no_grad()
def predict_heterogeneous(
    values: Sequence[Tensor],
    group: Tensor,
    coefficients: Sequence[Sequence[float]],
    channel_dim: int = -1,
    out: Tensor | None = None,
) -> Tensor:
    """``out = sum_j coefficients[group][j] * values[j]`` per token; fp32 inside, one rounding out.

    On a GPU a token reads only those outputs whose coefficient is not 0, and the coefficients travel as numbers: no
    copy to the device. (A stored Inf or NaN under a coefficient of 0 may or may not reach the result.)
    Bytes: ``(1 + reads) * numel * e`` + one for each token, with 1 to 3 reads.

    Args:
        values: one to three stored outputs of one shape, newest first.
        group: 0 ... 2 for each token, integers; the shape of a value with size 1 at ``channel_dim``.
        coefficients: one row for each group, one number for each value, on the host.
        channel_dim: the feature axis.
        out: where to write, a view is fine; none of ``values``. Of their dtype by default.

    Returns:
        ``out``.

    Raises:
        ConfigError: a shape or a count that is not right.
    """
    first = values[0]
    if not 1 <= len(values) <= VALUES or any(v.shape != first.shape for v in values):
        raise ConfigError(f"values: {len(values)} of {[list(v.shape) for v in values]}, must be 1 to {VALUES} alike")
    if not 1 <= len(coefficients) <= GROUPS or any(len(row) != len(values) for row in coefficients):
        raise ConfigError(f"coefficients: must be 1 to {GROUPS} rows of {len(values)} numbers, one for each value")
    want = list(first.shape)
    want[channel_dim] = 1
    if list(group.shape) != want or group.is_floating_point():
        raise ConfigError(f"group: {group.dtype} {list(group.shape)} is not right, must be integers of shape {want}")
    out = target("out", out, tuple(first.shape), first)
    numbers = [float(c) for row in coefficients for c in row]
    if out.numel():
        _predict_heterogeneous(list(values), group, out, numbers, channel_dim % first.dim())
    return out
