"""What the figures are measured on, and with which versions; nothing that tells whose machine it is."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..hooks.anatomy import find_denoisers
from ..plugins import version_of
from .data import Machine, Model

PACKAGES = ("torch", "diffusers", "transformers", "torchmetrics", "cache-dit", "triton", "numpy")


def examine_machine() -> Machine:
    """This machine."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    versions = {"python": platform.python_version(), "diffcache": __version__}
    versions |= {name: found for name in PACKAGES if (found := version_of(name))}
    system = f"{platform.system()} {platform.machine()}"
    return Machine(system, _processor(), _cores(), torch.get_num_threads(), gpu, versions)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.lower().startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def examine_model(name: str, pipe: Any, task: str) -> Model:
    """A loaded pipeline; ``name`` without folders."""
    denoisers = find_denoisers(pipe)
    first = next(iter(denoisers.values()))
    weights = next(iter(first.parameters()))
    return Model(
        name,
        type(pipe).__name__,
        type(getattr(pipe, "scheduler", None)).__name__,
        {part: type(model).__name__ for part, model in denoisers.items()},
        sum(p.numel() for model in denoisers.values() for p in model.parameters()),
        weights.device.type,
        str(weights.dtype).removeprefix("torch."),
        task,
    )
