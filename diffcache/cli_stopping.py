"""Ctrl-C: exit code 130, and one line that says what is kept and how to go on."""

from __future__ import annotations

import importlib
import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

NOTHING = "nothing was written; the same command begins anew"


class StoppedError(Exception):
    """The user has interrupted a command; the message says what is kept and how to go on."""


@contextmanager
def stoppable(kept: Callable[[], str]) -> Iterator[None]:
    """Within, an interruption is a :class:`StoppedError` that says what ``kept`` returns then."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise StoppedError(kept()) from error


def kept_calibration(path: Path) -> str:
    """Of a calibration that keeps what it has measured in ``path``, if it keeps anything."""
    return _kept(path, "what is measured so far") if path.is_file() else NOTHING


def kept_answers(path: Path, wanted: int, resume: bool) -> str:
    """Of a file with an answer a line."""
    count = path.read_bytes().count(b"\n") if path.is_file() else 0
    return _kept(path, f"{count} of {wanted} answers", "" if resume else " with --resume") if count else NOTHING


class KeptReport:
    """Of a report's folder.

    Args:
        data: its ``report.json``.
        samples: the list in it that has an entry for each ``unit`` that is measured.
        resume, overwrite: as asked for; what is to be overwritten does not count.
    """

    def __init__(self, data: Path, samples: str, unit: str, resume: bool, overwrite: bool) -> None:
        self._data, self._samples, self._unit = data, samples, unit
        self._how = "" if resume else " with --resume in place of --overwrite" if overwrite else " with --resume"
        self._before = self._mark() if overwrite else None

    def __call__(self) -> str:
        if self._mark() == self._before:
            return NOTHING
        count = self._count()
        return _kept(self._data.parent, f"{count} {self._unit}{'s' * (count != 1)}", self._how)

    def _mark(self) -> tuple[int, int] | None:
        """Tells a file from the one that replaces it; None where there is none."""
        if not self._data.is_file():
            return None
        found = self._data.stat()
        return found.st_mtime_ns, found.st_ino

    def _count(self) -> int:
        try:
            return len(json.loads(self._data.read_text(encoding="utf-8"))[self._samples])
        except (ValueError, LookupError, TypeError):  # another's file: --resume will say so
            return 0


def _kept(path: Path, what: str, how: str = "") -> str:
    return f"kept in {path}: {what}; the same command{how} goes on from there"


def load_torch() -> None:
    """Import torch. An interruption waits until it is there: the C++ code that is loaded would end the process."""
    handler, seen = signal.getsignal(signal.SIGINT), []
    if handler is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        importlib.import_module("torch")  # nobody is interrupted
        return
    signal.signal(signal.SIGINT, lambda *_: seen.append(True))
    try:
        importlib.import_module("torch")
    finally:
        signal.signal(signal.SIGINT, handler)
    if seen:
        raise KeyboardInterrupt
