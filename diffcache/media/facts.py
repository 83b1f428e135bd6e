"""What is known about a method, and about a model that lies on this machine: for tables and for scripts."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, UnsupportedModelError
from ..methods import MethodConfig, list_methods
from ..methods.base import NamedConfig
from ..methods.describe import defaults, field_meanings, memory_formula, needs_calibration
from ..zoo import LanguageEntry, ModelNotAvailableError, ZooEntry, load_pipeline
from ..zoo.loading import WEIGHTS
from .request import Request, build_call, example_command, refusals_of, short_name


def describe_method(config: type[MethodConfig]) -> dict[str, Any]:
    """Everything that a method's class says; JSON-ready."""
    from ..pipeline import uncalibrated

    meanings = field_meanings(config)
    return {
        "kind": config.kind,
        "summary": config.summary,
        "site": config.site if config.kind == "language" else uncalibrated(config())[1].site,
        "calibration": "needed" if needs_calibration(config) else "none",
        "memory": memory_formula(config),
        "presets": config.presets,
        "fields": {n: {"default": v, "meaning": meanings.get(n, "")} for n, v in defaults(config).items()},
        "text": inspect.getdoc(config).partition("\n\nArgs:")[0],
    }


def presence(entry: ZooEntry | LanguageEntry) -> str:
    """Whether a model's files are on this machine; looks at the index alone."""
    if entry.embedded:
        return "yes"
    if Path(entry.source).is_dir():
        return "yes, a folder"
    from huggingface_hub import try_to_load_from_cache

    try:
        index = "config.json" if isinstance(entry, LanguageEntry) else "model_index.json"
        found = try_to_load_from_cache(entry.source, index)
    except ValueError:  # not a hub id
        return "no such folder"
    return "in the cache" if isinstance(found, str) else "not downloaded"


class Subject:
    """A model that somebody asks about.

    Attributes:
        missing: why its weights are not here and what to do, or "".

    Args:
        name: zoo name, folder or hub id.
        entry: the zoo's, or None.
        request: shapes for the estimate.
        dtype: as in ``diffcache sample``.
    """

    def __init__(self, name: str, entry: ZooEntry | None, request: Request, dtype: str | None) -> None:
        self.model, self.entry, self.request, self._dtype = name, entry, request, dtype
        self.missing = ""
        self.pipe = self._load()

    @property
    def name(self) -> str:
        """The model's name without folders and owner."""
        return short_name(self.model)

    def _load(self) -> Any:
        """The pipeline, or None with the reason in :attr:`missing`; nothing is downloaded."""
        from .session import hide_bars, read_dtype

        hide_bars(self.entry)
        try:
            found = load_pipeline(self.model, torch_dtype=read_dtype(self._dtype), download=False)
        except ModelNotAvailableError as error:
            if (self.entry and self.entry.embedded) or Path(self.model).is_dir():
                raise ConfigError(f"model: {error}") from error
            self.missing = f"{error}".replace("try --model tiny-wan", "try: diffcache info tiny-wan")
            return None
        found.set_progress_bar_config(disable=True)
        return found

    # -- without weights -------------------------------------------------------------------------------------------

    def facts(self) -> list[tuple[str, str]]:
        """What the zoo knows."""
        entry = self.entry
        if entry is None:
            return [("source", self.model), ("command", f"diffcache sample --model {self.model}")]
        size = f"{entry.width} x {entry.height}" + (f", {entry.num_frames} frames" if entry.num_frames > 1 else "")
        facts = [("what it is", entry.description), ("source", entry.source), ("pipeline", entry.pipeline)]
        facts += [("task", entry.task), ("size", size), ("steps", str(entry.num_inference_steps))]
        facts += [] if entry.guidance_scale is None else [("guidance", f"{entry.guidance_scale:g}")]
        facts += [(key, str(value)) for key, value in entry.call.items()]
        facts += [(f"for {m}", ", ".join(f"{k}={v}" for k, v in f.items())) for m, f in entry.methods.items()]
        return [*facts, ("command", example_command(entry))]

    # -- with them -------------------------------------------------------------------------------------------------

    def anatomy(self) -> list[dict[str, str]]:
        """Class, weights, blocks, sites and units of every denoiser."""
        from ..hooks.anatomy import find_block_lists, find_denoisers
        from ..hooks.modules import find_units, unit_kinds
        from ..sizes import size_text

        rows = []
        for expert, model in find_denoisers(self.pipe).items():
            lists = find_block_lists(model)
            try:
                units = Counter(unit.kind for unit in find_units(model, "module", unit_kinds("module")))
            except UnsupportedModelError:
                units = Counter()
            row = {
                "expert": expert,
                "class": type(model).__name__,
                "size": size_text(sum(p.numel() * p.element_size() for p in model.parameters())),
                "blocks": ", ".join(f"{len(blocks)} {name}" for name, blocks in lists.items()),
                "sites": ", ".join(self._sites(model)),
                "units": ", ".join(f"{count} {kind}" for kind, count in units.items()),
            }
            rows.append(row)
        return rows

    @staticmethod
    def _sites(model: Any) -> list[str]:
        from ..hooks.recipe import SITES
        from ..pipeline import supports

        return [site for site in SITES if supports(model, f"interval:site={site}")]

    def methods(self) -> list[tuple[str, str, str]]:
        """(method, status, why not or what it needs) of every method and preset."""
        from ..pipeline import supports

        rows = []
        for name, config in list_methods("denoiser").items():
            for label in (name, *(f"{name}:{preset}" for preset in config.presets)):
                answer = supports(self.pipe, label)
                rows.append((label, answer.status, answer.reason or self._needs(name, config)))
        return rows

    def _needs(self, name: str, config: type[NamedConfig]) -> str:
        """What a method that runs wants besides."""
        if not needs_calibration(config):
            return ""
        here = f"for {self.entry.num_inference_steps} steps it is here; for others: " if self._has(name) else ""
        return f"{here}diffcache calibrate --model {self.model} --method {name} --out FILE.safetensors"

    def comes_with(self, file: Path) -> bool:
        """Whether a file lies in the folder of an embedded model."""
        return self.entry is not None and self.entry.embedded and WEIGHTS in file.resolve().parents

    def _has(self, method: str) -> bool:
        """Whether a calibration of the method comes with the model."""
        beside = getattr(self.pipe, "calibrations", {})
        return self.entry is not None and (method in beside or "schedule" in self.entry.methods.get(method, {}))

    def estimate(self, method: str, settings: Sequence[str]) -> Any:
        """What a method would hold.

        Raises:
            ConfigError: an argument is wrong, or the method does not work on this model.
            ModelNotAvailableError: the weights are not here.
        """
        from ..memory import estimate_memory
        from ..pipeline import supports
        from .session import method_config

        config = method_config(method, settings, self.entry)
        if self.missing:
            raise ModelNotAvailableError(self.missing)
        answer = supports(self.pipe, config)
        if not answer:
            raise ConfigError(f"method: {config.method} does not work on {self.name}: {answer.reason}")
        folder = WEIGHTS / self.model if self.entry and self.entry.embedded else Path(self.model)
        call = build_call(self.pipe, self.request, self.entry, folder)
        with refusals_of(self.pipe):
            return estimate_memory(self.pipe, config, **call.arguments)

    def to_dict(self, estimate: Any = None) -> dict[str, Any]:
        """JSON-ready."""
        known: dict[str, Any] = {"model": self.model, "facts": dict(self.facts()), "missing": self.missing or None}
        if estimate is not None:
            known["estimate"] = estimate.to_dict()
        if not self.missing:
            known["denoisers"] = self.anatomy()
            known["methods"] = {n: {"status": status, "note": note} for n, status, note in self.methods()}
        return known
