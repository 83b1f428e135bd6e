"""The one dispatch: Triton on CUDA and HIP tensors, the torch reference everywhere else.

What Triton cannot take (a dtype, strided features, rows that are too wide, no Triton) goes to the reference and is
counted with its reason. No kernel here has run on a GPU yet: they are compiled ahead of time for four targets
(:mod:`.aot`), and their values are compared with the references in Triton's interpreter.
"""

from __future__ import annotations

import contextlib
import importlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: elements of the widest row that one program holds
WIDEST = 16384

_counts: ContextVar[Counter[tuple[str, str]] | None] = ContextVar("counts", default=None)
_interpreting: ContextVar[bool] = ContextVar("interpreting", default=False)


@contextlib.contextmanager
def counting() -> Iterator[Counter[tuple[str, str]]]:
    """Count the calls inside the block that Triton could not take: ``(kernel, reason) -> calls``.

    An outer block counts them, too.

    >>> with counting() as fallbacks:
    ...     pass
    >>> fallbacks
    Counter()
    """
    outer = _counts.get()
    token = _counts.set(counts := Counter())
    try:
        yield counts
    finally:
        _counts.reset(token)
        if outer is not None:
            outer.update(counts)


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Inside the block the operators (``torch.ops.diffcache.*``) run CPU tensors in Triton's interpreter.

    Raises:
        ConfigError: the interpreter is not on.
    """
    from .device.norms import INTERPRETED

    if not INTERPRETED:
        raise ConfigError("TRITON_INTERPRET: must be 1 before the kernels are imported, or nothing can interpret them")
    token = _interpreting.set(True)
    try:
        yield
    finally:
        _interpreting.reset(token)


class Kernel:
    """A kernel: its torch reference, its Triton launch (imported when first needed), and its torch operator.

    Args:
        schema: of the operator, without its name; says what is written, and which axes stand for what is in the
            docstring of the public function. It returns nothing.
        rows: whether the last axis is one that a program holds as a whole: contiguous, and at most :data:`WIDEST`.

    The decorated function is the reference. Eager calls go straight to the reference or the launch; a compiled
    graph sees the reference's own operators on the CPU, and one opaque operator elsewhere.
    """

    def __init__(self, reference: Callable[..., None], schema: str, rows: bool = True) -> None:
        self.reference, self.rows = reference, rows
        self.name = reference.__name__.strip("_")
        self._launch: Callable[..., None] | None = None
        self._refuses: Callable[..., str | None] | None = None
        mutated = [part.split()[-1] for part in schema.strip("()").split(", ") if "!" in part]
        self.op = torch.library.custom_op(
            f"diffcache::{self.name}", self.run, mutates_args=mutated, schema=f"{schema} -> ()"
        )
        self.op.register_fake(_nothing)
        self._overload = getattr(torch.ops.diffcache, self.name).default

    def __call__(self, *args: Any) -> None:
        if _first(args).device.type == "cpu":
            self.reference(*args)
        elif torch.compiler.is_compiling():
            self._overload(*args)
        else:
            self.run(*args)

    def run(self, *args: Any) -> None:
        """What the operator does, on any device."""
        first = _first(args)
        if not (first.is_cuda or (_interpreting.get() and first.device.type == "cpu")):
            return self.reference(*args)
        reason = self.refusal(args)
        if reason is not None:
            _count(self.name, reason)
            return self.reference(*args)
        with torch.cuda.device(first.device) if first.is_cuda else contextlib.nullcontext():
            self._launch(*args)

    def refusal(self, args: Sequence[Any]) -> str | None:
        """Why Triton does not take these arguments; None if it does."""
        for tensor in _tensors(args):
            if tensor.is_floating_point() and tensor.dtype not in DTYPES:
                return f"dtype {str(tensor.dtype).removeprefix('torch.')}"
            if not self.rows or tensor.dim() == 0:
                continue
            if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
                return "features not contiguous"
            if tensor.is_floating_point() and tensor.shape[-1] > WIDEST:
                return f"rows wider than {WIDEST}"
        if self._launch is None:
            try:
                module = importlib.import_module(f"{__package__}.device.{self.name}")
            except ImportError:
                return "triton is not installed"
            self._launch = module.launch
            self._refuses = getattr(module, "refuses", None)
        return self._refuses(*args) if self._refuses is not None else None


def kernel(schema: str, rows: bool = True) -> Callable[[Callable[..., None]], Kernel]:
    """Decorates a torch reference: see :class:`Kernel`."""
    return lambda reference: Kernel(reference, schema, rows)


def _nothing(*args: Any, **kwargs: Any) -> None:
    """The operators only write, so that under fake tensors there is nothing to do."""


def _first(args: Sequence[Any]) -> Tensor:
    return next(_tensors(args))


def _tensors(args: Sequence[Any]) -> Iterator[Tensor]:
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, (list, tuple)):
            yield from (part for part in arg if isinstance(part, Tensor))


def _count(name: str, reason: str) -> None:
    counts = _counts.get()
    if counts is not None:
        counts[name, reason] += 1
