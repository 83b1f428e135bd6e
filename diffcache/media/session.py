"""A model, a method and a request, checked and loaded: ready to be sampled."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch

from ..errors import ConfigError, ScheduleFileError, unknown, with_model
from ..methods import MethodConfig, make_config, put_once, read_value
from ..methods.naming import label
from ..zoo import LanguageEntry, ModelNotAvailableError, ZooEntry, load_pipeline
from ..zoo.loading import WEIGHTS
from .request import Call, Request, build_call, check_model, short_name

DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Session:
    """Everything that a sample needs.

    Attributes:
        model: the name as it was given.
        pipe: the pipeline, on its device.
        config: the method.
        call: arguments of the pipeline's ``__call__``.
        request: what was asked for.
    """

    model: str
    pipe: Any
    config: MethodConfig
    call: Call
    request: Request

    @property
    def name(self) -> str:
        """The model's name without folders and owner."""
        return short_name(self.model)

    @property
    def headline(self) -> str:
        """Model, method and `about` in one line."""
        return f"{self.name} · {label(self.config)} · {self.about}"

    @property
    def about(self) -> str:
        """The sample in one line, for captions."""
        place = f"{self.pipe.device.type}, {str(self.pipe.dtype).removeprefix('torch.')}"
        return " · ".join(
            filter(None, (f"{self.call.steps} steps", f"seed {self.request.seed}", self.call.about, place))
        )


def open_session(
    model: str, method: str, settings: Sequence[str], request: Request, dtype: str | None, device: str | None
) -> Session:
    """Check every argument, then load the model.

    Args:
        model: zoo name, folder or hub id.
        method: name with optional settings, or path of a configuration.
        settings: ``key=value`` fields of the method, which win over those in ``method``.
        dtype, device: None picks float32 on the CPU and for embedded models, bfloat16 on CUDA for others.

    Raises:
        ConfigError, ScheduleFileError: an argument is wrong, or the files of a local model are damaged.
        ModelNotAvailableError: a hub model that cannot be fetched.
        UnsupportedModelError: the method cannot be put on this pipeline.
    """
    entry = check_model(model)
    with commands_for(model, request.steps):
        config = method_config(method, settings, entry)
    where = read_device(device)
    precision = _dtype(dtype, entry, where)
    check_class(request, entry)
    pipe = _load(model, entry, precision, where)
    return Session(model, pipe, config, build_call(pipe, request, entry, folder_of(model, entry)), request)


@contextmanager
def commands_for(model: str, steps: int | None) -> Iterator[None]:
    """Errors in the block give their commands for this model, and number of steps if that was asked for."""
    try:
        yield
    except (ConfigError, ScheduleFileError) as error:
        raise type(error)(with_model(str(error), model, steps)) from error


def open_pipeline(model: str, entry: ZooEntry | None, dtype: str | None, device: str | None) -> Any:
    """The pipeline alone; arguments and errors as for :func:`open_session`."""
    where = read_device(device)
    return _load(model, entry, _dtype(dtype, entry, where), where)


def folder_of(model: str, entry: ZooEntry | None) -> Path:
    """Where the files of a model lie, if it has a folder."""
    return WEIGHTS / model if entry and entry.embedded else Path(model)


def check_class(request: Request, entry: ZooEntry | None) -> None:
    """What the class of a hub model can tell about a request is better said before tens of gigabytes are read."""
    if entry is not None and not entry.embedded and hasattr(diffusers, entry.pipeline):
        build_call(getattr(diffusers, entry.pipeline), request, entry, Path(entry.name))


def calls_of(session: Session, seeds: Sequence[int]) -> dict[int, Call]:
    """What to generate from each seed; models that ship differ in what they show, too, as in the report."""
    from .subject import Subject

    entry = check_model(session.model)
    subject = Subject(session.pipe, entry, folder_of(session.model, entry), session.request)
    return {seed: subject.call(seed, session.call.steps) for seed in seeds}


def method_config(method: str, settings: Sequence[str], entry: ZooEntry | None = None) -> MethodConfig:
    """The method's configuration; what the zoo recommends for the model holds where the method comes without fields."""
    fields = read_fields(settings)
    name, _, given = method.partition(":")
    if entry is not None and name in entry.methods and not given:
        fields = {**entry.methods[name], **fields}
    return make_config(method, **fields)


def read_fields(settings: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` texts as fields; raises ConfigError where one does not read."""
    fields: dict[str, Any] = {}
    for text in settings:
        put_once(fields, *_setting(text))
    return fields


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"set: '{text}' is not a field, must be KEY=VALUE, e.g. --set max_skip=4")
    return key.strip(), read_value(key.strip(), value)


def read_device(text: str | None) -> torch.device:
    """A device as a user writes it, None for the fastest one; raises ConfigError where it is not there."""
    mps = getattr(torch.backends, "mps", None)
    usable = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": mps is not None and mps.is_available()}
    if text is None:
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if usable[name]))
    here = ", ".join(name for name, ok in usable.items() if ok)
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise ConfigError(f"device: '{text}' is not a device, must be one of: {here}") from error
    if not usable.get(device.type, True) or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        raise ConfigError(f"device: '{text}' is not there, must be one of: {here}")
    return device


def _dtype(text: str | None, entry: ZooEntry | None, device: torch.device) -> torch.dtype | None:
    if text is None:
        return torch.bfloat16 if device.type == "cuda" and not (entry and entry.embedded) else None
    return read_dtype(text)


def read_dtype(text: str | None) -> torch.dtype | None:
    """A dtype as a user writes it; raises ConfigError for another word."""
    if text is None:
        return None
    long = next((name for name, short in DTYPES.items() if text in (name, short)), None)
    if long is None:
        raise ConfigError(unknown("dtype", text, DTYPES))
    return getattr(torch, long)


def _load(model: str, entry: ZooEntry | None, dtype: torch.dtype | None, device: torch.device) -> Any:
    hide_bars(entry)
    try:
        pipe = load_pipeline(model, torch_dtype=dtype, device=device)
    except ModelNotAvailableError as error:
        if (entry and entry.embedded) or Path(model).is_dir():
            # What lies on this disk was named by the user: a damaged file is a wrong argument.
            raise ConfigError(f"model: {error}") from error
        raise
    # Where steps are told by a callback we draw our own bar; else the pipeline's, if there is a terminal to draw it on.
    told = "callback_on_step_end" in inspect.signature(pipe.__call__).parameters
    pipe.set_progress_bar_config(disable=told or not sys.stderr.isatty())
    return pipe


def hide_bars(entry: ZooEntry | LanguageEntry | None) -> None:
    """The libraries' loading bars are for downloads on a terminal; what ships with the package loads at once."""
    if sys.stderr.isatty() and not (entry and entry.embedded):
        return
    import huggingface_hub
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.disable_progress_bars()
