"""Whatever another package does to a pipeline, undone: the pipeline is afterwards what it was before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.hooks import HookRegistry
from torch import nn


@contextmanager
def isolated(pipe: Any) -> Iterator[Any]:
    """The pipeline for the block only: attributes, forwards, hooks and blocks that were put in are taken out again.

    Some packages patch the pipeline's *class* and some leave hooks behind when they fail. For the block the pipeline
    has a class of its own, of the same name, so that a patch reaches no other pipeline; every module's attributes and
    tables of submodules, parameters and hooks are put back as they were.
    """
    cls = type(pipe)
    kept = {id(module): (module, _table(module)) for model in _models(pipe) for module in model.modules()}
    own = dict(vars(pipe))
    pipe.__class__ = type(cls.__name__, (cls,), {"__module__": cls.__module__})
    try:
        yield pipe
    finally:
        pipe.__class__ = cls
        vars(pipe).clear()
        vars(pipe).update(own)
        for module, table in kept.values():
            _put_back(module, table)


def _models(pipe: Any) -> list[nn.Module]:
    return [part for part in getattr(pipe, "components", {}).values() if isinstance(part, nn.Module)]


def _table(owner: Any) -> dict[str, tuple[Any, Any]]:
    """Every attribute, and a copy of those that are tables or lists (submodules, parameters, hooks)."""
    return {name: (value, _content(value)) for name, value in vars(owner).items()}


def _content(value: Any) -> Any:
    if type(value) in (dict, OrderedDict, list):
        return value.copy()
    return _table(value) if isinstance(value, HookRegistry) else None


def _put_back(owner: Any, table: dict[str, tuple[Any, Any]]) -> None:
    vars(owner).clear()
    for name, (value, content) in table.items():
        if isinstance(value, HookRegistry):
            _put_back(value, content)
        elif content is not None:
            value.clear()
            (value.extend if isinstance(value, list) else value.update)(content)
        vars(owner)[name] = value
