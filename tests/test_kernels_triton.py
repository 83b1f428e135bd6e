"""The Triton kernels against their references, in the interpreter: ``interpreted/`` in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
HERE = Path(__file__).parent


def test_interpreted():
    files = sorted(p for p in (HERE / "interpreted").glob("*.py") if p.stem not in ("__init__", "common"))
    # One place for imports: the package next to these tests, whatever is installed.
    paths = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, files)]
    run = subprocess.run(command, env=environment, cwd=HERE.parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert not re.search(r"\d+ (skipped|deselected)", run.stdout)
