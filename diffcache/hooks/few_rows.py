"""Modules of a partial step, called so that their matrix products of few rows are fast."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from ..kernels.few_rows import linear


class FewRows(TorchFunctionMode):
    """Within: matrix products go through :func:`diffcache.kernels.few_rows.linear`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (linear if func is F.linear else func)(*args, **(kwargs or {}))
