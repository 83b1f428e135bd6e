"""Whether this installation can sample and write: versions, devices, codecs, embedded weights."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("torch", "diffusers", "transformers", "triton", "torchmetrics", "pillow", "av")


def examine() -> tuple[list[tuple[str, str]], bool]:
    """Facts as (name, value), and whether everything that is needed works."""
    import torch

    facts = [("python", platform.python_version()), ("system", f"{platform.system()} {platform.machine()}")]
    facts += [(name, _version(name)) for name in _PACKAGES]
    devices = [f"cpu ({os.cpu_count()} cores)"]
    devices += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    mps = getattr(torch.backends, "mps", None)
    devices += ["mps"] if mps is not None and mps.is_available() else []
    codec = _codec()
    models = _embedded()
    facts += [("devices", ", ".join(devices)), ("mp4", codec), *models]
    missing = any(_version(name) == "missing" for name in _PACKAGES if name != "triton")
    return facts, not missing and all(value.startswith("loads") for _, value in models)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _codec() -> str:
    from .writing import mp4_codec

    try:
        return {"libx264": "H.264", "h264": "H.264"}.get(mp4_codec(), "MPEG-4 (no H.264 encoder here)")
    except ImportError:
        return "cannot be written: av is missing"


def _embedded() -> list[tuple[str, str]]:
    from ..zoo import list_models, load_pipeline

    facts = []
    for entry in (e for e in list_models().values() if e.embedded):
        try:
            pipe = load_pipeline(entry.name)
        except Exception as error:  # whatever it is, the examination goes on
            facts.append((entry.name, " ".join(str(error).split())))
            continue
        count = sum(p.numel() for p in pipe.transformer.parameters())
        facts.append((entry.name, f"loads, denoiser of {count / 1e6:.1f} M parameters"))
    return facts
