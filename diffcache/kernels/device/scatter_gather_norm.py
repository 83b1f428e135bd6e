"""F in Triton: S for each row of the stream, and at once G for those that the next sub-layer takes."""

import triton
import triton.language as tl

from ..index import inverse as inverted
from .launch import Launch, strides, tuned
from .norms import at, modulated, normalised
from .scatter_update import arguments, updated


@triton.jit
def scatter_gather_norm(
    x, fresh, cache, index, gate, places, weight, bias, scale, shift, out,
    x_b, x_n, fresh_b, fresh_r, cache_b, cache_n, index_b, gate_b, gate_n,
    places_b, scale_b, scale_n, shift_b, shift_n, out_b, out_r,
    count, following, width, eps,
    RANKED: tl.constexpr, RMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n, b = tl.program_id(0), tl.program_id(1)
    d = tl.arange(0, BLOCK)
    lanes = d < width
    row = updated(
        x, fresh, cache, index, gate, b, n, d, lanes,
        x_b, x_n, fresh_b, fresh_r, cache_b, cache_n, index_b, gate_b, gate_n, count, RANKED,
    )  # fmt: skip
    r = tl.where(n < following, n, -1) if places is None else tl.load(places + b.to(tl.int64) * places_b + n)
    if r >= 0:
        normed = normalised(row.to(tl.float32), lanes, width, eps, RMS)
        normed = modulated(
            normed, lanes, d, weight, bias, at(scale, b, n, scale_b, scale_n), at(shift, b, n, shift_b, shift_n)
        )
        tl.store(at(out, b, r, out_b, out_r) + d, normed.to(out.dtype.element_ty), mask=lanes)


TUNED = tuned(scatter_gather_norm, written=("x", "cache"))


def plan(
    x, fresh, cache, index, inverse, gate, ranked, next_index, next_inverse, weight, bias, scale, shift, out, eps, rms
) -> Launch:
    places = next_inverse
    if next_index is not None and places is None:
        places = inverted(next_index, x.shape[1])
    args = arguments(x, fresh, cache, index, inverse, gate, ranked)
    args.update(places=places, weight=weight, bias=bias, scale=scale, shift=shift, out=out)
    (args["places_b"],) = strides(places, 1)
    args["scale_b"], args["scale_n"] = strides(scale, 2)
    args["shift_b"], args["shift_n"] = strides(shift, 2)
    args["out_b"], args["out_r"] = strides(out, 2)
    args.update(following=out.shape[1], eps=eps, RMS=rms)
    return Launch(TUNED, (x.shape[1], x.shape[0]), args)


def launch(*args) -> None:
    plan(*args).run()
