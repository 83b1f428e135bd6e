"""Whether this installation can sample and write: versions, devices, extras, codecs, embedded weights."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from importlib.util import find_spec

from ..plugins import version_of

_NEEDED = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "torchmetrics", "pillow", "av")
#: package -> what it is for
_OPTIONAL = {
    "triton": "fused kernels on a GPU",
    "peft": "LoRA adapters",
    "torchao": "quantised weights",
    "bitsandbytes": "quantised weights on CUDA",
    "cache-dit": "comparisons with it",
}


_AGAIN = f"{sys.executable} -m pip install --force-reinstall --no-deps diffcache"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        value: what was found.
        state: ``ok``, ``optional`` (missing, and only some things need it) or ``broken``.
        remedy: the command that helps, or "".
    """

    name: str
    value: str
    state: str = "ok"
    remedy: str = ""


def examine() -> list[Check]:
    """Everything that was found; the installation is healthy if nothing is broken."""
    checks = [Check("python", platform.python_version()), Check("system", f"{platform.system()} {platform.machine()}")]
    checks += map(_needed, _NEEDED)
    if any(check.state == "broken" for check in checks):
        return checks  # without these nothing else can be asked
    checks += [*_devices(), *(_optional(name, use) for name, use in _OPTIONAL.items()), _codec(), *_embedded()]
    checks += _languages()
    return checks


def _needed(name: str) -> Check:
    found = version_of(name)
    return Check(name, found) if found else Check(name, "missing", "broken", _install(name))


def _optional(name: str, use: str) -> Check:
    found = version_of(name)
    if found and find_spec(name.replace("-", "_")) is not None:
        return Check(name, f"{found}, for {use}")
    return Check(name, f"not installed, for {use}", "optional", _install(name))


def _install(name: str) -> str:
    return f"{sys.executable} -m pip install {name}"


def _devices() -> list[Check]:
    import torch

    cores, threads = os.cpu_count(), torch.get_num_threads()
    found = [Check("cpu", f"{cores} cores, torch uses {threads} threads")]
    for i in range(torch.cuda.device_count()):
        size = torch.cuda.get_device_properties(i).total_memory / 1e9
        found.append(Check(f"cuda:{i}", f"{torch.cuda.get_device_name(i)}, {size:.0f} GB"))
    mps = getattr(torch.backends, "mps", None)
    if mps is not None and mps.is_available():
        found.append(Check("mps", "available"))
    if len(found) == 1:
        why = "" if torch.version.cuda or torch.version.hip else " (this torch is built for the CPU alone)"
        help_ = "" if torch.version.cuda or torch.version.hip else "https://pytorch.org/get-started/locally"
        found.append(Check("gpu", f"none{why}: everything works, large models are slow", "optional", help_))
    return found


def _codec() -> Check:
    from .writing import mp4_codec

    try:
        codec = mp4_codec()
    except ImportError:
        return Check("mp4", "cannot be written: av cannot be imported", "broken", _install("av"))
    return Check("mp4", {"libx264": "H.264", "h264": "H.264"}.get(codec, "MPEG-4 (no H.264 encoder here)"))


def _embedded() -> list[Check]:
    from ..zoo import list_models, load_pipeline
    from .session import hide_bars

    checks = []
    for entry in (e for e in list_models().values() if e.embedded):
        hide_bars(entry)
        try:
            pipe = load_pipeline(entry.name)
        except Exception as error:  # whatever it is, the examination goes on
            checks.append(Check(entry.name, " ".join(str(error).split()), "broken", _AGAIN))
            continue
        count = sum(p.numel() for p in pipe.transformer.parameters())
        checks.append(Check(entry.name, f"loads, denoiser of {count / 1e6:.1f} M parameters"))
    return checks


def _languages() -> list[Check]:
    from ..zoo import list_language_models, load_language_model
    from .session import hide_bars

    checks = []
    for entry in (e for e in list_language_models().values() if e.embedded):
        hide_bars(entry)
        try:
            model, _ = load_language_model(entry.name)
        except Exception as error:  # whatever it is, the examination goes on
            checks.append(Check(entry.name, " ".join(str(error).split()), "broken", _AGAIN))
            continue
        count = sum(p.numel() for p in model.parameters())
        checks.append(Check(entry.name, f"loads, language model of {count / 1e6:.1f} M parameters"))
    return checks
