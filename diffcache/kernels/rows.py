"""Rows on the CPU: taking, putting, normalising, and adding under a gate. Building blocks of the references."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError

#: bytes of the temporary of a gated addition: it stays in cache, and the operators' own cost does not show
CHUNK = 1 << 20


def take(rows: Tensor, index: Tensor | None) -> Tensor:
    """``rows[b, index[b]]``: ``[B, N, ...] -> [B, k, ...]``. One row for all tokens (N = 1), or no index: as it is.

    Args:
        rows: ``[B or 1, N or 1, ...]``.
        index: ``[B or 1, k]``.
    """
    if index is None or rows.shape[1] == 1:
        return rows
    if len(index) == 1:
        return rows.index_select(1, index[0])
    # Sample by sample: it copies whole rows, where gather and advanced indexing go element by element.
    return torch.stack([rows[b % len(rows)].index_select(0, each) for b, each in enumerate(index)])


def put(rows: Tensor, index: Tensor | None, values: Tensor) -> None:
    """``rows[b, index[b]] = values[b]``, in place; all rows without an index."""
    if index is None:
        rows.copy_(values)
    elif len(index) == 1:
        rows.index_copy_(1, index[0].long(), values)
    else:
        samples = torch.arange(len(index), device=rows.device)[:, None]
        rows[samples, index.long()] = values


def normalise(rows: Tensor, rms: bool, weight: Tensor | None, bias: Tensor | None, eps: float, axes: int = 1) -> Tensor:
    """RMSNorm or LayerNorm over the last ``axes`` axes, in fp32; a tensor of its own."""
    shape = rows.shape[-axes:]
    weight = None if weight is None else weight.float().view(shape)
    bias = None if bias is None else bias.float().view(shape)
    if not rms:
        return F.layer_norm(rows.float(), shape, weight, bias, eps)
    normed = F.rms_norm(rows.float(), shape, weight, eps)
    return normed if bias is None else normed.add_(bias)


def wide(rows: Tensor) -> torch.dtype:
    """The dtype in which sums are made: fp32, of fp64 its own."""
    return torch.float64 if rows.dtype == torch.float64 else torch.float32


def add_gated(rows: Tensor, values: Tensor, gate: Tensor | None) -> None:
    """``rows += gate * values`` in place, product and sum in fp32 (fp64), each as a dense block rounds it there.

    Not ``addcmul_``, which rounds once in fp32: a step with all tokens is to equal the dense block bit for bit.

    Args:
        rows, values: ``[B, n, D]``.
        gate: ``[B or 1, n or 1, D]``.
    """
    if gate is None:
        rows.copy_(rows.float().add_(values)) if rows.dtype != torch.float32 else rows.add_(values)
    elif rows.dtype != wide(rows) and rows.dtype == values.dtype == gate.dtype:
        rows.addcmul_(gate, values)
    elif torch.compiler.is_compiling():
        rows.copy_(rows.to(wide(rows)) + gate.to(wide(rows)) * values.to(wide(rows)))
    else:
        step = max(1, min(rows.shape[1], CHUNK // (4 * rows.shape[0] * rows.shape[2])))
        buffer = rows.new_empty((rows.shape[0], step, rows.shape[2]), dtype=wide(rows))
        for start in range(0, rows.shape[1], step):
            part = rows.narrow(1, start, min(step, rows.shape[1] - start))
            gates = gate if gate.shape[1] == 1 else gate.narrow(1, start, part.shape[1])
            product = buffer.narrow(1, 0, part.shape[1])
            torch.mul(values.narrow(1, start, part.shape[1]).to(wide(rows)), gates.to(wide(rows)), out=product)
            part.copy_(product.add_(part)) if part.dtype != wide(rows) else part.add_(product)


def per_row(name: str, value: Tensor | None, x: Tensor) -> Tensor | None:
    """A modulation as ``[B or 1, N or 1, D]``.

    Args:
        value: ``[D]``, ``[B, D]`` (one row a sample), ``[B, 1, D]``, or ``[B, N, D]`` (one row a token).
        x: ``[B, N, D]``.

    Raises:
        ConfigError: any other shape.
    """
    if value is None:
        return None
    shaped = value.view(1, 1, -1) if value.dim() == 1 else value[:, None] if value.dim() == 2 else value
    allowed = ((1, len(x)), (1, x.shape[1]), (x.shape[2],))
    if shaped.dim() != 3 or any(size not in sizes for size, sizes in zip(shaped.shape, allowed, strict=True)):
        b, n, d = x.shape
        known = f"[{d}], [{b}, {d}], [{b}, 1, {d}] or [{b}, {n}, {d}]"
        raise ConfigError(f"{name}: shape {list(value.shape)} is not right, must be {known}")
    return shaped


def target(name: str, out: Tensor | None, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """``out`` if it has the shape, or a new tensor of it.

    Raises:
        ConfigError: ``out`` has another shape.
    """
    if out is None:
        return like.new_empty(shape)
    if tuple(out.shape) != tuple(shape):
        raise ConfigError(f"{name}: shape {list(out.shape)} is not right, must be {list(shape)}")
    return out


def norm_kind(kind: str) -> bool:
    """Whether the norm is RMSNorm.

    Raises:
        ConfigError: neither ``layer`` nor ``rms``.
    """
    if kind not in ("layer", "rms"):
        raise ConfigError(f"kind: '{kind}' is not known, must be 'layer' or 'rms'")
    return kind == "rms"
