"""Counts what the host reads from the device.

On the CPU some reads do not reach the dispatcher (``tolist``), so they are counted on the Python side as well.
"""

from __future__ import annotations

import contextlib
from unittest import mock

from torch import overrides
from torch.overrides import TorchFunctionMode
from torch.utils import _python_dispatch as dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from diffcache.hooks import listening, timesteps

DISPATCHED = {"_local_scalar_dense", "equal", "item", "is_nonzero", "nonzero", "unique", "_to_cpu"}
CALLED = {"tolist", "item", "cpu", "__bool__", "__float__", "__int__", "__index__", "equal", "allclose", "nonzero"}


class Reads:
    """Counts host reads of our engine: those within a model's own forward, and a sampler's, are not ours."""

    def __init__(self) -> None:
        self.count, self.depth, self.names = 0, 0, []

    def note(self, name: str) -> None:
        if self.depth == 0:
            self.count += 1
            self.names.append(name)

    @contextlib.contextmanager
    def aside(self):
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def uncounted(self, read):
        """What reads the CPU's own memory."""

        def aside(value):
            assert value.is_cpu
            with self.aside():
                return read(value)

        return aside


class Dispatched(TorchDispatchMode):
    def __init__(self, reads):
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.__name__.split(".")[0] in DISPATCHED:
            self.reads.note(f"aten::{func.__name__}")
        return func(*args, **(kwargs or {}))


class Called(TorchFunctionMode):
    def __init__(self, reads):
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in CALLED:
            self.reads.note(func.__name__)
            with self.reads.aside():  # one read, even where it dispatches
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def watched(reads):
    """Within, what the host reads is counted, and every tensor but a timestep is one that it has to wait for."""
    with Dispatched(reads), called(reads):
        yield


@contextlib.contextmanager
def called(reads):
    """The same of what Python calls, where nobody may watch what is dispatched."""
    with (
        Called(reads),
        mock.patch.object(listening, "waits", return_value=True),
        mock.patch.object(timesteps, "on_the_cpu", reads.uncounted(timesteps.on_the_cpu)),
    ):
        yield


@contextlib.contextmanager
def _unwatched():
    calls, operations = overrides._get_current_function_mode_stack(), dispatch._get_current_dispatch_mode_stack()
    with _without(Called, calls, overrides), _without(Dispatched, operations, dispatch):
        yield


@contextlib.contextmanager
def _without(kind, stack, room):
    """Without the counters of a kind; modes that were entered after them stay."""
    others = [mode for mode in stack if not isinstance(mode, kind)]
    _exchange(room, stack, others)
    try:
        yield
    finally:
        _exchange(room, others, stack)


def _exchange(room, old, new):
    for _ in old:
        room._pop_mode()
    for mode in new:
        room._push_mode(mode)


def ignore_inside(model, reads):
    """The bare model's own reads are its own affair: it runs without the counters (flex attention compiles them in)."""
    inner = model.forward

    def forward(*args, **kwargs):
        with reads.aside(), _unwatched():
            return inner(*args, **kwargs)

    model.forward = forward
    return model
