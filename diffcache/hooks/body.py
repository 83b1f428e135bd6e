"""Site ``body``: the residual over all blocks, from the input of the first one to the input of the final norm.

The boundary lies at model level, so it stays right where the model adds something between its blocks (ControlNet,
face adapters). The final module is not guessed from names: it is the first module outside the blocks that receives
the last block's result, found while a computed step runs, and compared value by value once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.hooks import ModelHook
from diffusers.hooks._helpers import TransformerBlockRegistry
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from .attach import HOOK_NAME, attach, detach

_EXIT_NAME = f"{HOOK_NAME}_exit"
_BLOCK_NAME = f"{HOOK_NAME}_block"


class Captured:
    """What one computed step showed of the body."""

    def __init__(self) -> None:
        self.first: tuple[Tensor, ...] | None = None
        self.exit: Tensor | None = None

    def residual(self) -> Tensor:
        """Input of the final module minus what stands there when no block changes anything."""
        return self.exit - self.base(self.first)

    def base(self, first: tuple[Tensor, ...]) -> Tensor:
        """The body's input arranged like the final module's input: hidden, [text, hidden] or [hidden, text]."""
        for candidate in _arrangements(first):
            if candidate.shape == self.exit.shape:
                return candidate.to(self.exit.dtype)
        raise UnsupportedModelError(
            f"site body: the blocks take {[tuple(t.shape) for t in first]} and the final norm {tuple(self.exit.shape)}"
        )


def _arrangements(streams: tuple[Tensor, ...]) -> list[Tensor]:
    hidden, *text = streams
    if not text:
        return [hidden]
    # Text comes first in every diffusers model that joins the streams after its blocks.
    return [hidden, torch.cat([text[0], hidden], dim=1)]


class BodySite:
    """Hooks on the blocks and on the final module of one denoiser."""

    def __init__(self, block_lists: Mapping[str, nn.ModuleList], model: nn.Module) -> None:
        self.model = model
        self.blocks = [block for blocks in block_lists.values() for block in blocks]
        self.exit: nn.Module | None = None
        self._captured: Captured | None = None
        self._replay: Tensor | None = None

    @property
    def known(self) -> bool:
        """Whether the final module was found."""
        return self.exit is not None

    def install(self) -> None:
        for i, block in enumerate(self.blocks):
            attach(block, _BlockHook(self, i == 0), _BLOCK_NAME)

    def uninstall(self) -> None:
        for block in self.blocks:
            detach(block, _BLOCK_NAME)
        if self.exit is not None:
            detach(self.exit, _EXIT_NAME)
            self.exit = None

    @contextmanager
    def capturing(self) -> Iterator[Captured]:
        """Within: a forward pass runs in full and shows its body."""
        self._captured = Captured()
        finder = None if self.known else _ExitFinder(self.model, self.blocks)
        try:
            if finder is not None:
                finder.install()
            yield self._captured
        finally:
            captured, self._captured = self._captured, None
            if finder is not None:
                finder.remove()
        if finder is not None:
            self._adopt(finder, captured)

    def _adopt(self, finder: _ExitFinder, captured: Captured) -> None:
        if finder.module is None:
            raise UnsupportedModelError(
                f"site body: {type(self.model).__name__} passes its blocks' result to no module"
            )
        self.exit, captured.exit = finder.module, finder.value
        attach(self.exit, _ExitHook(self), _EXIT_NAME)

    @contextmanager
    def replaying(self, residual: Tensor) -> Iterator[None]:
        """Within: blocks pass their inputs on, and the final module receives the body's input plus ``residual``."""
        self._replay, self._first = residual, None
        try:
            yield
        finally:
            self._replay, self._first = None, None

    # -- called by the hooks ---------------------------------------------------------------------------------------

    def at_block(self, streams: tuple[Tensor, ...], first: bool) -> bool:
        """Note the first block's input; True if the block is to be skipped."""
        if first and self._captured is not None:
            self._captured.first = streams
        if first and self._replay is not None:
            self._first = streams
        return self._replay is not None

    def at_exit(self, value: Tensor) -> Tensor:
        """Capture the final module's input, or replace it."""
        if self._captured is not None:
            self._captured.exit = value
        if self._replay is None:
            return value
        base = next(c for c in _arrangements(self._first) if c.shape == self._replay.shape)
        return (base + self._replay.to(base.dtype)).to(value.dtype)


class _BlockHook(ModelHook):
    """Passes a block's streams through unchanged while a residual is replayed."""

    def __init__(self, site: BodySite, first: bool) -> None:
        super().__init__()
        self.site, self.first = site, first
        self.order: tuple[int, ...] | None = None

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        streams = _streams(args, kwargs)
        if self.site.at_block(streams, self.first):
            return self._identity(streams)
        output = self.fn_ref.original_forward(*args, **kwargs)
        if self.order is None:
            self.order = _order(module, streams, output)
        return output

    def _identity(self, streams: tuple[Tensor, ...]) -> Any:
        if self.order is None or self.order == (-1,):
            return streams[0]
        return tuple(streams[i] for i in self.order)


class _ExitHook(ModelHook):
    """The final module: where the body ends."""

    def __init__(self, site: BodySite) -> None:
        super().__init__()
        self.site = site

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (self.site.at_exit(args[0]), *args[1:]), kwargs
        name = next(k for k, v in kwargs.items() if isinstance(v, Tensor))
        return args, {**kwargs, name: self.site.at_exit(kwargs[name])}


class _ExitFinder:
    """Watches one forward pass for the first module after the last block that receives the blocks' result.

    A module that receives exactly that value is sure; where the model adds something first (ControlNet after the last
    block), the first module that receives a tensor of that shape is taken.
    """

    def __init__(self, model: nn.Module, blocks: list[nn.Module]) -> None:
        inside = {id(m) for block in blocks for m in block.modules()}
        self._watched = [m for m in model.modules() if m is not model and id(m) not in inside]
        self._last = blocks[-1]
        self._results: list[Tensor] | None = None
        self._handles: list[Any] = []
        self.module: nn.Module | None = None
        self.value: Tensor | None = None
        self._sure = False

    def install(self) -> None:
        self._handles = [m.register_forward_pre_hook(self._before, with_kwargs=True) for m in self._watched]
        self._handles.append(self._last.register_forward_hook(self._after_last))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _after_last(self, module: nn.Module, args: Any, output: Any) -> None:
        results = [output] if isinstance(output, Tensor) else [t for t in output if isinstance(t, Tensor)]
        joined = [torch.cat(pair, dim=1) for pair in _joinable(results)]
        self._results = [*results, *joined]

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._results is None or self._sure:
            return
        value = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        alike = [result for result in self._results if value is not None and value.shape == result.shape]
        sure = any(_equal(value, result) for result in alike)
        if sure or (alike and self.module is None):
            self.module, self.value, self._sure = module, value, sure


def _joinable(results: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    if len(results) != 2 or results[0].dim() != 3 or results[0].shape[::2] != results[1].shape[::2]:
        return []
    return [(results[0], results[1]), (results[1], results[0])]


def _equal(value: Tensor, result: Tensor) -> bool:
    return torch.allclose(value, result.to(value.dtype), rtol=0.0, atol=0.0, equal_nan=True)


_HIDDEN_NAMES = ("hidden_states", "x", "sample", "image", "img")
_TEXT_NAMES = ("encoder_hidden_states", "context", "text", "txt")


def _streams(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """(hidden, text) or (hidden,) of a block call."""
    hidden = next((kwargs[n] for n in _HIDDEN_NAMES if isinstance(kwargs.get(n), Tensor)), None)
    rest = args
    if hidden is None:
        hidden, rest = args[0], args[1:]
    text = next((kwargs[n] for n in _TEXT_NAMES if isinstance(kwargs.get(n), Tensor)), None)
    if text is None:
        text = next((a for a in rest[:1] if isinstance(a, Tensor) and a.dim() == hidden.dim()), None)
    return (hidden,) if text is None else (hidden, text)


def _order(block: nn.Module, streams: tuple[Tensor, ...], output: Any) -> tuple[int, ...]:
    """Which stream each part of a block's output continues (0 hidden, 1 text); (-1,) for a lone tensor."""
    if isinstance(output, Tensor):
        return (-1,)
    parts = [t for t in output if isinstance(t, Tensor)]
    if len(parts) == 1 or len(streams) == 1:
        return (0,) * len(parts)
    registered = _registered_order(block)
    if registered is not None:
        return registered
    hidden, text = streams
    if hidden.shape[1] == text.shape[1]:
        raise UnsupportedModelError("site body: image and text have the same number of tokens, the order is ambiguous")
    return tuple(0 if part.shape[1] == hidden.shape[1] else 1 for part in parts)


def _registered_order(block: nn.Module) -> tuple[int, ...] | None:
    """What diffusers' own registry says of a block's return value, if it knows the class."""
    try:
        known = TransformerBlockRegistry.get(type(block))
    except (ValueError, KeyError):
        return None
    if known.return_encoder_hidden_states_index is None:
        return None
    return (0, 1) if known.return_hidden_states_index == 0 else (1, 0)
