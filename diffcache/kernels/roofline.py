"""Bytes that the kernels move, against the least that is possible: writes ``docs/roofline.md``.

``python -m diffcache.kernels.roofline --out docs/roofline.md``. A model, not a measurement: no GPU has run the
kernels. Each byte is counted once, for what several programs share (a gate, a table of angles) stays in cache; that
the kernels touch exactly these bytes is tested in Triton's interpreter.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from math import prod
from pathlib import Path

from .accumulate import MOST
from .shapes import SHAPES, Shape

#: kept shares of the tokens
RATIOS = (0.75, 0.5, 0.25, 0.1)
#: nominal bytes per second
BANDWIDTHS = {"A100 80 GB": 2.04e12, "H100 SXM": 3.35e12, "MI300X": 5.3e12}
#: shares of tokens that WorldCache reuses, extrapolates and blends, at its default quantiles
GROUPS = (0.3, 0.3, 0.4)
KERNELS = {
    "gather_norm": "G",
    "scatter_update": "S",
    "scatter_gather_norm": "F",
    "accumulate": "A",
    "project_epilogue": "P",
    "merge_attention": "M",
    "predict_heterogeneous": "H",
}
#: bytes of an index or a log-sum-exp
WORD = 4


def bound(shape: Shape, kept: int, size: int, groups: Sequence[float] = GROUPS) -> dict[str, int]:
    """The least: every row that the result depends on read once, every row that changes written once.

    Args:
        kept: tokens recomputed, k.
        size: bytes of an element.
        groups: shares of tokens that need one, two and three stored outputs.
    """
    row = shape.batch * shape.width * size
    heads = shape.batch * kept * shape.heads * shape.head_dim * size
    outputs = prod(shape.output) * size
    stale = (shape.tokens - kept) * row
    return {
        "gather_norm": 2 * kept * row,
        "scatter_update": (3 * shape.tokens + kept) * row,
        "scatter_gather_norm": (3 * shape.tokens + 2 * kept) * row,
        "accumulate": (2 + MOST) * stale,
        "project_epilogue": 6 * heads,
        "merge_attention": 3 * heads + 3 * WORD * shape.batch * kept * shape.heads,
        "predict_heterogeneous": round((1 + groups[0] + 2 * groups[1] + 3 * groups[2]) * outputs),
    }


def moved(shape: Shape, kept: int, size: int, groups: Sequence[float] = GROUPS) -> dict[str, int]:
    """What the kernels touch with :func:`~.shapes.arguments`: the bound, and maps, modulation, weights and tables."""
    row, index, place = shape.width * size, kept * WORD, shape.tokens * WORD
    each = shape.batch * row  # one row for each sample
    attention = shape.heads * shape.head_dim * size
    norm = (shape.heads if shape.across_heads else 1) * shape.head_dim * size if shape.norm else 0
    angles = 2 * kept * shape.head_dim * 4 if shape.rope else 0
    extra = {
        "gather_norm": index + 2 * row + 2 * each,
        "scatter_update": place + each,
        "scatter_gather_norm": 2 * place + 2 * row + 3 * each,
        "accumulate": place - index + MOST * each * (kept < shape.tokens),
        "project_epilogue": index + 3 * attention + 2 * norm + angles,
        "merge_attention": 0,
        "predict_heterogeneous": prod(shape.output) // shape.output[shape.channel_dim],
    }
    return {name: least + extra[name] for name, least in bound(shape, kept, size, groups).items()}


def separate(shape: Shape, kept: int, size: int) -> dict[str, int]:
    """The same by one operator after another, each reading and writing its operands.

    G: gather, norm, modulate. S: scatter, multiply, add. P: norm and RoPE of q and k, three scatters' worth of rows.
    A: for each cache gather, multiply, add. M: two products and a sum. H: a product and two sums.
    """
    row = shape.batch * shape.width * size
    heads = shape.batch * kept * shape.heads * shape.head_dim * size
    head, tail = 6 * kept * row, (5 * shape.tokens + 2 * kept) * row
    steps = (shape.norm is not None) + shape.rope
    return {
        "gather_norm": head,
        "scatter_update": tail,
        "scatter_gather_norm": head + tail,
        "accumulate": 7 * MOST * (shape.tokens - kept) * row,
        "project_epilogue": (6 + 4 * steps) * heads,
        "merge_attention": 7 * heads,
        "predict_heterogeneous": 8 * prod(shape.output) * size,
    }


def step(shape: Shape, kept: int, size: int, layout: str) -> int:
    """Rows of the stream and of the cached results that one partial step moves, every module for ``kept`` tokens.

    ``dense`` (layout B): a copy of the stream, then G, F from module to module, and S, each over all rows. ``ranked``
    (C): the stream put in rank order, then the same over the first ``kept`` rows; the others wait for A, which also
    puts the stream back.
    """
    row, n, k, cells = shape.batch * shape.width * size, shape.tokens, kept, shape.cells
    if layout == "dense":
        return row * (2 * n + 2 * k + (cells - 1) * (3 * n + 2 * k) + 3 * n + k)
    waiting = (2 * -(-cells // MOST) + cells) * (n - k)
    return row * (2 * n + 2 * k + (cells - 1) * 5 * k + 4 * k + 2 * k + waiting)


def render(size: int = 2) -> str:
    """The page."""
    lines = [_HEAD.format(groups=" / ".join(f"{g:.0%}" for g in GROUPS), most=MOST)]
    for shape in SHAPES.values():
        lines += [_title(shape, size), *_table(shape, size), "", *_steps(shape, size), ""]
    return "\n".join(lines)


_HEAD = """# Bytes of the kernels: a model, not a measurement

No GPU has run these kernels. They are compiled ahead of time (`python -m diffcache.kernels.aot`) and their values are
compared with the torch references in Triton's interpreter; this page is arithmetic, and the times are bytes over
nominal bandwidth. Written by `python -m diffcache.kernels.roofline --out docs/roofline.md`.

*bound*: each row that the result depends on is read once and each row that changes is written once. *moved*: the bytes
that the kernel touches, each counted once: the bound and its index maps, modulation rows, norm weights and angles.
*separate*: one torch operator after another. Elements are bf16, angles and log-sum-exps fp32, indices int32.

| | kernel |
|---|---|
| G | gather, norm, modulate |
| S | scatter, gate, residual, cache |
| F | S, then G of the same number of rows for the next sub-layer |
| A | gate * cache of {most} modules onto the rows that are not kept, and these back into token order |
| P | bias, norm and RoPE of q and k; K and V into the cache |
| M | two parts of attention merged |
| H | prediction by groups: {groups} of the tokens read one, two, three stored outputs |

The maps that S and F read are built once a step for all layers (`inverse=`). H runs once a predicted step and does not
depend on the share kept.

*Step*: what all modules of one partial step move of the stream and of the cached results, without maps and modulation,
in layout B (the stream in token order: G, then F over all rows from module to module, then S) and in layout C (in rank
order: G, F and S over the rows that are kept; the others wait for A). Putting the stream in rank order costs what B
pays for a copy of it, and A puts it back as it writes.
"""


def _title(shape: Shape, size: int) -> str:
    b, n, d = shape.batch, shape.tokens, shape.width
    return f"\n## {shape.name}\n\n{b} x {n} tokens of width {d}: a stream of {b * n * d * size / 1e6:.1f} MB.\n"


def _table(shape: Shape, size: int) -> list[str]:
    names = [f"µs, {gpu}" for gpu in BANDWIDTHS]
    heads = ["kept", "kernel", "bound MB", "moved MB", "moved / bound", "separate MB", "separate / moved", *names]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for ratio in RATIOS:
        kept = round(ratio * shape.tokens)
        least, most, apart = (f(shape, kept, size) for f in (bound, moved, separate))
        for name, letter in KERNELS.items():
            if letter != "H":
                lines.append(_line(str(kept), letter, least[name], most[name], apart[name]))
    lines.append(_line("any", "H", *(f["predict_heterogeneous"] for f in (least, most, apart))))
    return lines


def _steps(shape: Shape, size: int) -> list[str]:
    lines = [f"| step of {shape.cells} modules, kept | B MB | C MB | C / B |", "|---|---|---|---|"]
    for ratio in RATIOS:
        kept = round(ratio * shape.tokens)
        dense, ranked = (step(shape, kept, size, layout) for layout in ("dense", "ranked"))
        lines.append(f"| {kept} | {dense / 1e6:.1f} | {ranked / 1e6:.1f} | {ranked / dense:.2f} |")
    return lines


def _line(kept: str, letter: str, least: int, most: int, apart: int) -> str:
    times = [f"{most / bandwidth * 1e6:.2f}" for bandwidth in BANDWIDTHS.values()]
    sizes = [f"{least / 1e6:.3f}", f"{most / 1e6:.3f}", f"{most / least:.3f}", f"{apart / 1e6:.3f}"]
    return "| " + " | ".join([kept, letter, *sizes, f"{apart / most:.2f}", *times]) + " |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(prog="python -m diffcache.kernels.roofline", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="file to write; printed without it")
    out = parser.parse_args(arguments).out
    if out is None:
        print(render())
    else:
        out.write_text(render(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
