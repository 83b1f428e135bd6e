"""A block's stream as a symbol: what the block does to it beside its units, told without computing any of it.

A block that is told the time of each token has a gate, a scale and a shift for each of them. Run on symbols it computes
these, and nothing else: the stream, its norms and what units return have no numbers. Whatever is not known to be a sum
of gated results, or a norm of it, scaled and shifted, is refused (:class:`.selection.Unfit`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .selection import Place, Unfit
from .token_passes import Call

#: a unit's result: its call, and its number among what the unit returned
Part = tuple[Call, int]


@dataclass(frozen=True)
class Meaning:
    """``stream + sum of gate * part`` of each token; or the norm of that, ``norm * scale + shift``.

    Attributes:
        place: where the tokens are among text, whose rows mean nothing.
        tokens: how many there are.
        stream: whether the stream is in it.
        gates: of each part ``[..., D]``, None for 1.
        norm: its kind and ``eps``; None of what is no norm.
        scale, shift: of a norm, None for 1 and 0.
    """

    place: Place
    tokens: int
    stream: bool = True
    gates: Mapping[Part, Tensor | None] = field(default_factory=dict)
    norm: tuple[str, float] | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None


class Symbol(Tensor):
    """A tensor ``[B, length, D]`` without numbers.

    Attributes:
        meaning: what it stands for.
    """

    meaning: Meaning

    @staticmethod
    def of(like: Tensor, meaning: Meaning, dtype: torch.dtype | None = None) -> Symbol:
        """In the shape of ``like``, with the length of ``meaning``."""
        size = like.shape[0], meaning.place.length, like.shape[2]
        made = Tensor._make_wrapper_subclass(Symbol, size, dtype=dtype or like.dtype, device=like.device)
        made.meaning = meaning
        return made

    def but(self, **changed: Any) -> Symbol:
        return Symbol.of(self, replace(self.meaning, **changed))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rule = _RULES.get(func)
        if rule is not None:
            return rule(*args, **(kwargs or {}))
        name = getattr(func, "__name__", str(func))
        if name in _ASKING:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        raise Unfit(f"what {name} makes of its stream is not known")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise Unfit(f"what {func} makes of its stream is not known")


#: what reads attributes, and tells nothing of the numbers
_ASKING = frozenset({"__get__", "__set__", "size", "dim", "is_floating_point", "is_complex", "numel", "__len__"})


def _same(x: Symbol, *to: Any, **more: Any) -> Symbol:
    """The same in another dtype."""
    others = (*to, *more.values())
    like = [t.dtype for t in others if isinstance(t, Tensor)] + [t for t in others if isinstance(t, torch.dtype)]
    return Symbol.of(x, x.meaning, like[0] if like else None)


def _kept(x: Symbol, p: float = 0.5, training: bool = True, inplace: bool = False) -> Symbol:
    if training and p > 0.0:
        raise Unfit("it drops features at random")
    return x


def _add(a: Any, b: Any, *, alpha: float = 1) -> Symbol:
    if alpha != 1:
        raise Unfit("it weighs what it adds")
    if isinstance(a, Symbol) and isinstance(b, Symbol):
        return _sum(a, b)
    x, other = (a, b) if isinstance(a, Symbol) else (b, a)
    if x.meaning.norm is None:
        raise Unfit("it adds something else than results to its stream")
    other, shift = _of_tokens(x, other), x.meaning.shift
    return x.but(shift=other if shift is None else shift + other)


def _sum(a: Symbol, b: Symbol) -> Symbol:
    one, two = a.meaning, b.meaning
    both = one.stream and two.stream, one.norm or two.norm, one.gates.keys() & two.gates.keys()
    if any(both) or one.place != two.place:
        raise Unfit("it does more than adding up results")
    wide = torch.promote_types(a.dtype, b.dtype)
    meaning = replace(one, stream=one.stream or two.stream, gates={**one.gates, **two.gates})
    return Symbol.of(a, meaning, wide)


def _mul(a: Any, b: Any) -> Symbol:
    if isinstance(a, Symbol) and isinstance(b, Symbol):
        raise Unfit("it multiplies its stream with itself")
    x, other = (a, b) if isinstance(a, Symbol) else (b, a)
    meaning, other = x.meaning, _of_tokens(x, other)
    if meaning.norm is not None:
        shift = None if meaning.shift is None else meaning.shift * other
        return x.but(scale=other if meaning.scale is None else meaning.scale * other, shift=shift)
    if meaning.stream:
        raise Unfit("it scales its stream")
    return x.but(gates={part: other if gate is None else gate * other for part, gate in meaning.gates.items()})


def _of_tokens(x: Symbol, value: Any) -> Tensor:
    """A factor or summand of a symbol, without what is for its text."""
    place, tokens = x.meaning.place, x.meaning.tokens
    if not isinstance(value, Tensor):
        return torch.full((1, 1, 1), value, dtype=torch.float32, device=x.device)
    if value.dim() == 3 and place.length > tokens and value.shape[1] == place.length:
        return value.narrow(1, place.offset, tokens)
    return value


def _layer_norm(
    x: Symbol,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Symbol:
    return _normed(x, "layer", shape, weight, bias, eps)


def _rms_norm(x: Symbol, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Symbol:
    return _normed(x, "rms", shape, weight, None, torch.finfo(x.dtype).eps if eps is None else eps)


def _normed(
    x: Symbol, kind: str, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Symbol:
    if not x.meaning.stream or x.meaning.norm is not None or tuple(shape) != (x.shape[2],):
        raise Unfit("it norms something else than its stream")
    return x.but(norm=(kind, eps), scale=weight, shift=bias)


def _cat(tensors: Sequence[Tensor], dim: int = 0) -> Symbol:
    """Text before and behind the tokens."""
    symbols = [i for i, t in enumerate(tensors) if isinstance(t, Symbol)]
    if len(symbols) != 1 or dim not in (1, -2) or any(t.dim() != 3 for t in tensors):
        raise Unfit("it joins its stream with itself, or along another axis")
    x, sizes = tensors[symbols[0]], [t.shape[1] for t in tensors]
    offset = sum(sizes[: symbols[0]]) + x.meaning.place.offset
    return x.but(place=Place(1, offset, sum(sizes)))


def _split(x: Symbol, sizes: int | Sequence[int], dim: int = 0) -> list[Tensor]:
    """Text apart from the tokens."""
    length = x.shape[1]
    if isinstance(sizes, int):
        sizes = [min(sizes, length - start) for start in range(0, length, sizes)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    if dim not in (1, -2):
        raise Unfit("it takes its stream apart")
    return [_rows(x, start, start + size) for start, size in zip(starts, sizes, strict=True)]


def _item(x: Symbol, key: Any) -> Tensor:
    key = key if isinstance(key, tuple) else (key,)
    whole = slice(None)
    if len(key) < 2 or not all(isinstance(k, slice) for k in key) or any(k != whole for k in (key[0], *key[2:])):
        raise Unfit("it takes its stream apart")
    start, stop, step = key[1].indices(x.shape[1])
    if step != 1:
        raise Unfit("it takes its stream apart")
    return _rows(x, start, stop)


def _rows(x: Symbol, start: int, stop: int) -> Tensor:
    """A range of rows: the tokens, perhaps among text, or text alone, which is zeros."""
    place, end = x.meaning.place, x.meaning.place.offset + x.meaning.tokens
    if start <= place.offset and end <= stop:
        return x.but(place=Place(1, place.offset - start, stop - start))
    if stop <= place.offset or end <= start:
        return torch.zeros(x.shape[0], stop - start, x.shape[2], dtype=x.dtype, device=x.device)
    raise Unfit("it takes its stream apart")


_ADDING = (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)
_SCALING = (torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__)
_CASTING = (Tensor.to, Tensor.type_as, Tensor.contiguous, Tensor.clone, torch.clone, Tensor.detach)
_RULES: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys(_ADDING, _add),
    **dict.fromkeys(_SCALING, _mul),
    **dict.fromkeys(_CASTING, _same),
    Tensor.float: lambda x: _same(x, torch.float32),
    Tensor.half: lambda x: _same(x, torch.float16),
    Tensor.bfloat16: lambda x: _same(x, torch.bfloat16),
    F.dropout: _kept,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    torch.cat: _cat,
    torch.split: _split,
    Tensor.split: _split,
    Tensor.split_with_sizes: _split,
    torch.split_with_sizes: _split,
    Tensor.__getitem__: _item,
}
