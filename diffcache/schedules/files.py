"""Calibrations as files: safetensors with the numbers, and one JSON entry in the header that says what they are for.

Nothing is unpickled, and one calibration always gives the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import ScheduleFileError, calibrate_command
from .calibration import Calibration, Expert, Identity

SUFFIX = ".safetensors"
FORMAT, VERSION = "diffcache schedule", 1
_ENTRY = "diffcache"


def write_calibration(calibration: Calibration, path: str | Path) -> None:
    """Write a schedule file; a file that is there is replaced as a whole.

    Raises:
        ScheduleFileError: another suffix than ``.safetensors``, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != SUFFIX:
        raise ScheduleFileError(f"{path}: unknown suffix '{path.suffix}', must be {SUFFIX}")
    numbers = {
        f"{name}.{key}": value.detach().to("cpu", _kept(value)).contiguous()
        for name, expert in calibration.experts.items()
        for key, value in expert.numbers.items()
    }
    # One entry: the order of several is not kept.
    content = save(numbers, metadata={_ENTRY: json.dumps(_header(calibration), sort_keys=True)})
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ScheduleFileError(f"{path}: cannot be written: {error.strerror or error}") from error


def read_calibration(path: str | Path, method: str = "METHOD") -> Calibration:
    """Read a schedule file.

    Args:
        path: of the file.
        method: that it should be for, as far as a message names it.

    Raises:
        ScheduleFileError: it is missing, damaged, not one of diffcache's, or of a later version.
    """
    header, numbers = _open(Path(path), method)
    version = header.get("version")
    if version != VERSION:
        raise ScheduleFileError(f"{path}: version: the file has {version!r}, this diffcache reads {VERSION}")
    try:
        return _calibration(str(path), header, numbers)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ScheduleFileError(f"{path}: damaged: {type(error).__name__}: {error}") from error


def _kept(value: Tensor) -> torch.dtype:
    """Tables that come in fp32 stay so; anything else is fp64."""
    return torch.float32 if value.dtype == torch.float32 else torch.float64


def _open(path: Path, method: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if path.is_dir():
        raise ScheduleFileError(f"{path}: is a folder, must be a schedule file ({SUFFIX})")
    try:
        with safe_open(path, framework="pt") as file:
            entry = (file.metadata() or {}).get(_ENTRY)
            header = json.loads(entry) if entry is not None else None
            if not isinstance(header, dict) or header.get("format") != FORMAT:
                raise ScheduleFileError(f"{path}: not a schedule of diffcache")
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except FileNotFoundError as error:
        make = calibrate_command(method, out=str(path))
        raise ScheduleFileError(f"{path}: no such file; make it with: {make}") from error
    except OSError as error:
        raise ScheduleFileError(f"{path}: {error.strerror or error}") from error
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ScheduleFileError(f"{path}: not readable as safetensors, or damaged") from error


def _header(calibration: Calibration) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "method": calibration.method,
        "sampler": calibration.sampler,
        "steps": calibration.steps,
        "runs": calibration.runs,
        **({} if calibration.guidance is None else {"guidance": calibration.guidance}),
        "experts": {
            name: {
                "model": expert.identity.model,
                "settings": dict(expert.identity.settings),
                "steps": expert.steps,
                "branches": list(expert.branches),
                "quality": dict(expert.quality),
                "note": expert.note,
                **({"facts": dict(expert.facts)} if expert.facts else {}),
            }
            for name, expert in calibration.experts.items()
        },
    }


def _calibration(source: str, header: Mapping[str, Any], numbers: Mapping[str, Tensor]) -> Calibration:
    sampler = header["sampler"]
    return Calibration(
        method=_typed(str, header["method"]),
        sampler=None if sampler is None else _typed(str, sampler),
        steps=_typed(int, header["steps"]),
        runs=_typed(int, header["runs"]),
        experts={name: _expert(name, facts, numbers) for name, facts in _typed(dict, header["experts"]).items()},
        source=source,
        guidance=header.get("guidance"),
    )


def _expert(name: str, facts: Mapping[str, Any], numbers: Mapping[str, Tensor]) -> Expert:
    return Expert(
        identity=Identity(_typed(str, facts["model"]), _typed(dict, facts["settings"])),
        steps=_typed(int, facts["steps"]),
        branches=tuple(_typed(list, facts["branches"])),
        numbers={key.removeprefix(f"{name}."): t for key, t in numbers.items() if key.startswith(f"{name}.")},
        quality=_typed(dict, facts["quality"]),
        note=_typed(str, facts["note"]),
        facts=_typed(dict, facts.get("facts", {})),
    )


def _typed(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is not a {kind.__name__}")
    return value
