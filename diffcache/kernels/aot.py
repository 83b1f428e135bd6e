"""Compile every kernel ahead of time for four GPUs and say what it takes: ``python -m diffcache.kernels.aot``.

No GPU is needed, and none has run these kernels yet. Each kernel is planned as a launch would plan it, from tensors
without memory, and compiled with every configuration that autotuning would try. A kernel that spills registers makes
the command fail (exit 1), for then its traffic is not what the roofline page counts. Written for Triton 3.9.
"""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, unknown
from .shapes import SHAPES, arguments

#: backend, architecture, threads of a warp
TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}
#: share of the tokens that the planned launches keep; it changes the grid, not the program
KEPT = 0.25
COLUMNS = ("kernel", "shape", "dtype", "target", "warps", "registers", "shared B", "spilled B")


@dataclass(frozen=True)
class Compiled:
    """One program.

    Attributes:
        registers: of a thread (AMD: vector registers).
        shared: bytes of a program.
        spilled: bytes of a thread that do not fit its registers.
    """

    kernel: str
    shape: str
    dtype: str
    target: str
    warps: int
    registers: int
    shared: int
    spilled: int

    def row(self) -> tuple[str, ...]:
        return tuple(str(value) for value in vars(self).values())


def compile_all(
    targets: Sequence[str] = tuple(TARGETS),
    dtypes: Sequence[str] = ("bfloat16", "float32"),
    shapes: Sequence[str] = tuple(SHAPES),
    thickest: bool = False,
) -> Iterator[Compiled]:
    """Every kernel for every target, dtype, shape of :data:`SHAPES` and configuration.

    Args:
        targets: names of :data:`TARGETS`.
        dtypes: of the stream.
        shapes: keys of :data:`SHAPES`.
        thickest: only the configuration with the fewest warps, which is the one that may spill.

    Raises:
        ConfigError: an unknown name, no Triton, or Triton's interpreter is on.
    """
    _check(targets, dtypes, shapes)
    for shape in map(SHAPES.get, shapes):
        for dtype in dtypes:
            for name, args in arguments(shape, int(KEPT * shape.tokens), getattr(torch, dtype)).items():
                launch = importlib.import_module(f"{__package__}.device.{name}").plan(*args)
                for warps in launch.warps()[: 1 if thickest else None]:
                    for target in targets:
                        used = compiled(launch, warps, target)
                        yield Compiled(name, shape.key, dtype, target, warps, *used)


def _check(targets: Sequence[str], dtypes: Sequence[str], shapes: Sequence[str]) -> None:
    try:
        from .device.norms import INTERPRETED
    except ImportError:
        raise ConfigError("triton: not installed, so that there is nothing to compile; pip install triton") from None
    if INTERPRETED:
        raise ConfigError("TRITON_INTERPRET: 1 interprets the kernels; unset it to compile them")
    floats = ("float32", "float16", "bfloat16")
    for kind, names, known in (("target", targets, TARGETS), ("dtype", dtypes, floats), ("shape", shapes, SHAPES)):
        for name in names:
            if name not in known:
                raise ConfigError(unknown(kind, name, known))


def compiled(launch: Any, warps: int, target: str) -> tuple[int, int, int]:
    """Registers, shared bytes and spilled bytes."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from .device.launch import OPTIONS

    source = ASTSource(launch.kernel.fn, *_specialised(launch))
    options = {"num_warps": warps, **OPTIONS}
    program = triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)
    registers, spilled = _amd(program.asm["amdgcn"]) if "amdgcn" in program.asm else _nvidia(program.asm["cubin"])
    return registers, program.metadata.shared, spilled


def _specialised(launch: Any) -> tuple[dict[str, Any], dict[tuple[int, ...], Any], dict[tuple[int, ...], list]]:
    """Types, constants and known divisors of the arguments, as a launch derives them."""
    types, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(launch.kernel.fn.params):
        value = launch.args[parameter.name]
        if isinstance(value, tuple):
            found = [_type(part) for part in value]
            types[parameter.name] = tuple(kind for kind, _ in found)
            parts = [((place, i), *of, part) for i, (of, part) in enumerate(zip(found, value, strict=True))]
        else:
            kind, even = ("constexpr", False) if parameter.is_constexpr else _type(value)
            types[parameter.name] = kind
            parts = [((place,), kind, even, value)]
        constants |= {path: part for path, kind, _, part in parts if kind == "constexpr"}
        attributes |= {path: [["tt.divisibility", 16]] for path, _, even, _ in parts if even}
    return types, constants, attributes


def _type(value: Any) -> tuple[str, bool]:
    """Type of an argument, and whether 16 is known to divide it."""
    if value is None or (type(value) is int and value == 1):
        return "constexpr", False
    if isinstance(value, Tensor):
        return POINTERS[value.dtype], True
    if isinstance(value, float):
        return "fp32", False
    return "i32" if value < 2**31 else "i64", value % 16 == 0


def _nvidia(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack (nothing but spills needs one here), from what Triton ships to read them."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return found["REG"], found["STACK"] + found["LOCAL"]


def _amd(text: str) -> tuple[int, int]:
    """Vector registers and bytes of scratch, from the kernel's own metadata."""
    found = {key: int(value) for key, value in re.findall(r"\.(\w+): +(\d+)", text)}
    spilled = 4 * (found["vgpr_spill_count"] + found["sgpr_spill_count"])
    return found["vgpr_count"], max(spilled, found["private_segment_fixed_size"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 if a kernel spills, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(prog="python -m diffcache.kernels.aot", description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], metavar="DTYPE")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), metavar="SHAPE", help=", ".join(SHAPES))
    parser.add_argument("--thickest", action="store_true", help="only the configuration that may spill")
    given = parser.parse_args(arguments)
    try:
        return show(compile_all(given.targets, given.dtypes, given.shapes, given.thickest))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def show(programs: Iterator[Compiled]) -> int:
    """Print them as they come, then the verdict; 1 if one spills."""
    line = "{:<22} {:<7} {:<9} {:<7} {:>5} {:>9} {:>8} {:>9}".format
    print(line(*COLUMNS))
    done = []
    for program in programs:
        print(line(*program.row()), flush=True)
        done.append(program)
    spilling = sorted({f"{p.kernel} on {p.target}" for p in done if p.spilled})
    verdict = f"these spill: {', '.join(spilling)}" if spilling else "none spills"
    print(f"{len(done)} programs compiled, never run on a GPU; {verdict}")
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())
