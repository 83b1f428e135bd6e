"""Ahead of time: every kernel compiles for four GPUs and keeps its values in registers; a spill is noticed."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffcache.errors import ConfigError
from diffcache.kernels.dispatch import interpreted
from diffcache.kernels.roofline import KERNELS, bound, moved, render, separate
from diffcache.kernels.shapes import SHAPES, arguments

ROOT = Path(__file__).parent.parent


@pytest.fixture
def aot():
    pytest.importorskip("triton")
    from diffcache.kernels import aot

    return aot


def test_every_kernel_compiles_for_every_target_and_none_spills(aot, capsys):
    """The heaviest launch of each at FLUX's widths."""
    programs = list(aot.compile_all(dtypes=["bfloat16"], shapes=["flux"], thickest=True))
    assert {(p.kernel, p.target) for p in programs} == {(k, t) for k in KERNELS for t in aot.TARGETS}
    assert all(0 < p.registers <= 255 and p.shared <= 48 * 1024 for p in programs)
    assert all(p.spilled == 0 for p in programs)
    assert aot.show(iter(programs)) == 0
    assert "none spills" in capsys.readouterr().out


@pytest.mark.parametrize("key", SHAPES)
def test_what_is_compiled_is_what_a_launch_would_compile(aot, key):
    """The configurations that autotuning tries; types and multiples of 16 as Triton's own launcher tells them."""
    native = pytest.importorskip("triton._C.libtriton").native_specialize_impl
    from triton.backends.compiler import BaseBackend

    for name, args in arguments(SHAPES[key], 64, torch.bfloat16).items():
        launch = importlib.import_module(f"diffcache.kernels.device.{name}").plan(*args)
        types, _, divisors = aot._specialised(launch)
        launch.kernel.nargs = {}
        tried = launch.kernel.prune_configs(launch.args)
        assert [config.num_warps for config in tried] == launch.warps()
        for place, parameter in enumerate(launch.kernel.fn.params):
            value = launch.args[parameter.name]
            if isinstance(value, tuple):
                kinds, of = native(BaseBackend, value, False, True, True)
                told = [(place, i) in divisors for i in range(len(value))]
                assert (types[parameter.name], told) == (kinds, [divisor == "D" for divisor in of]), parameter.name
            elif not parameter.is_constexpr:
                specialise = not isinstance(value, float)
                kind, divisor = native(BaseBackend, value, False, specialise, True)
                assert (types[parameter.name], (place,) in divisors) == (kind, divisor == "D"), parameter.name


def test_nothing_is_interpreted_unasked():
    pytest.importorskip("triton")
    with pytest.raises(ConfigError, match="must be 1 before the kernels are imported"), interpreted():
        pass


@pytest.mark.slow
def test_every_configuration_at_every_shape(aot):
    assert aot.show(aot.compile_all()) == 0


@pytest.mark.parametrize("target", ["sm_80", "gfx942"])
def test_a_spill_is_seen_and_fails(aot, target, capsys):
    """A tile of WorldCache's prediction far too large for one warp."""
    from diffcache.kernels.device import predict_heterogeneous as device

    launch = device.plan(*arguments(SHAPES["flux"], 1024, torch.float32)["predict_heterogeneous"])
    launch.args["ROWS"], launch.args["BLOCK"] = 128, 64
    used = aot.compiled(launch, 1, target)
    program = aot.Compiled("predict_heterogeneous", "flux", "float32", target, 1, *used)
    assert program.spilled > 0
    assert aot.show(iter([program])) == 1
    assert f"these spill: predict_heterogeneous on {target}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (dict(targets=["sm_91"]), "unknown target 'sm_91': did you mean"),
        (dict(dtypes=["int8"]), "unknown dtype 'int8'"),
        (dict(shapes=["sd3"]), "unknown shape 'sd3'"),
    ],
)
def test_unknown_names(aot, given, line):
    with pytest.raises(ConfigError) as caught:
        next(aot.compile_all(**given))
    assert str(caught.value).startswith(line)


def test_interpreted_kernels_cannot_be_compiled():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "diffcache.kernels.aot"]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith("error: TRITON_INTERPRET")
    assert run.stderr.count("\n") == 1


def test_the_roofline_page_is_what_the_command_writes():
    assert (ROOT / "docs" / "roofline.md").read_text(encoding="utf-8") == render()


def test_no_kernel_is_below_its_bound_or_above_separate_operators():
    for shape in SHAPES.values():
        for kept in (shape.tokens, shape.tokens // 2, shape.tokens // 10):
            least, most, apart = (f(shape, kept, 2) for f in (bound, moved, separate))
            assert all(least[name] <= most[name] for name in KERNELS)
            assert all(most[name] <= 1.05 * apart[name] for name in KERNELS)
