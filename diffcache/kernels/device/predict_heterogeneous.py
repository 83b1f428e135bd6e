"""H in Triton: one program for a tile of tokens and channels; a token reads the outputs that its group needs."""

from math import prod

import triton
import triton.language as tl

from .launch import Launch, block, tuned


@triton.jit
def chosen(group, c0, c1, c2):
    """The coefficient of each token, by its group."""
    return tl.where(group == 0, c0, tl.where(group == 1, c1, c2))


@triton.jit
def weighed(total, value, places, lanes, coefficient):
    """``total + coefficient * value``; a coefficient of 0 reads nothing."""
    if value is not None:
        part = tl.load(value + places, mask=lanes & (coefficient != 0.0), other=0.0)
        total = total + coefficient * part.to(tl.float32)
    return total


@triton.jit
def predict_heterogeneous(
    y0, y1, y2, group, out,
    c00, c01, c02, c10, c11, c12, c20, c21, c22,
    y_o, y_c, y_t, group_o, group_t, out_o, out_c, out_t,
    tokens, channels,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    o = tl.program_id(2).to(tl.int64)
    t = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    c = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[None, :]
    lanes = (t < tokens) & (c < channels)
    g = tl.load(group + o * group_o + t * group_t, mask=t < tokens, other=0).to(tl.int32)
    places = o * y_o + t * y_t + c * y_c
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    total = weighed(total, y0, places, lanes, chosen(g, c00, c10, c20))
    total = weighed(total, y1, places, lanes, chosen(g, c01, c11, c21))
    total = weighed(total, y2, places, lanes, chosen(g, c02, c12, c22))
    tl.store(out + o * out_o + t * out_t + c * out_c, total.to(out.dtype.element_ty), mask=lanes)


TUNED = tuned(predict_heterogeneous)
#: elements of a tile: three outputs and their 64-bit places fill the registers soon
TILE = 1024


def plan(values, group, out, coefficients, channel_dim) -> Launch:
    views = [_three(t, channel_dim) for t in (*values, out, group)]
    y = views[0]
    outer, channels, tokens = y.shape
    args = {f"y{j}": values[j] if j < len(values) else None for j in range(3)}
    table = [coefficients[i : i + len(values)] for i in range(0, len(coefficients), len(values))]
    for g in range(3):
        for j in range(3):
            args[f"c{g}{j}"] = table[g][j] if g < len(table) and j < len(values) else 0.0
    args.update(group=group, out=out, tokens=tokens, channels=channels)
    args.update(zip(("y_o", "y_c", "y_t"), y.stride(), strict=True))
    args.update(zip(("out_o", "out_c", "out_t"), views[-2].stride(), strict=True))
    args["group_o"], _, args["group_t"] = views[-1].stride()
    # Threads side by side read elements side by side.
    wide = min(block(channels), TILE // 16 if y.stride(1) == 1 else 16)
    args.update(ROWS=min(block(tokens), TILE // wide), BLOCK=wide)
    return Launch(TUNED, (triton.cdiv(tokens, args["ROWS"]), triton.cdiv(channels, wide), outer), args)


def _three(tensor, channel_dim):
    """``[outer, channels, tokens]``, a view; channels last: all tokens are inner.

    Raises:
        RuntimeError: the strides do not allow it.
    """
    shape = tensor.shape
    outer, inner = prod(shape[:channel_dim]), prod(shape[channel_dim + 1 :])
    view = tensor.view(outer, shape[channel_dim], inner)
    return view.transpose(0, 2) if inner == 1 else view


def refuses(values, group, out, coefficients, channel_dim) -> str | None:
    """Strides that are not three, or differ between the values."""
    if any(v.stride() != values[0].stride() or v.dtype != values[0].dtype for v in values):
        return "values of different strides or dtypes"
    try:
        for tensor in (*values, out, group):
            _three(tensor, channel_dim)
    except RuntimeError:
        return "tokens without one stride"
    return None


def launch(*args) -> None:
    plan(*args).run()
