"""Which denoiser it is, so that a schedule that was made for another one can be refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..schedules.calibration import Identity
from .anatomy import Anatomy

# Says how the weights are stored, not which model it is.
_STORAGE = {"quantization_config", "torch_dtype", "dtype"}


def identify(model: nn.Module, anatomy: Anatomy) -> Identity:
    """Class, number of blocks and plain values of the configuration.

    LoRA, quantisation, offloading and compilation change none of these.
    """
    bare = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    config = getattr(bare, "config", None)
    values = {k: v for k, v in dict(config).items() if _tells(k, v)} if isinstance(config, Mapping) else {}
    settings = {"blocks": anatomy.num_blocks, **values}
    return Identity(type(bare).__name__, json.loads(json.dumps(settings)))  # tuples read back as lists


def _tells(name: str, value: Any) -> bool:
    if name.startswith("_") or name in _STORAGE:
        return False
    parts = value if isinstance(value, (list, tuple)) else (value,)
    return all(part is None or isinstance(part, (bool, int, float, str)) for part in parts)
