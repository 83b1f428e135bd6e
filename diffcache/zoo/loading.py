"""From a name, a folder or a hub id to a pipeline; every failure is one line that says what to do."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import unknown
from .registry import ZooEntry, list_models

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

WEIGHTS = Path(__file__).parent / "weights"
MANIFEST = "sha256.json"
CALIBRATIONS = "calibrations"
"""Folder beside the weights with the schedule files that come with a model, each named after its method."""
_LIBRARIES = ("diffusers", "transformers", "diffcache.zoo.autoencoder", "diffcache.zoo.world")


class ModelNotAvailableError(RuntimeError):
    """A model is unknown, cannot be fetched, or its files are damaged. The message is one line with the way out."""


def load_pipeline(
    name: str,
    *,
    torch_dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    download: bool = True,
) -> DiffusionPipeline:
    """The pipeline of a zoo name, a local folder or a hub id, on ``device`` and in ``torch_dtype``.

    Embedded models are fp32 and stay on the CPU unless told otherwise; for other models None leaves the choice to
    diffusers. A hub model is taken from the local cache if it is complete there and is downloaded otherwise, unless
    ``download`` is False.

    Raises `ModelNotAvailableError` for an unknown name, missing or damaged files and a failed download.
    """
    entry = list_models().get(name)
    folder = WEIGHTS / name if entry and entry.embedded else Path(name)
    if not name:
        raise ModelNotAvailableError(unknown("model", name, list_models()))
    if (entry and entry.embedded) or (not entry and is_own_folder(folder)):
        pipeline = load_folder(folder, torch_dtype)
    elif entry or folder.is_dir() or re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        pipeline = _load_with_diffusers(entry.source if entry else name, entry, torch_dtype, download)
    else:
        raise ModelNotAvailableError(unknown("model", name, list_models()))
    return pipeline if device is None else pipeline.to(device)


def is_own_folder(folder: Path) -> bool:
    """Whether a folder holds a pipeline with diffcache's own components, which diffusers alone cannot load."""
    index = folder / "model_index.json"
    return index.is_file() and '"diffcache' in index.read_text(encoding="utf-8", errors="replace")


def load_folder(folder: Path, torch_dtype: torch.dtype | None = None) -> DiffusionPipeline:
    """The pipeline in a folder that `samples/export.py` wrote; fp32 by default.

    Raises `ModelNotAvailableError` that names the first missing or damaged file.
    """
    import torch

    check_files(folder)
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    dtype = torch_dtype or torch.float32
    components = {k: v for k, v in index.items() if isinstance(v, list)}
    with without_bars():
        loaded = {k: _load_component(folder / k, library, cls, dtype) for k, (library, cls) in components.items()}
    made = _find_class(*index["pipeline_class"].rsplit(":", 1))
    # id2label of a DiTPipeline, boundary_ratio of Wan 2.2
    takes = inspect.signature(made).parameters.keys() - components
    pipeline = made(**loaded, **{k: v for k, v in index.items() if k in takes})
    pipeline.calibrations = {path.stem: str(path) for path in sorted((folder / CALIBRATIONS).glob("*.safetensors"))}
    return pipeline


@contextmanager
def without_bars() -> Iterator[None]:
    """Within, transformers draws no bar: what lies in a folder of our own loads at once."""
    from transformers.utils import logging

    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()


def _find_class(library: str, name: str) -> Any:
    if library not in _LIBRARIES:
        raise ModelNotAvailableError(f"model_index.json: components from {library!r} are not loaded")
    return getattr(importlib.import_module(library), name)


def _load_component(folder: Path, library: str, name: str, dtype: torch.dtype) -> Any:
    component = _find_class(library, name)
    try:
        if "Tokenizer" in name or "Scheduler" in name:
            return component.from_pretrained(folder)
        key = "dtype" if library == "transformers" else "torch_dtype"
        return component.from_pretrained(folder, **{key: dtype}).eval()
    except Exception as error:  # a file that passed `check_files` and still does not load
        raise ModelNotAvailableError(f"{_short(folder)}: {_first_line(error)}; {_remedy()}") from error


def check_files(folder: Path) -> None:
    """Compare every file of an exported model with its recorded SHA-256.

    Raises `ModelNotAvailableError` with one line that names the first file that is missing or differs.
    """
    manifest = folder / MANIFEST
    try:
        expected = dict(json.loads(manifest.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ModelNotAvailableError(f"{_short(manifest)}: the file is missing; {_remedy()}") from None
    except (OSError, ValueError):
        raise ModelNotAvailableError(f"{_short(manifest)}: the file is damaged; {_remedy()}") from None
    for name, digest in expected.items():
        path = folder / name
        if not path.is_file():
            raise ModelNotAvailableError(f"{_short(path)}: the file is missing; {_remedy()}")
        if file_digest(path) != digest:
            raise ModelNotAvailableError(f"{_short(path)}: the file is damaged; {_remedy()}")


def file_digest(path: Path) -> str:
    """SHA-256 of a file; line ends of text files do not count, as version control may change them."""
    content = path.read_bytes()
    if path.suffix == ".json":
        content = content.replace(b"\r\n", b"\n")
    return hashlib.sha256(content).hexdigest()


def _load_with_diffusers(
    source: str, entry: ZooEntry | None, torch_dtype: torch.dtype | None, download: bool
) -> DiffusionPipeline:
    """`DiffusionPipeline.from_pretrained`, from the cache if everything is there, else from the hub."""
    cls = _pipeline_class(entry)
    options = {} if torch_dtype is None else {"torch_dtype": torch_dtype}
    error: Exception | None = None
    for local_only in (True, False) if download and not Path(source).is_dir() else (True,):
        try:
            return cls.from_pretrained(source, local_files_only=local_only, **options)
        except Exception as failure:  # hub, network, disk and weight errors share no base class
            error = failure
    label = f"{entry.name} ({source})" if entry else source
    cause = failure_cause(error) if download or Path(source).is_dir() else "not in the local cache"
    raise ModelNotAvailableError(f"{label}: {cause}; try --model tiny-wan") from error


def _pipeline_class(entry: ZooEntry | None) -> Any:
    """The entry's pipeline class, of diffusers or of the package that it names."""
    import diffusers

    module, _, name = (entry.pipeline if entry else "DiffusionPipeline").rpartition(":")
    try:
        return getattr(importlib.import_module(module) if module else diffusers, name)
    except (ImportError, AttributeError) as error:
        found = _first_line(error)
        raise ModelNotAvailableError(f"{entry.name}: its pipeline {entry.pipeline} is missing: {found}") from error


def failure_cause(error: BaseException | None) -> str:
    """Why a download failed, in a few words, from anywhere in the chain of exceptions."""
    names, first = [], _first_line(error)
    while error is not None and len(names) < 20:
        names.append(type(error).__name__)
        error = error.__cause__ or error.__context__
    causes = {
        "GatedRepoError": "the repository is gated, accept its licence and log in to the hub",
        "RepositoryNotFoundError": "there is no such repository on the hub",
        "OfflineModeIsEnabled": "not in the local cache and offline mode is on",
        "LocalEntryNotFoundError": "not in the local cache and the hub cannot be reached",
        "ConnectError": "not in the local cache and the hub cannot be reached",
        "ConnectTimeout": "not in the local cache and the hub cannot be reached",
        "ConnectionError": "not in the local cache and the hub cannot be reached",
        "ProxyError": "not in the local cache and the hub cannot be reached",
    }
    return next((text for kind, text in causes.items() if kind in names), first)


def _first_line(error: BaseException | None, limit: int = 100) -> str:
    lines = str(error).strip().splitlines()
    text = " ".join(lines[0].split()) if lines else type(error).__name__
    text = f"{text} is missing" if isinstance(error, KeyError) else text
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _short(path: Path) -> str:
    """The path below the package for embedded files, so that the line stays short."""
    try:
        return str(Path("diffcache/zoo/weights") / path.relative_to(WEIGHTS))
    except ValueError:
        return str(path)


def _remedy() -> str:
    return "reinstall diffcache"
