"""What a long calibration has found so far, in a file: interrupted, it goes on from there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import ScheduleFileError

_FORMAT = "diffcache calibration under way"


class Ledger:
    """Results by name. A calibration is a fixed course of them: run again, it finds those that are there.

    Args:
        path: JSON file; None keeps nothing.
        about: what the results belong to; a file about something else is begun anew.
    """

    def __init__(self, path: Path | None, about: Any) -> None:
        self._path, self._about = path, json.loads(json.dumps(about))
        self.found: dict[str, Any] = self._read()
        #: results that were there when it was opened
        self.known = len(self.found)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """The JSON-ready result of that name; made and kept if it is not there."""
        if name not in self.found:
            self.found[name] = make()
            self._write()
        return self.found[name]

    def close(self) -> None:
        """The calibration ended: the file goes."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        try:
            held = json.loads(self._path.read_text()) if self._path is not None else {}
        except (OSError, ValueError):
            return {}
        same = isinstance(held, dict) and held.get("format") == _FORMAT and held.get("about") == self._about
        return held["found"] if same else {}

    def _write(self) -> None:
        if self._path is None:
            return
        beside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps({"format": _FORMAT, "about": self._about, "found": self.found}))
            beside.replace(self._path)
        except OSError as error:
            raise ScheduleFileError(f"{self._path}: cannot be written: {error.strerror or error}") from error
