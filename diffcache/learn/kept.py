"""What a long calibration has measured so far, in a file, so that it can go on after an interruption."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


class Kept:
    """Results by name; each is measured once.

    Args:
        path: the file, or None to keep nothing.
        about: what the results hold for; a file about something else is begun anew.
    """

    def __init__(self, path: Path | None, about: Mapping[str, object]) -> None:
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
                    stage, _, name = key.partition("/")
                    self._stages.setdefault(stage, {})[name] = file.get_tensor(key)
        except (SafetensorError, OSError):
            return  # broken off while it was written: begin anew

    def once(self, stage: str, measure: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The result of a stage, from the file or from ``measure``."""
        if stage not in self._stages:
            self._stages[stage] = measure()
            self._save()
        return self._stages[stage]

    def _save(self) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_name(f"{self._path.name}.new")
        tensors = {f"{s}/{name}": t.contiguous() for s, stage in self._stages.items() for name, t in stage.items()}
        save_file(tensors, beside, metadata={"about": self._about})
        beside.replace(self._path)

    def discard(self) -> None:
        """The calibration has ended."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
