"""P in Triton: one program for some heads of one row of q, k or v; all heads where one norm spans them."""

import triton
import triton.language as tl

from ..dispatch import WIDEST
from .launch import Launch, block, strides, tuned
from .norms import at

#: elements of a tile where heads are independent
TILE = 2048


@triton.jit
def loaded(source, stride_h, bias, h, e, lanes, width):
    """Elements ``(h, e)`` of a row with their bias, fp32."""
    part = tl.load(source + h.to(tl.int64) * stride_h + e, mask=lanes, other=0.0)
    if bias is not None:
        part = part.to(tl.float32) + tl.load(bias + h * width + e, mask=lanes, other=0.0).to(tl.float32)
    return part


@triton.jit
def affine(part, weight, norm_bias, h, e, lanes, width, ACROSS: tl.constexpr):
    place = h * width + e if ACROSS else 0 * h + e
    if weight is not None:
        part = part * tl.load(weight + place, mask=lanes, other=0.0).to(tl.float32)
    if norm_bias is not None:
        part = part + tl.load(norm_bias + place, mask=lanes, other=0.0).to(tl.float32)
    return part


@triton.jit
def finish(
    source, stride_h, bias, weight, norm_bias, cos, sin, destination, out_h,
    first, heads, width, eps,
    NORM: tl.constexpr, ACROSS: tl.constexpr, INTERLEAVED: tl.constexpr, FULL: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Bias, norm and RoPE of some heads of one row; pointers to the row."""
    h, e = (first + tl.arange(0, ROWS))[:, None], tl.arange(0, BLOCK)[None, :]
    lanes = (h < heads) & (e < width)
    part = loaded(source, stride_h, bias, h, e, lanes, width)
    mean = tl.zeros([ROWS, 1], tl.float32)  # one for each head, also where one norm spans them
    scale = mean + 1.0
    if NORM > 0:
        part = part.to(tl.float32)
        total = width * heads if ACROSS else width
        if NORM == 2:
            mean = summed(part, ACROSS) / total + mean
        centred = tl.where(lanes, part - mean, 0.0)
        scale = tl.rsqrt(summed(centred * centred, ACROSS) / total + eps) * scale
        part = affine(centred * scale, weight, norm_bias, h, e, lanes, width, ACROSS)
    if cos is not None:
        half = width // 2
        if INTERLEAVED:
            other, leads, pair = e ^ 1, (e & 1) == 0, e // 2
        else:
            other, leads, pair = tl.where(e < half, e + half, e - half), e < half, tl.where(e < half, e, e - half)
        # The partner is read again, from the cache of the core: cheaper than moving it between threads.
        partner = loaded(source, stride_h, bias, h, other, lanes, width).to(tl.float32)
        if NORM > 0:
            partner = affine((partner - mean) * scale, weight, norm_bias, h, other, lanes, width, ACROSS)
        angle = e if FULL else pair
        c = tl.load(cos + angle, mask=e < width, other=0.0).to(tl.float32)
        s = tl.load(sin + angle, mask=e < width, other=0.0).to(tl.float32)
        part = part.to(tl.float32) * c + tl.where(leads, -partner, partner) * s
    place = destination + h.to(tl.int64) * out_h + e
    tl.store(place, part.to(destination.dtype.element_ty), mask=lanes)


@triton.jit
def summed(part, ACROSS: tl.constexpr):
    """Sums over a head, or over all of them, as ``[heads or 1, 1]``."""
    rows = tl.sum(part, 1)[:, None]
    return tl.sum(rows, 0)[None, :] if ACROSS else rows


@triton.jit
def project_epilogue(
    q, k, v, index, q_bias, k_bias, v_bias, q_weight, k_weight, q_norm_bias, k_norm_bias, cos, sin,
    q_out, k_cache, v_cache,
    q_b, q_r, q_h, k_b, k_r, k_h, v_b, v_r, v_h, index_b, cos_b, cos_n, sin_b, sin_n,
    q_out_b, q_out_r, q_out_h, k_cache_b, k_cache_n, k_cache_h, v_cache_b, v_cache_n, v_cache_h,
    q_heads, heads, width, eps,
    NORM: tl.constexpr, ACROSS: tl.constexpr, INTERLEAVED: tl.constexpr, PACKED: tl.constexpr, FULL: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    r, first, part = tl.program_id(0), tl.program_id(1) * ROWS, tl.program_id(2)
    parts = (0 if q is None else 1) + (0 if k is None else 2)
    b = part // parts
    which = part % parts + (1 if q is None else 0)
    n = r if index is None else tl.load(index + b.to(tl.int64) * index_b + r)
    a = r if PACKED else n
    cosines, sines = at(cos, b, a, cos_b, cos_n), at(sin, b, a, sin_b, sin_n)
    if q is not None:  # noqa: SIM102 (one is known when compiled, the other when run)
        if which == 0:
            finish(
                at(q, b, r, q_b, q_r), q_h, q_bias, q_weight, q_norm_bias, cosines, sines,
                at(q_out, b, r, q_out_b, q_out_r), q_out_h, first, q_heads, width, eps,
                NORM, ACROSS, INTERLEAVED, FULL, ROWS, BLOCK,
            )  # fmt: skip
    if k is not None:
        if which == 1:
            finish(
                at(k, b, r, k_b, k_r), k_h, k_bias, k_weight, k_norm_bias, cosines, sines,
                at(k_cache, b, n, k_cache_b, k_cache_n), k_cache_h, first, heads, width, eps,
                NORM, ACROSS, INTERLEAVED, FULL, ROWS, BLOCK,
            )  # fmt: skip
        if which == 2:
            finish(
                at(v, b, r, v_b, v_r), v_h, v_bias, None, None, None, None,
                at(v_cache, b, n, v_cache_b, v_cache_n), v_cache_h, first, heads, width, eps,
                0, False, INTERLEAVED, FULL, ROWS, BLOCK,
            )  # fmt: skip


TUNED = tuned(project_epilogue)


def plan(
    q, k, v, index, q_bias, k_bias, v_bias, q_weight, k_weight, q_norm_bias, k_norm_bias, cos, sin, q_out, k_cache,
    v_cache, eps, norm, across_heads, interleaved, packed,
) -> Launch:  # fmt: skip
    batch, count, heads, width = (q if k is None else k).shape
    most = max(heads, 0 if q is None else q.shape[2])
    args = dict(
        q=q, k=k, v=v, index=index, q_bias=q_bias, k_bias=k_bias, v_bias=v_bias, q_weight=q_weight, k_weight=k_weight,
        q_norm_bias=q_norm_bias, k_norm_bias=k_norm_bias, cos=cos, sin=sin, q_out=q_out, k_cache=k_cache,
        v_cache=v_cache,
    )  # fmt: skip
    for name, tensor, axes in (
        ("q", q, "brh"), ("k", k, "brh"), ("v", v, "brh"), ("index", index, "b"), ("cos", cos, "bn"),
        ("sin", sin, "bn"), ("q_out", q_out, "brh"), ("k_cache", k_cache, "bnh"), ("v_cache", v_cache, "bnh"),
    ):  # fmt: skip
        args.update(zip((f"{name}_{axis}" for axis in axes), strides(tensor, len(axes)), strict=True))
    size = block(width)
    # One norm over all heads needs them in one program.
    rows = block(most) if across_heads and norm else min(block(most), max(1, TILE // size))
    args.update(
        q_heads=0 if q is None else q.shape[2], heads=heads, width=width, eps=eps, NORM=norm,
        ACROSS=across_heads and bool(norm), INTERLEAVED=interleaved, PACKED=packed,
        FULL=cos is not None and cos.shape[-1] == width,
        ROWS=rows, BLOCK=size,
    )  # fmt: skip
    parts = (q is not None) + 2 * (k is not None)
    return Launch(TUNED, (count, triton.cdiv(most, rows), batch * parts), args)


def refuses(q, k, *rest) -> str | None:
    """One norm over more heads than a program holds."""
    *_, norm, across_heads, _, _ = rest
    most = max(t.shape[2] for t in (q, k) if t is not None)
    wide = block(most) * block((q if k is None else k).shape[3])
    return f"rows wider than {WIDEST}" if norm and across_heads and wide > WIDEST else None


def launch(*args) -> None:
    plan(*args).run()
