"""The units of sites ``block`` and ``module``, found by inspection."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from ..errors import UnsupportedModelError
from .anatomy import find_block_lists

#: kinds of unit: a whole block; self-attention (over all tokens or within a frame, or to a stream that moves as well),
#: attention across frames, attention to the text; feed-forward; and attention and feed-forward in one
KINDS = ("block", "spatial", "temporal", "cross", "feedforward", "fused")


def unit_kinds(site: str) -> frozenset[str]:
    """All kinds that a site has."""
    if site not in ("block", "module"):
        return frozenset()
    return frozenset({"block"} if site == "block" else set(KINDS) - {"block"})


_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_SELF = re.compile(r"self", re.IGNORECASE)
_CROSS = re.compile(r"cross", re.IGNORECASE)
# Attention of one modality to another one that is denoised, too (LTX2, Kandinsky 6): no text.
_BETWEEN = re.compile(r"^(va|av)_|_to_", re.IGNORECASE)
_FEED_FORWARD = re.compile(
    r"^(ff|ffn|mlp|feed_?forward|moe|transition$)|(_ff|_ffn|_mlp|_feed_forward)$|^dense.*dense$", re.IGNORECASE
)
#: parts that stand in the block itself: kind, the last one, those whose results only that one reads
_JOINED: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("fused", "proj_out", ("attn", "proj_mlp", "act_mlp")),  # Flux's single blocks
    ("feedforward", "down_proj", ("gate_proj", "up_proj", "mlp_act")),  # PRX
    ("feedforward", "ff_out", ("ff_in",)),  # MiniMax Music
)
#: what a block computes for its attention alone
_FEEDS_ATTENTION = ("encoder_proj",)  # Nucleus: the text


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


def find_units(model: nn.Module, site: str, kinds: frozenset[str]) -> list[Unit]:
    """The units of a denoiser for site ``block`` or ``module``, in order of registration.

    Raises:
        UnsupportedModelError: it has none of the wanted kinds; the message says which it has.
    """
    units = [
        unit for list_name, blocks in find_block_lists(model).items() for unit in _units(list_name, blocks, site, kinds)
    ]
    found = list({id(unit.module): unit for unit in units if unit.kind in kinds}.values())  # a shared one once
    if not found:
        known = ", ".join(sorted({unit.kind for unit in units})) or "none"
        raise UnsupportedModelError(
            f"site {site}: {type(model).__name__} has no module of kind {', '.join(sorted(kinds))}; it has: {known}"
        )
    return found


def first_attention(block: nn.Module) -> nn.Module | None:
    """The attention that comes first in a block, or None."""
    return next((part.module for part in _parts(block) if part.kind != "feedforward"), None)


def _units(list_name: str, blocks: nn.Module, site: str, kinds: frozenset[str]) -> Iterator[Unit]:
    for index, block in enumerate(blocks):
        name = f"{list_name}.{index}"
        # a list of attentions (face adapters): what they return is added outside
        adapter = _is_attention(list_name, block) and not any(_parts(block))
        if site == "block":
            yield Unit(name, block, "block", residual=not adapter)
        elif adapter:
            yield Unit(name, block, _kind((list_name, type(block).__name__), block))
        else:
            yield from _module_units(name, block, "temporal" in list_name, kinds)


def _module_units(name: str, block: nn.Module, temporal: bool, kinds: frozenset[str]) -> Iterator[Unit]:
    joined = [unit for unit in _joined(name, block) if unit.kind in kinds]
    yield from joined
    taken = {id(m) for unit in joined for m in (unit.module, *unit.feeders)}
    feeds = tuple(child for child_name, child in block.named_children() if child_name in _FEEDS_ATTENTION)
    for part in _parts(block):
        if id(part.module) in taken:
            continue
        kind = "temporal" if temporal and part.kind == "spatial" else part.kind
        yield Unit(f"{name}.{part.path}", part.module, kind, () if kind == "feedforward" else feeds)


def _joined(name: str, block: nn.Module) -> Iterator[Unit]:
    """Units that a block holds as single projections: all but activations, which may be functions, must be there."""
    children = dict(block.named_children())
    for kind, last, feeders in _JOINED:
        if {last, *(f for f in feeders if "act" not in f)} <= set(children):
            yield Unit(f"{name}.{last}", children[last], kind, tuple(children[f] for f in feeders if f in children))


@dataclass(frozen=True)
class _Part:
    path: str
    module: nn.Module
    kind: str


def _parts(block: nn.Module, path: str = "", names: tuple[str, ...] = ()) -> Iterator[_Part]:
    """Attention and feed-forward modules, in order; of one that holds another (T5's layers) the inner one."""
    for name, child in block.named_children():
        here, chain = f"{path}{name}", (*names, name, type(child).__name__)
        if "norm" in name:
            continue
        inner = list(_parts(child, f"{here}.", chain))
        if inner:
            yield from inner
        elif _is_attention(name, child) or _is_feed_forward(name, child):
            yield _Part(here, child, _kind(chain, child))


def _is_attention(name: str, module: nn.Module) -> bool:
    computes = any(True for _ in module.parameters())
    return computes and "norm" not in name and bool(_ATTENTION.search(f"{name} {type(module).__name__}"))


def _is_feed_forward(name: str, module: nn.Module) -> bool:
    return bool(_FEED_FORWARD.search(name)) and any(isinstance(m, (nn.Linear, nn.Conv2d)) for m in module.modules())


def _kind(names: tuple[str, ...], module: nn.Module) -> str:
    """The kind of a module, by its own and its parents' names and classes, outermost first."""
    *_, name, class_name = names
    if _is_feed_forward(name, module) and not _ATTENTION.search(f"{name} {class_name}"):
        return "feedforward"
    if any("mlp" in child for child, _ in module.named_children()):
        return "fused"  # Flux 2's parallel attention
    if _crosses(names, module):
        return "cross"
    return "temporal" if "temporal" in name else "spatial"


def _crosses(names: tuple[str, ...], module: nn.Module) -> bool:
    if any(_BETWEEN.search(name) for name in names) or _SELF.search(names[-2]):
        return False
    if any(_CROSS.search(name) for name in names):
        return True
    known = getattr(module, "is_cross_attention", None)
    return "attn2" in names[-2] if known is None else bool(known)
