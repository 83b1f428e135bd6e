"""The bytes that the roofline page counts are those that the kernels touch, counted in the interpreter."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from triton.runtime import interpreter

from diffcache.hooks.ranked_stream import RankedStream
from diffcache.hooks.residual_stream import Stream
from diffcache.hooks.selection import Place, Selection
from diffcache.hooks.token_passes import Memory
from diffcache.hooks.token_stream import Update
from diffcache.kernels.dispatch import Kernel, interpreted
from diffcache.kernels.roofline import KERNELS, bound, moved, step
from diffcache.kernels.shapes import SHAPES, Shape, arguments

#: a stream of each kind, small
SMALL = (
    Shape("plain", "", 2, 10, 24, 3, 8, None, False, False, (2, 4, 10), 1),
    Shape("heads", "", 1, 10, 24, 3, 8, "rms", False, True, (1, 10, 4), 2),
    Shape("across", "", 2, 10, 24, 3, 8, "rms", True, True, (2, 4, 2, 5), 1),
)
KEPT, GROUPS = 4, (0.3, 0.3, 0.4)


class Traffic:
    """Distinct addresses read, and written, in bytes; with ``floats`` those of floating-point numbers alone."""

    def __init__(self, monkeypatch, floats=False):
        self.floats = floats
        self.read, self.written = set(), set()
        builder = interpreter.interpreter_builder
        load, store = builder.create_masked_load, builder.create_masked_store

        def counted_load(ptrs, mask, *rest):
            self.read |= self.bytes(ptrs, mask)
            return load(ptrs, mask, *rest)

        def counted_store(ptrs, value, mask, *rest):
            self.written |= self.bytes(ptrs, mask)
            return store(ptrs, value, mask, *rest)

        monkeypatch.setattr(builder, "create_masked_load", counted_load)
        monkeypatch.setattr(builder, "create_masked_store", counted_store)

    def bytes(self, ptrs, mask) -> set[int]:
        if self.floats and ptrs.get_element_ty().is_int():
            return set()
        size = ptrs.get_element_ty().primitive_bitwidth // 8
        starts = np.asarray(ptrs.data)[np.asarray(mask.data, dtype=bool)].astype(np.int64)
        return {int(start) + byte for start in starts for byte in range(size)}

    @property
    def total(self) -> int:
        return len(self.read) + len(self.written)


def filled(args, shape):
    """Numbers in what has none yet: distinct tokens, groups in their shares."""
    for arg in args:
        if isinstance(arg, list) and arg and isinstance(arg[0], torch.Tensor):
            filled(arg, shape)
        elif not isinstance(arg, torch.Tensor):
            continue
        elif arg.dtype == torch.int32:
            arg.copy_(torch.randperm(shape.tokens)[: arg.shape[1]])
        elif arg.dtype == torch.uint8:
            counts = [round(g * arg.numel()) for g in GROUPS]
            arg.copy_(torch.arange(3).repeat_interleave(torch.tensor(counts)).view(arg.shape))
        else:
            arg.normal_()
    return args


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("shape", SMALL, ids=lambda shape: shape.key)
def test_kernels_touch_what_the_page_counts(shape, name, monkeypatch):
    args = filled(arguments(shape, KEPT, torch.float16, device="cpu")[name], shape)
    traffic = Traffic(monkeypatch)
    with interpreted():
        importlib.import_module(f"diffcache.kernels.{name}")  # the operators are there
        getattr(torch.ops.diffcache, name)(*args)
    assert traffic.total == moved(shape, KEPT, 2, GROUPS)[name]
    assert traffic.total >= bound(shape, KEPT, 2, GROUPS)[name]


@pytest.mark.parametrize("layout", ["dense", "ranked"])
def test_a_step_moves_what_the_page_counts(layout, monkeypatch):
    """Of the stream and the caches: all that the kernels touch but gates and indices, and the stream's way in."""
    tokens, width, cells, size, touched = 10, 24, 11, 2, []
    shape = Shape("", "", 1, tokens, width, 3, 8, None, False, False, (1,), 0, cells)

    def call(kernel, *args):
        gates = len(args[2]) if kernel.name == "accumulate" else int(kernel.name.startswith("scatter"))
        with monkeypatch.context() as counted, interpreted():
            traffic = Traffic(counted, floats=True)
            kernel.op(*args)
        touched.append(traffic.total - gates * width * size)

    place, selection = Place(1, 0, tokens), Selection(torch.randperm(tokens), layout == "ranked", [KEPT])
    x = torch.randn(1, tokens, width).half()
    stream = RankedStream(x, place, selection) if layout == "ranked" else Stream(x.clone(), place, selection)
    with monkeypatch.context() as patch:
        patch.setattr(Kernel, "__call__", call)
        for _ in range(cells):
            out = x.new_empty(1, KEPT, width)
            stream.normed(KEPT, "layer", 1e-6, None, None, out)
            held = Memory([x.new_zeros(x.shape)], None, {})
            stream.add(Update(held, held.results[0], out, x.new_ones(1, 1, width)))
        stream.finish()
    assert sum(touched) + 2 * tokens * width * size == step(shape, KEPT, size, layout)


def test_what_is_beside_the_rows_is_little():
    for shape in SHAPES.values():
        kept = shape.tokens // 4
        for name, least in bound(shape, kept, 2).items():
            assert moved(shape, kept, 2)[name] <= 1.15 * least, (shape.key, name)
