"""M in Triton: one program for some queries of one head."""

import triton
import triton.language as tl

from .launch import Launch, block, strides, tuned

#: elements of a tile
TILE = 2048


@triton.jit
def merge_attention(
    a, lse_a, b, lse_b, out, lse_out,
    a_b, a_h, a_q, lse_a_b, lse_a_h, lse_a_q, b_b, b_h, b_q, lse_b_b, lse_b_h, lse_b_q,
    out_b, out_h, out_q, lse_out_b, lse_out_h, lse_out_q,
    queries, width,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    head, sample = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    q = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    d = tl.arange(0, BLOCK)[None, :]
    there = q < queries
    lanes = there & (d < width)
    empty = -float("inf")
    left = tl.load(lse_a + sample * lse_a_b + head * lse_a_h + q * lse_a_q, mask=there, other=empty).to(tl.float32)
    right = tl.load(lse_b + sample * lse_b_b + head * lse_b_h + q * lse_b_q, mask=there, other=empty).to(tl.float32)
    most = tl.maximum(left, right)
    shift = tl.where(most == empty, 0.0, most)  # -inf - -inf is NaN
    w_left, w_right = tl.exp(left - shift), tl.exp(right - shift)
    total = w_left + w_right
    norm = tl.where(total == 0.0, 1.0, total)
    # An empty part is not read: its values count 0, whatever they are.
    first = tl.load(a + sample * a_b + head * a_h + q * a_q + d, mask=lanes & (w_left != 0.0), other=0.0)
    second = tl.load(b + sample * b_b + head * b_h + q * b_q + d, mask=lanes & (w_right != 0.0), other=0.0)
    merged = first.to(tl.float32) * (w_left / norm) + second.to(tl.float32) * (w_right / norm)
    tl.debug_barrier()  # all is read before anything is written: the outputs may be inputs
    tl.store(out + sample * out_b + head * out_h + q * out_q + d, merged.to(out.dtype.element_ty), mask=lanes)
    lse = (shift + tl.log(norm)).to(lse_out.dtype.element_ty)
    lse = tl.where(total == 0.0, empty, lse)
    tl.store(lse_out + sample * lse_out_b + head * lse_out_h + q * lse_out_q, lse, mask=there)


TUNED = tuned(merge_attention, written=("out", "lse_out"))


def plan(a, lse_a, b, lse_b, out, lse_out) -> Launch:
    batch, heads, queries, width = a.shape
    args = dict(a=a, lse_a=lse_a, b=b, lse_b=lse_b, out=out, lse_out=lse_out)
    for name, tensor in tuple(args.items()):
        args.update(zip((f"{name}_b", f"{name}_h", f"{name}_q"), strides(tensor, 3), strict=True))
    size = block(width)
    rows = min(block(queries), max(1, TILE // size))
    args.update(queries=queries, width=width, ROWS=rows, BLOCK=size)
    return Launch(TUNED, (triton.cdiv(queries, rows), heads, batch), args)


def launch(*args) -> None:
    plan(*args).run()
