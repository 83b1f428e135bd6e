"""Which heads compute attention outside the block at every step: measured once, kept in a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import ScheduleFileError


@dataclass(frozen=True, eq=False)
class HeadMask:
    """``recompute[layer, step, head]``: whether the head computes its part outside the block at that step.

    Attributes:
        recompute: bool ``[L, S, H]``; steps beyond the last one are like the last one.
        model_class: of the model that it was measured on.
    """

    recompute: Tensor
    model_class: str
    _lists: dict[Any, dict[int, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def of(self, step: int, device: torch.device | str) -> dict[int, Tensor]:
        """Layer -> heads that compute, int64 on ``device`` (at step ``step`` of a block); made once."""
        step = min(step, self.recompute.shape[1] - 1)
        if (step, device) not in self._lists:
            at = self.recompute[:, step].cpu()
            self._lists[step, device] = {layer: h.nonzero()[:, 0].to(device) for layer, h in enumerate(at)}
        return self._lists[step, device]

    @property
    def share(self) -> float:
        """Share of heads and steps that compute."""
        return float(self.recompute.float().mean())

    def save(self, path: str | Path) -> None:
        """Write a safetensors file."""
        save_file({"recompute": self.recompute.to(torch.uint8).cpu()}, str(path), {"model_class": self.model_class})


def load_heads(path: str | Path, model: Any) -> HeadMask:
    """Read what :meth:`HeadMask.save` wrote.

    Raises:
        ScheduleFileError: not readable, or made for another model.
    """
    try:
        with safe_open(str(path), "pt") as file:
            recompute, made = file.get_tensor("recompute").bool(), (file.metadata() or {}).get("model_class", "")
    except (OSError, SafetensorError, KeyError) as error:
        raise ScheduleFileError(f"{path}: not readable as a mask of heads: {error}") from error
    config = getattr(model.config, "text_config", model.config)
    shape = (config.num_hidden_layers, config.num_attention_heads)
    if made != type(model).__name__ or (recompute.shape[0], recompute.shape[2]) != shape:
        raise ScheduleFileError(
            f"{path}: made for {made} with {recompute.shape[0]} layers of {recompute.shape[2]} heads, "
            f"this is {type(model).__name__} with {shape[0]} of {shape[1]}"
        )
    return HeadMask(recompute, made)


class HeadListener:
    """Hears attention outside the block at every step of a block, and compares it with what is kept of it.

    FlashBlock's rule: with ``c`` the mean cosine similarity of ``A_out`` and ``delta`` the mean difference of its
    log-sum-exp, a head recomputes if ``c < similarity`` or ``delta > shift``; one that does renews what is kept.

    Args:
        layers, heads, steps: sizes of the mask.
        similarity, shift: limits.
    """

    def __init__(self, layers: int, heads: int, steps: int, similarity: float, shift: float) -> None:
        self.similarity, self.shift = similarity, shift
        self.alike = torch.zeros(layers, steps, heads)
        self.moved = torch.zeros(layers, steps, heads)
        self.count = torch.zeros(layers, steps, 1)
        self.step = 0
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def begin(self) -> None:
        """A block begins: what is kept of another one is of no use."""
        self._kept = {}

    def hear(self, layer: int, out: Tensor, lse: Tensor) -> None:
        """``out`` ``[B, H, b, d]`` and ``lse`` ``[B, H, b]`` of this step."""
        if layer not in self._kept:
            self._kept[layer] = out.clone(), lse.clone()
            return
        kept, kept_lse = self._kept[layer]
        alike = torch.nn.functional.cosine_similarity(out, kept, dim=-1).mean((0, 2)).cpu()
        moved = (lse - kept_lse).abs().mean((0, 2)).cpu()
        step = min(self.step, self.alike.shape[1] - 1)
        self.alike[layer, step] += alike
        self.moved[layer, step] += moved
        self.count[layer, step] += 1
        renew = ((alike < self.similarity) | (moved > self.shift)).nonzero()[:, 0].to(out.device)
        kept.index_copy_(1, renew, out.index_select(1, renew))
        kept_lse.index_copy_(1, renew, lse.index_select(1, renew))

    def mask(self) -> Tensor:
        """Bool ``[L, S, H]``; a step that was never seen recomputes."""
        seen = self.count.clamp(min=1.0)
        recompute = (self.alike / seen < self.similarity) | (self.moved / seen > self.shift)
        return recompute | (self.count == 0)
