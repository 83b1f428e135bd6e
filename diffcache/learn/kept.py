"""What a long calibration has measured so far, in a file, so that it can go on after an interruption."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import ScheduleFileError


class Kept:
    """Results by name; each is measured once.

    Args:
        path: the file, or None to keep nothing.
        about: what the results hold for, JSON-ready; a file about something else is begun anew.
    """

    def __init__(self, path: Path | None, about: Any) -> None:
        self._path, self._about = path, json.dumps(about, sort_keys=True)
        self._stages: dict[str, dict[str, Tensor]] = {}
        if path is not None and path.is_file():
            self._load(path)

    def _load(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("about") != self._about:
                    return
                for key in file.keys():  # noqa: SIM118 - it is no mapping
                    stage, _, name = key.rpartition("/")
                    self._stages.setdefault(stage, {})[name] = file.get_tensor(key)
        except (SafetensorError, OSError):
            return  # broken off while it was written: begin anew

    def once(self, stage: str, measure: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The result of a stage, from the file or from ``measure``."""
        if stage not in self._stages:
            self._stages[stage] = measure()
            self._save()
        return self._stages[stage]

    def numbers(self, stage: str, measure: Callable[[], Any]) -> NDArray[np.float64]:
        """The same for a stage that is one number or array."""
        return self.once(stage, lambda: {"": torch.as_tensor(measure(), dtype=torch.float64)})[""].numpy()

    def _save(self) -> None:
        if self._path is None:
            return
        beside = self._path.with_name(f"{self._path.name}.new")
        tensors = {f"{s}/{name}": t.contiguous() for s, stage in self._stages.items() for name, t in stage.items()}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, beside, metadata={"about": self._about})
            beside.replace(self._path)
        except (OSError, SafetensorError) as error:
            raise ScheduleFileError(f"{self._path}: cannot be written: {error}") from error
        finally:  # an interruption may come here as well
            beside.unlink(missing_ok=True)

    def discard(self) -> None:
        """The calibration has ended."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
