"""G in Triton: one program for each packed row."""

import triton
import triton.language as tl

from .launch import Launch, block, strides, tuned
from .norms import at, modulated, normalised


@triton.jit
def gather_norm(
    x, index, weight, bias, scale, shift, out,
    x_b, x_n, index_b, scale_b, scale_n, shift_b, shift_n, out_b, out_r,
    width, eps,
    RMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    r, b = tl.program_id(0), tl.program_id(1)
    n = r if index is None else tl.load(index + b.to(tl.int64) * index_b + r)
    d = tl.arange(0, BLOCK)
    lanes = d < width
    row = tl.load(at(x, b, n, x_b, x_n) + d, mask=lanes, other=0.0).to(tl.float32)
    row = normalised(row, lanes, width, eps, RMS)
    row = modulated(row, lanes, d, weight, bias, at(scale, b, n, scale_b, scale_n), at(shift, b, n, shift_b, shift_n))
    tl.store(at(out, b, r, out_b, out_r) + d, row.to(out.dtype.element_ty), mask=lanes)


TUNED = tuned(gather_norm)


def plan(x, index, weight, bias, scale, shift, out, eps, rms) -> Launch:
    batch, count, width = out.shape
    args = dict(x=x, index=index, weight=weight, bias=bias, scale=scale, shift=shift, out=out)
    args["x_b"], args["x_n"] = strides(x, 2)
    (args["index_b"],) = strides(index, 1)
    args["scale_b"], args["scale_n"] = strides(scale, 2)
    args["shift_b"], args["shift_n"] = strides(shift, 2)
    args["out_b"], args["out_r"] = strides(out, 2)
    args.update(width=width, eps=eps, RMS=rms, BLOCK=block(width))
    return Launch(TUNED, (count, batch), args)


def launch(*args) -> None:
    plan(*args).run()
