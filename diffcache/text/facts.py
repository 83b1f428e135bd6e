"""What is known about a language model: for tables and for scripts. Nothing is computed, nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import ConfigError
from ..llm import read_facts
from ..llm.driver import language_config
from ..media.request import short_name
from ..media.session import read_dtype, read_fields
from ..methods import list_methods
from ..methods.describe import arithmetic, memory_terms
from ..methods.language import LanguageConfig
from ..pipeline import supports
from ..sizes import size_text
from ..zoo import ModelNotAvailableError, find_language_model
from .prompts import DEFAULT_PROBLEM, held_out
from .request import TextRequest
from .session import load_text, shape_of


class TextSubject:
    """A language model that somebody asks about.

    Attributes:
        missing: why its weights are not here and what to do, or "".

    Args:
        name: zoo name, hub id of a zoo model, or a folder.
        request: lengths for the estimate.
        dtype: as in ``diffcache sample``.

    Raises:
        ConfigError: a folder whose files are damaged, or an unknown dtype.
        UnsupportedModelError: an autoregressive model.
    """

    def __init__(self, name: str, request: TextRequest, dtype: str | None) -> None:
        self.entry, self.request, self.missing = find_language_model(name), request, ""
        self.name = self.entry.name if self.entry else short_name(name)
        self.source, self.model, self.tokenizer = name, None, None
        try:
            self.model, self.tokenizer = load_text(name, self.entry, read_dtype(dtype), None, download=False)
        except ModelNotAvailableError as error:
            self.missing = f"{error}".replace("try --model tiny-llada", "try: diffcache info tiny-llada")
        self.known = None if self.model is None else read_facts(self.model)

    def facts(self) -> list[tuple[str, str]]:
        """What the zoo knows; of a folder, what its configuration says."""
        entry = self.entry
        prompt = "" if entry and entry.embedded else " --prompt 'What is 6 times 7?'"
        command = ("command", f"diffcache sample --model {self.source}{prompt} --method freecache --compare")
        if entry is None:
            told = self.known
            ids = f"{told.mask_id}, {told.eos_id}"
            return [("source", self.source), ("regime", told.regime), ("mask and end token", ids), command]
        decoding = f"{entry.gen_length} new tokens, blocks of {entry.block_length}, threshold {entry.threshold:g}"
        facts = [("what it is", entry.description), ("source", entry.source), ("class", entry.model)]
        facts += [
            ("task", entry.task),
            ("regime", entry.regime),
            ("mask and end token", f"{entry.mask_id}, {entry.eos_id}"),
        ]
        facts += [("a row predicts", "the position behind it" if entry.shift else "its own position")]
        tested = "yes" if entry.tested else "no, its layout alone: these weights have not been run by us"
        return [*facts, ("decoding", decoding), ("run here", tested), command]

    def anatomy(self) -> dict[str, str]:
        """Class, weights, layers, heads, and what a token costs in keys and values."""
        config, names = self.model.config, self._names()
        token = 2 * names["layers"] * names["kv_heads"] * names["head_dim"] * names["element_size"]
        return {
            "class": type(self.model).__name__,
            "weights": size_text(self.weights),
            "layers": str(names["layers"]),
            "width": str(names["hidden"]),
            "heads": f"{names['heads']}, {names['kv_heads']} of keys",
            "positions": str(config.max_position_embeddings),
            "keys and values of a token": size_text(token),
        }

    @property
    def weights(self) -> int:
        """Bytes."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())

    def methods(self) -> list[tuple[str, str, str]]:
        """(method, status, why not) of every method and preset."""
        rows = []
        for name, config in list_methods("language").items():
            for label in (name, *(f"{name}:{preset}" for preset in config.presets)):
                answer = supports(self.model, label)
                rows.append((label, answer.status, answer.reason))
        return rows

    def estimate(self, method: str, settings: Sequence[str], prompt: str | None = None) -> dict[str, Any]:
        """Bytes that a method would hold for one sequence, by the formula in its docstring.

        Raises:
            ConfigError: an argument is wrong, or the method does not run on this model.
            ModelNotAvailableError: the weights are not here.
        """
        config = language_config(method, **read_fields(settings))
        if self.missing:
            raise ModelNotAvailableError(self.missing)
        answer = supports(self.model, config)
        if not answer:
            raise ConfigError(f"method: {config.method} does not run on {self.name}: {answer.reason}")
        length, block = shape_of(self.request, self.known, self.entry)
        asked = self.tokenizer(prompt or held_out(DEFAULT_PROBLEM).text).input_ids
        tokens = len(asked) + length
        return {
            "method": config.method,
            "tokens": tokens,
            "weights": self.weights,
            "bytes": memory_of(config, {**self._names(), "tokens": tokens, "rows": tokens, "block": block}),
        }

    def _names(self) -> dict[str, int]:
        """The names that the formulas have."""
        config = self.model.config
        heads = config.num_attention_heads
        return {
            "layers": config.num_hidden_layers,
            "hidden": config.hidden_size,
            "heads": heads,
            "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
            "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
            "element_size": self.model.dtype.itemsize,
        }

    def to_dict(self, held: dict[str, Any] | None = None) -> dict[str, Any]:
        """JSON-ready."""
        told: dict[str, Any] = {"model": self.source, "facts": dict(self.facts()), "missing": self.missing or None}
        if held is not None:
            told["estimate"] = held
        if not self.missing:
            told["anatomy"] = self.anatomy()
            told["methods"] = {name: {"status": status, "note": note} for name, status, note in self.methods()}
        return told


def memory_of(config: LanguageConfig, names: dict[str, int]) -> int:
    """Bytes by the formulas in the docstring of a method's class; its fields are names, too."""
    known = {**vars(config), **names}
    return int(sum(arithmetic(term, known) for term in memory_terms(type(config))))
