"""Buffers with canaries, the interpreter's rounding, and what to compare with."""

from __future__ import annotations

import torch
from torch import Tensor

from diffcache.kernels import counting
from diffcache.kernels.dispatch import interpreted

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CANARY = 77  # a number of every dtype
#: bits of the fraction
FRACTION = {torch.float32: 23, torch.float16: 10, torch.bfloat16: 7}


class Guarded:
    """A tensor inside a larger buffer: strides of no regular kind, and canaries before, after and between its rows."""

    def __init__(self, tensor: Tensor) -> None:
        self.buffer = torch.full([size + 3 for size in tensor.shape], CANARY, dtype=tensor.dtype)
        self.view = self.buffer[tuple(slice(1, size + 1) for size in tensor.shape)]
        self.view.copy_(tensor)

    def intact(self) -> bool:
        rest = self.buffer.clone()
        rest[tuple(slice(1, size + 1) for size in self.view.shape)] = CANARY
        return bool((rest == CANARY).all())


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Values of the dtype, none of them subnormal (the interpreter decodes those of bf16 wrongly)."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)
    return torch.where(values.abs() < 1e-4, 1e-3, values)


def chosen(batch: int, size: int, count: int, dtype: torch.dtype = torch.int64, seed: int = 0) -> Tensor:
    """Distinct tokens in no order, ``[batch, count]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(size, generator=generator)[:count] for _ in range(batch)]).to(dtype)


def both(kernel, *args) -> tuple[list, list[Guarded | None]]:
    """Run the reference in fp32 and Triton in the interpreter.

    Returns:
        the reference's arguments after its run (fp32), and Triton's, guarded; no canary was touched.
    """
    wide = [_wide(a) for a in args]
    kernel.reference(*wide)
    guarded = [Guarded(a) if isinstance(a, Tensor) else [Guarded(t) for t in a] if _tensors(a) else a for a in args]
    with interpreted(), counting() as fallbacks:
        kernel.op(*[_view(g) for g in guarded])
    assert not fallbacks
    flat = [t for g in guarded for t in (g if isinstance(g, list) else [g]) if isinstance(t, Guarded)]
    assert all(g.intact() for g in flat)
    return wide, guarded


def _tensors(value) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Tensor)


def _wide(value):
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() and value.dtype != torch.float32 else value.clone()
    return [_wide(v) for v in value] if _tensors(value) else value


def _view(value):
    if isinstance(value, Guarded):
        return value.view
    return [v.view for v in value] if isinstance(value, list) and isinstance(value[0], Guarded) else value


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """fp32 as the interpreter stores it: bf16 is truncated (a GPU rounds to nearest even)."""
    if dtype == torch.bfloat16:
        return (values.contiguous().view(torch.int32) & ~0xFFFF).view(torch.float32).to(dtype)
    return values.to(dtype)


def ulp(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance of two neighbouring numbers of the dtype, there."""
    exponent = torch.frexp(values.float()).exponent - 1
    return torch.ldexp(torch.ones(values.shape), exponent - FRACTION[dtype])


def close(got: Tensor, want: Tensor, slack: float | Tensor) -> bool:
    """Within one unit in the last place of a 16-bit dtype, plus ``slack`` for fp32 sums in another order."""
    step = 0.0 if got.dtype == torch.float32 else ulp(want, got.dtype)
    return bool(((got.float() - rounded(want, got.dtype).float()).abs() <= step + slack).all())
