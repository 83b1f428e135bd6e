"""The tensors that flow through blocks: what goes in by name, and which input each result continues."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from diffusers.hooks._helpers import TransformerBlockRegistry
from torch import Tensor, nn

from .outputs import Template, flatten

#: what diffusers' blocks call the stream that becomes the output, and the text beside it; best known first
HIDDEN_NAMES = ("hidden_states", "x", "sample", "image", "img", "visual_embed", "gen_seq")
TEXT_NAMES = ("encoder_hidden_states", "context", "text", "txt", "und_seq")


def named_tensors(block: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensor arguments of a block's call by parameter name, the likeliest stream first.

    Runs for many blocks at every step: no comprehension, which is a call of its own.
    """
    tensors: dict[str, Tensor] = {}
    if args:
        for name, value in zip(_parameters(type(block)), args, strict=False):
            if isinstance(value, Tensor):
                tensors[name] = value
    for name, value in kwargs.items():
        if isinstance(value, Tensor):
            tensors[name] = value
    likely: dict[str, Tensor] = {}
    for name in HIDDEN_NAMES:
        if name in tensors:
            likely[name] = tensors[name]
    return tensors if [*likely] == [*tensors][: len(likely)] else {**likely, **tensors}


def stream(block: nn.Module, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The tensor argument of that name in a block's call, if there is one: one of :func:`named_tensors`."""
    value = kwargs.get(name)
    if value is None and args:
        names = _parameters(type(block))
        value = args[names.index(name)] if name in names[: len(args)] else None
    return value if isinstance(value, Tensor) else None


@torch.compiler.assume_constant_result
def _parameters(block_class: type[nn.Module]) -> tuple[str, ...]:
    return _inspected(block_class)


@lru_cache(maxsize=512)
def _inspected(block_class: type[nn.Module]) -> tuple[str, ...]:
    known = [p for p in inspect.signature(block_class.forward).parameters.values() if p.kind is not p.VAR_KEYWORD][1:]
    names = [p.name for p in known if p.kind is not p.VAR_POSITIONAL]
    # Behind *args the parameters have numbers.
    return (*names, *(f"argument {i}" for i in range(len(names), 32))) if len(names) < len(known) else tuple(names)


def version(tensor: Tensor) -> int:
    """How often the tensor was written to; 0 where torch does not count (inference mode, inside a compiled graph)."""
    return 0 if torch.compiler.is_compiling() or tensor.is_inference() else tensor._version


def first_of(names: Iterable[str], streams: Mapping[str, Tensor]) -> str | None:
    """The first of ``names`` that is a stream."""
    return next((name for name in names if name in streams), None)


@dataclass(frozen=True)
class Passage:
    """What a block's return value looks like, and how to make one without running the block.

    Attributes:
        template: structure of the return value.
        sources: for each tensor in it, the name of the input that it continues, or None.
        shapes: for each tensor its shape when it was seen.
        alike: for each tensor an input that had its shape, or None; another trajectory has other shapes.
    """

    template: Template | None
    sources: tuple[str | None, ...]
    shapes: tuple[tuple[int, ...], ...]
    alike: tuple[str | None, ...] = ()

    def pass_on(self, streams: Mapping[str, Tensor]) -> list[Tensor]:
        """The inputs in the places of the results; zeros for what continues no input."""
        some = next(iter(streams.values()))
        return [
            streams[source] if source in streams else some.new_zeros(streams[like].shape if like in streams else shape)
            for source, like, shape in zip(self.sources, self.alike, self.shapes, strict=True)
        ]

    def added(self, streams: Mapping[str, Tensor], results: list[Tensor]) -> list[Tensor]:
        """What was added to the inputs that the results continue; the result itself where it continues none."""
        return [r if s is None else r - streams[s] for s, r in zip(self.sources, results, strict=True)]

    def onto(self, streams: Mapping[str, Tensor], added: list[Tensor]) -> list[Tensor]:
        """The results from what is added to the inputs of now."""
        return [a if s is None else streams[s] + a for s, a in zip(self.sources, added, strict=True)]


@dataclass(frozen=True)
class Visit:
    """One call of a block: its input streams by name, the tensors that it returned, and how these continue those."""

    block: nn.Module
    streams: dict[str, Tensor]
    parts: list[Tensor]
    passage: Passage


class Links:
    """Which input each result of a block continues, told by what the next block of its class receives.

    That is surer than shapes, which may be alike. A result that arrives there under a name continues the input of that
    name. An input that every block receives as the same object (text, the picture beside a control branch) is
    continued by no result.
    """

    def __init__(self) -> None:
        self._continued: dict[tuple[type[nn.Module], int], dict[int, str]] = {}
        self._still: dict[type[nn.Module], set[str]] = {}
        self._last: Visit | None = None

    def arrive(self, block: nn.Module, streams: Mapping[str, Tensor]) -> None:
        """Before a block's call."""
        last, self._last = self._last, None
        if last is None or type(block) is not type(last.block):
            return
        for index, part in enumerate(last.parts):
            name = next((name for name, stream in streams.items() if stream is part), None)
            if name is not None:
                # by the number of results, too: a last block may return fewer
                self._continued.setdefault((type(block), len(last.parts)), {})[index] = name
        same = {name for name, stream in streams.items() if last.streams.get(name) is stream}
        self._still[type(block)] = self._still.get(type(block), same) & same

    def leave(self, visit: Visit) -> None:
        """After a block's call."""
        self._last = visit

    def rest(self) -> None:
        """The pass is over: hold no tensor."""
        self._last = None

    def told(self, block: nn.Module, passage: Passage) -> Passage:
        """A block's passage as far as links tell it, and else as it was guessed."""
        links = self._continued.get((type(block), len(passage.sources)), {})
        still = self._still.get(type(block), set())
        guessed = [None if source in still else source for source in passage.sources]
        sources = tuple(links.get(i, source) for i, source in enumerate(guessed))
        named = [source for source in sources if source is not None]
        return replace(passage, sources=sources) if len(set(named)) == len(named) else passage


def trace(block: nn.Module, streams: Mapping[str, Tensor], output: Any) -> tuple[Passage, list[Tensor]]:
    """The passage of a block that was just run, and the tensors that it returned.

    Inputs are told apart by shape; two streams of one shape by diffusers' own registry, else they keep their order.
    """
    parts, template = flatten(output)
    free, sources = dict(streams), []
    for index, part in enumerate(parts):
        names = [name for name, stream in free.items() if stream.shape == part.shape]
        told = _registered(block, index, names) if len(parts) > 1 else None
        source = told or next(iter(names), None)
        sources.append(source)
        free.pop(source, None)
    alike = (next((name for name, stream in streams.items() if stream.shape == part.shape), None) for part in parts)
    return Passage(template, tuple(sources), tuple(tuple(p.shape) for p in parts), tuple(alike)), parts


def _registered(block: nn.Module, index: int, names: list[str]) -> str | None:
    """The stream that diffusers' registry says is result ``index`` of this class."""
    try:
        known = TransformerBlockRegistry.get(type(block))
    except (ValueError, KeyError):
        return None
    if known.return_hidden_states_index == index:
        return next((name for name in HIDDEN_NAMES if name in names), None)
    if known.return_encoder_hidden_states_index == index:
        return next((name for name in TEXT_NAMES if name in names), None)
    return None
