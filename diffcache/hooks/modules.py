"""The units of sites ``block`` and ``module``, found by inspection."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..errors import UnsupportedModelError
from .anatomy import find_block_lists

#: kinds of unit: a whole block; self-attention (over all tokens or within a frame), attention across frames, attention
#: to the text; feed-forward; and a block that does attention and feed-forward in one
KINDS = ("block", "spatial", "temporal", "cross", "feedforward", "fused")


def unit_kinds(site: str) -> frozenset[str]:
    """All kinds that a site has."""
    if site not in ("block", "module"):
        return frozenset()
    return frozenset({"block"} if site == "block" else set(KINDS) - {"block"})


_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_CROSS = re.compile(r"attn2|cross", re.IGNORECASE)
_FEED_FORWARD = re.compile(r"^(ff|ffn|mlp|feed_?forward|moe)|(_ff|_ffn|_mlp|_feed_forward)$|^ff_", re.IGNORECASE)


@dataclass(frozen=True)
class Unit:
    """One cached part of a denoiser.

    Attributes:
        name: dotted name in the denoiser.
        module: whose result is cached.
        kind: one of :data:`KINDS`.
        feeders: modules that need not run when the unit's result is predicted, because only the unit reads theirs.
        residual: whether the value is the difference to the input, stream by stream.
    """

    name: str
    module: nn.Module
    kind: str
    feeders: tuple[nn.Module, ...] = field(default=())
    residual: bool = False

    def stored(self, results: list[Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """What is kept of the module's results."""
        if not self.residual:
            return results
        return [r if i is None else r - i for r, i in zip(results, _origins(results, args, kwargs), strict=True)]

    def restored(self, values: list[Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The module's results from predicted values."""
        if not self.residual:
            return values
        return [v if i is None else i + v for v, i in zip(values, _origins(values, args, kwargs), strict=True)]


def find_units(model: nn.Module, site: str, kinds: frozenset[str]) -> list[Unit]:
    """The units of a denoiser for site ``block`` or ``module``, in order of registration.

    Raises:
        UnsupportedModelError: it has none of the wanted kinds; the message says which it has.
    """
    units = [unit for list_name, blocks in find_block_lists(model).items() for unit in _units(list_name, blocks, site)]
    found = [unit for unit in units if unit.kind in kinds]
    if not found:
        known = ", ".join(sorted({unit.kind for unit in units})) or "none"
        raise UnsupportedModelError(
            f"site {site}: {type(model).__name__} has no module of kind {', '.join(sorted(kinds))}; it has: {known}"
        )
    return found


def first_attention(block: nn.Module) -> nn.Module | None:
    """The attention that comes first in a block, or None."""
    return next((module for path, module in _topmost(block) if _is_attention(path.rsplit(".", 1)[-1], module)), None)


def _units(list_name: str, blocks: nn.Module, site: str) -> Iterator[Unit]:
    for index, block in enumerate(blocks):
        name = f"{list_name}.{index}"
        if site == "block":
            yield Unit(name, block, "block", residual=True)
        else:
            yield from _module_units(name, block, temporal="temporal" in list_name)


def _module_units(name: str, block: nn.Module, temporal: bool) -> Iterator[Unit]:
    fused = _fused(name, block)
    if fused is not None:
        yield fused
        return
    for path, module in _topmost(block):
        kind = _kind(path, module, temporal)
        if kind is not None:
            yield Unit(f"{name}.{path}", module, kind)


def _topmost(block: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Attention and feed-forward modules of a block, not looking inside them."""
    for name, child in block.named_children():
        path = f"{prefix}{name}"
        if _is_attention(name, child) or _is_feed_forward(name, child):
            yield path, child
        elif "norm" not in name:
            yield from _topmost(child, f"{path}.")


def _is_attention(name: str, module: nn.Module) -> bool:
    computes = any(True for _ in module.parameters())
    return computes and "norm" not in name and bool(_ATTENTION.search(type(module).__name__))


def _is_feed_forward(name: str, module: nn.Module) -> bool:
    return bool(_FEED_FORWARD.search(name)) and any(isinstance(m, (nn.Linear, nn.Conv2d)) for m in module.modules())


def _kind(path: str, module: nn.Module, temporal: bool) -> str | None:
    name = path.rsplit(".", 1)[-1]
    if _is_feed_forward(name, module) and not _is_attention(name, module):
        return "feedforward"
    crossing = getattr(module, "is_cross_attention", None)
    if crossing or (crossing is None and _CROSS.search(name)):
        return "cross"
    return "temporal" if temporal or "temporal" in name else "spatial"


def _fused(name: str, block: nn.Module) -> Unit | None:
    """A block that joins attention and a widened projection in one output projection (Flux's single blocks)."""
    children = dict(block.named_children())
    if not {"attn", "proj_mlp", "proj_out"} <= set(children):
        return None
    feeders = [children[n] for n in ("attn", "proj_mlp", "act_mlp") if n in children]
    return Unit(f"{name}.proj_out", children["proj_out"], "fused", tuple(feeders))


def _origins(results: list[Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor | None]:
    """The input stream that each result continues: the first unused tensor argument of its shape."""
    inputs = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
    # Two streams of one shape come back in the order of diffusers' block registry, or as they went in.
    origins: list[Tensor | None] = []
    for result in results:
        match = next((i for i, t in enumerate(inputs) if t.shape == result.shape), None)
        origins.append(None if match is None else inputs.pop(match))
    return origins
