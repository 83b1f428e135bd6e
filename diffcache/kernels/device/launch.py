"""How a kernel is launched, and the small set of configurations that autotuning chooses from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import triton
from torch import Tensor

#: the set: warps of a program; what fits the size of its tile is timed once for each size
WARPS = (1, 2, 4, 8, 16)
#: elements of a tile for each thread of a program: fewer waste threads, more run out of registers
THIN, THICK = 4, 16
#: threads of a warp that the set is meant for (64 on AMD)
LANES = 32
#: products and sums are rounded one by one, as the references do it: these kernels wait for memory anyway
OPTIONS = {"enable_fp_fusion": False}


@dataclass(frozen=True)
class Launch:
    """A kernel with its grid and its arguments by name, the constants (capitals) among them.

    It is planned from shapes and strides alone, so that tensors without memory (meta) are planned as real ones are.
    """

    kernel: Any
    grid: tuple[int, ...]
    args: dict[str, Any]

    def run(self) -> None:
        """Launch it on the current device; the first launch of a size is timed once for each configuration."""
        self.kernel[self.grid](**self.args, **OPTIONS)

    def warps(self) -> list[int]:
        """What autotuning would try."""
        return [w for w in WARPS if fits(tile(self.args), w)] or [WARPS[-1]]


def tuned(fn: Any, written: Sequence[str] = ()) -> Any:
    """``fn`` with autotuning; as it is in the interpreter.

    Args:
        written: arguments that a run changes and reads; they are put back between the timed runs.
    """
    if not isinstance(fn, triton.JITFunction):
        return fn
    configs = [triton.Config({}, num_warps=w) for w in WARPS]
    keys = [name for name in ("BLOCK", "ROWS") if name in fn.arg_names]
    prune = {"early_config_prune": _fitting}
    return triton.autotune(configs, key=keys, restore_value=list(written), prune_configs_by=prune)(fn)


def tile(args: dict[str, Any]) -> int:
    """Elements that a program holds at once."""
    return args["BLOCK"] * args.get("ROWS", 1)


def fits(elements: int, warps: int) -> bool:
    """Whether a tile suits so many warps. A tile below one warp's share takes one."""
    each = elements / (warps * LANES)
    return each <= THICK and (each >= THIN or warps == 1)


def _fitting(configs: list[Any], named_args: dict[str, Any], **constants: Any) -> list[Any]:
    elements = tile({**named_args, **constants})
    return [c for c in configs if fits(elements, c.num_warps)] or configs[-1:]


def block(width: int) -> int:
    """The power of two that holds a row."""
    return triton.next_power_of_2(max(width, 1))


def strides(tensor: Tensor | None, axes: int) -> tuple[int, ...]:
    """The first strides, 0 where the axis is broadcast or there is no tensor."""
    if tensor is None:
        return (0,) * axes
    return tuple(0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))[:axes]
