"""S in Triton: one program for each row of the stream, which owns one row of the cache."""

import triton
import triton.language as tl

from ..index import inverse as inverted
from .launch import Launch, block, strides, tuned
from .norms import at


@triton.jit
def updated(
    x, fresh, cache, index, gate, b, n, d, lanes,
    x_b, x_n, fresh_b, fresh_r, cache_b, cache_n, index_b, gate_b, gate_n, count,
    RANKED: tl.constexpr,
):  # fmt: skip
    """Update row n of the stream and its row of the cache; the row as it is stored."""
    if index is None:
        slot, r = n, n
    else:
        found = tl.load(index + b.to(tl.int64) * index_b + n)
        if RANKED:  # index is the token of every row, and the first rows are fresh
            slot, r = found, tl.where(n < count, n, -1)
        else:  # index is the fresh row of every token
            slot, r = n, found
    # The flag as a vector: Triton's interpreter cannot combine a scalar condition with a vector one.
    is_fresh = (r + tl.zeros_like(d)) >= 0
    kept = at(cache, b, slot, cache_b, cache_n) + d
    new = tl.load(at(fresh, b, r, fresh_b, fresh_r) + d, mask=lanes & is_fresh, other=0.0)
    old = tl.load(kept, mask=lanes & (r + tl.zeros_like(d) < 0), other=0.0)
    tl.store(kept, new, mask=lanes & is_fresh)  # the bits as they are
    value = tl.where(is_fresh, new, old).to(tl.float32)
    if gate is not None:
        value = value * tl.load(at(gate, b, n, gate_b, gate_n) + d, mask=lanes, other=0.0).to(tl.float32)
    place = at(x, b, n, x_b, x_n) + d
    row = (tl.load(place, mask=lanes, other=0.0).to(tl.float32) + value).to(x.dtype.element_ty)
    tl.store(place, row, mask=lanes)
    return row


@triton.jit
def scatter_update(
    x, fresh, cache, index, gate,
    x_b, x_n, fresh_b, fresh_r, cache_b, cache_n, index_b, gate_b, gate_n, count, width,
    RANKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n, b = tl.program_id(0), tl.program_id(1)
    d = tl.arange(0, BLOCK)
    updated(
        x, fresh, cache, index, gate, b, n, d, d < width,
        x_b, x_n, fresh_b, fresh_r, cache_b, cache_n, index_b, gate_b, gate_n, count, RANKED,
    )  # fmt: skip


TUNED = tuned(scatter_update, written=("x", "cache"))


def arguments(x, fresh, cache, index, inverse, gate, ranked) -> dict:
    """What S and F have in common."""
    if index is not None and not ranked:
        index = inverted(index, x.shape[1]) if inverse is None else inverse
    args = dict(x=x, fresh=fresh, cache=cache, index=index, gate=gate)
    args["x_b"], args["x_n"] = strides(x, 2)
    args["fresh_b"], args["fresh_r"] = strides(fresh, 2)
    args["cache_b"], args["cache_n"] = strides(cache, 2)
    (args["index_b"],) = strides(index, 1)
    args["gate_b"], args["gate_n"] = strides(gate, 2)
    args.update(count=fresh.shape[1], width=x.shape[2], RANKED=ranked, BLOCK=block(x.shape[2]))
    return args


def plan(x, fresh, cache, index, inverse, gate, ranked) -> Launch:
    return Launch(TUNED, (x.shape[1], x.shape[0]), arguments(x, fresh, cache, index, inverse, gate, ranked))


def launch(*args) -> None:
    plan(*args).run()
