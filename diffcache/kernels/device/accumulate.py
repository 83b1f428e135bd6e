"""A in Triton: one program for each row of the stream, which reads its token's row of every cache."""

import triton
import triton.language as tl

from .launch import Launch, block, strides, tuned
from .norms import at


@triton.jit
def accumulate(
    x, caches, gates, index, into,
    x_b, x_n, caches_b, caches_n, gates_b, gates_n, index_b, into_b, into_n, width,
    BLOCK: tl.constexpr,
):  # fmt: skip
    n, b = tl.program_id(0), tl.program_id(1)
    d = tl.arange(0, BLOCK)
    lanes = d < width
    token = tl.load(index + b.to(tl.int64) * index_b + n)
    place = at(x, b, n, x_b, x_n) + d
    row = tl.load(place, mask=lanes, other=0.0).to(tl.float32)
    for i in tl.static_range(len(caches)):
        value = tl.load(at(caches[i], b, token, caches_b[i], caches_n[i]) + d, mask=lanes, other=0.0).to(tl.float32)
        row = row + value * tl.load(at(gates[i], b, n, gates_b[i], gates_n[i]) + d, mask=lanes, other=0.0).to(
            tl.float32
        )
    if into is None:
        tl.store(place, row.to(x.dtype.element_ty), mask=lanes)
    else:
        tl.store(at(into, b, token, into_b, into_n) + d, row.to(into.dtype.element_ty), mask=lanes)


TUNED = tuned(accumulate, written=("x",))


def plan(x, caches, gates, index, into) -> Launch:
    args = dict(x=x, caches=tuple(caches), gates=tuple(gates), index=index, into=into)
    args["x_b"], args["x_n"] = strides(x, 2)
    for name in ("caches", "gates"):
        steps = [strides(t, 2) for t in args[name]]
        args[f"{name}_b"], args[f"{name}_n"] = (tuple(s[axis] for s in steps) for axis in range(2))
    (args["index_b"],) = strides(index, 1)
    args["into_b"], args["into_n"] = strides(into, 2)
    args.update(width=x.shape[2], BLOCK=block(x.shape[2]))
    return Launch(TUNED, (x.shape[1], x.shape[0]), args)


def launch(*args) -> None:
    plan(*args).run()
