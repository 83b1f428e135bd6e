"""Token indices: which rows a partial step takes, where they go, and whether that is right."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import ConfigError

_checking: ContextVar[bool] = ContextVar("checking", default=False)


@contextlib.contextmanager
def checked() -> Iterator[None]:
    """Inside the block every kernel call reads its indices on the host and refuses duplicates and strays.

    For debugging: it synchronises with the device at each call.
    """
    token = _checking.set(True)
    try:
        yield
    finally:
        _checking.reset(token)


def batched(name: str, index: Tensor | None, batch: int, size: int) -> Tensor | None:
    """``index`` as ``[batch or 1, k]``; checked on the host inside :func:`checked`.

    Raises:
        ConfigError: not integers, or not of shape ``[k]``, ``[1, k]`` or ``[batch, k]`` with k <= size.
    """
    if index is None:
        return None
    index = index[None] if index.dim() == 1 else index
    if index.dtype not in (torch.int32, torch.int64):
        raise ConfigError(f"{name}: {index.dtype} is not an index, must be torch.int32 or torch.int64")
    if index.dim() != 2 or len(index) not in (1, batch) or index.shape[1] > size:
        raise ConfigError(
            f"{name}: shape {list(index.shape)} is not right, must be [k], [1, k] or [{batch}, k] with k <= {size}"
        )
    if not torch.compiler.is_compiling() and _checking.get():
        check_index(name, index, size)
    return index


def check_index(name: str, index: Tensor, size: int) -> None:
    """Read an index ``[..., k]`` on the host.

    Raises:
        ConfigError: an entry outside ``[0, size)``, or one that is there twice in a row.
    """
    for row, entries in enumerate(index.reshape(-1, index.shape[-1]).tolist()):
        stray = next((i for i in entries if not 0 <= i < size), None)
        if stray is not None:
            raise ConfigError(f"{name}: {stray} (row {row}) is out of range, must be from 0 to {size - 1}")
        seen = sorted(entries)
        twice = next((a for a, b in pairwise(seen) if a == b), None)
        if twice is not None:
            raise ConfigError(f"{name}: {twice} (row {row}) is there twice, must be distinct")


def inverse(index: Tensor, size: int) -> Tensor:
    """``inv[b, index[b, r]] = r``, -1 elsewhere: ``[B, k] -> [B, size]`` int32."""
    ranks = torch.arange(index.shape[1], dtype=torch.int32, device=index.device)
    full = torch.full((len(index), size), -1, dtype=torch.int32, device=index.device)
    return full.scatter_(1, index.long(), ranks.expand_as(index))


def ascending(index: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The same tokens in ascending order without a sort, and their inverse.

    Ascending rows are read in memory order, and results do not depend on how a ranking breaks ties.

    Args:
        index: ``[B, k]`` distinct tokens in any order.
        size: tokens in all.

    Returns:
        ``[B, k]`` and ``[B, size]`` (-1 where not chosen), int32.
    """
    marked = torch.zeros(len(index), size, dtype=torch.int32, device=index.device).scatter_(1, index.long(), 1)
    inv = torch.where(marked > 0, marked.cumsum(1, dtype=torch.int32) - 1, -1)
    tokens = torch.arange(size, dtype=torch.int32, device=index.device).expand_as(inv)
    # Tokens that are not chosen go to one place more than there are, which is dropped.
    places = torch.where(inv < 0, index.shape[1], inv).long()
    out = torch.empty(len(index), index.shape[1] + 1, dtype=torch.int32, device=index.device)
    return out.scatter_(1, places, tokens)[:, :-1], inv
