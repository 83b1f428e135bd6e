"""What a method's docstring says about it, in parts: the fields' meanings, and the memory formula."""

from __future__ import annotations

import ast
import inspect
import operator
import re
from collections.abc import Mapping
from typing import Any

from .base import NamedConfig
from .calibrated import CalibratedConfig


def memory_formula(config: type[NamedConfig]) -> str:
    """Memory of one branch in words; of the nearest class that states one."""
    return _memory_text(config).replace("`", "") or "not stated"


def memory_terms(config: type[NamedConfig]) -> list[str]:
    """The formulas in those words; together they are the memory in bytes."""
    return re.findall(r"`+([^`]+)`+", _memory_text(config))


_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Pow: operator.pow}


def arithmetic(formula: str, names: Mapping[str, float]) -> float:
    """The value of a formula of numbers and names.

    >>> arithmetic("4 * block * (head_dim + 1)", {"block": 2, "head_dim": 7})
    64
    """

    def value(node: ast.expr) -> float:
        if isinstance(node, ast.BinOp):
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        return names[node.id] if isinstance(node, ast.Name) else ast.literal_eval(node)

    return value(ast.parse(formula, mode="eval").body)


def _memory_text(config: type[NamedConfig]) -> str:
    for cls in _family(config):
        text = inspect.cleandoc(cls.__doc__ or "")
        found = re.search(r"Memory of one\s+branch:\s+(.+?)(?:\.\s|\.?$|\n\n)", text, re.S)
        if found:
            return " ".join(found[1].split())
    return ""


def field_meanings(config: type[NamedConfig]) -> dict[str, str]:
    """Field -> what its docstring says, of the nearest class that says it."""
    meanings: dict[str, str] = {}
    for cls in _family(config):
        for names, text in _arguments(inspect.cleandoc(cls.__doc__ or "")):
            for name in names.split(", "):
                meanings.setdefault(name, text)
    return meanings


def _arguments(text: str) -> list[tuple[str, str]]:
    _, _, section = text.partition("Args:\n")
    entries = re.findall(r"^    (\w+(?:, \w+)*): (.+(?:\n {5,}.+)*)", section, re.M)
    return [(names, " ".join(meaning.replace("`", "").split())) for names, meaning in entries]


def _family(config: type[NamedConfig]) -> list[type[NamedConfig]]:
    return [cls for cls in config.__mro__ if issubclass(cls, NamedConfig)]


def needs_calibration(config: type[NamedConfig]) -> bool:
    """Whether a default configuration needs numbers that are measured on the model."""
    return issubclass(config, CalibratedConfig)


def defaults(config: type[NamedConfig]) -> dict[str, Any]:
    """The fields with their defaults, as a user types them."""
    values = config().to_dict()
    del values["method"]
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
