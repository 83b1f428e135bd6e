"""Parts that the kernels share: norm and modulation of one row, held by one program."""

import triton
import triton.language as tl


@triton.jit
def normalised(row, lanes, width, eps, RMS: tl.constexpr):
    """``row`` in fp32, 0 beyond ``width``; the variance in a second pass over what is held."""
    if not RMS:
        row = tl.where(lanes, row - tl.sum(row, 0) / width, 0.0)
    return row * tl.rsqrt(tl.sum(row * row, 0) / width + eps)


@triton.jit
def modulated(row, lanes, d, weight, bias, scale, shift):
    """Affine norm, then ``(1 + scale)`` and ``shift``; pointers to a row each, or None."""
    if weight is not None:
        row = row * tl.load(weight + d, mask=lanes, other=0.0).to(tl.float32)
    if bias is not None:
        row = row + tl.load(bias + d, mask=lanes, other=0.0).to(tl.float32)
    if scale is not None:
        row = row * (1.0 + tl.load(scale + d, mask=lanes, other=0.0).to(tl.float32))
    if shift is not None:
        row = row + tl.load(shift + d, mask=lanes, other=0.0).to(tl.float32)
    return row


#: whether Triton interprets kernels, which it decides when they are imported
INTERPRETED = not isinstance(normalised, triton.JITFunction)


@triton.jit
def at(pointer, b, n, stride_b, stride_n):
    """A row of a tensor that may be absent; 64-bit offsets."""
    if pointer is not None:
        pointer = pointer + b.to(tl.int64) * stride_b + n.to(tl.int64) * stride_n
    return pointer
