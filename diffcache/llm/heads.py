"""Which heads compute attention outside the block at every step: measured once, kept in a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ScheduleFileError
from ..schedules.calibration import Calibration, Expert, Identity
from ..schedules.files import read_calibration, write_calibration

METHOD = "flashblock"


@dataclass(frozen=True, eq=False)
class HeadMask:
    """``recompute[layer, step, head]``: whether the head computes its part outside the block at that step.

    Attributes:
        recompute: bool ``[L, S, H]``; steps beyond the last one are like the last one.
        model_class: of the model that it was measured on.
        runs: generations that were measured.
        facts: what it holds for, by name: ``over`` and ``block_length`` where they are known.
    """

    recompute: Tensor
    model_class: str
    runs: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
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
        """Share of heads and steps that compute, of those behind the first step, which always does."""
        return float(self.recompute[:, 1:].float().mean()) if self.recompute.shape[1] > 1 else 1.0

    def calibration(self) -> Calibration:
        """As every calibration is kept."""
        layers, steps, heads = self.recompute.shape
        identity = Identity(self.model_class, {"layers": layers, "heads": heads})
        note = "every head computes at every step, so that nothing is saved" if self.share == 1.0 else ""
        numbers, quality = {"recompute": self.recompute.float()}, {"share": self.share}
        expert = Expert(identity, steps, (), numbers, quality, note, dict(self.facts))
        return Calibration(METHOD, None, steps, self.runs, {"model": expert})

    def save(self, path: str | Path) -> None:
        """Write a schedule file, as ``diffcache calibrate`` does; raises ScheduleFileError where it cannot."""
        write_calibration(self.calibration(), path)


def load_heads(path: str | Path, model: Any, **here: Any) -> HeadMask:
    """Read what :meth:`HeadMask.save` or ``diffcache calibrate --method flashblock`` wrote.

    Args:
        model: that it must belong to.
        here: what its facts must agree with, where it has them.

    Raises:
        ScheduleFileError: not readable, or made for another method, model or kind of generation.
    """
    found = read_calibration(path, METHOD)
    found.check_method(METHOD)
    settings = dict(zip(("layers", "heads"), sizes(model)))
    found.check_models({"model": Identity(type(model).__name__, settings)})
    expert = found.expert("model")
    recompute = expert.numbers.get("recompute")
    if recompute is None or recompute.shape != (settings["layers"], found.steps, settings["heads"]):
        raise ScheduleFileError(f"{path}: damaged: no mask [layers, steps, heads] in it")
    for name in here.keys() & expert.facts.keys():
        if expert.facts[name] != here[name]:
            raise ScheduleFileError(
                f"{path}: {name}: made for {expert.facts[name]}, but here it is {here[name]}; make one for this with: "
                "diffcache calibrate"
            )
    return HeadMask(recompute.bool(), expert.identity.model, found.runs, expert.facts)


def sizes(model: Any) -> tuple[int, int]:
    """Layers and heads of a language model, or of a video model of diffusers."""
    config = getattr(model.config, "text_config", model.config)
    layers = config.num_layers if hasattr(config, "num_layers") else config.num_hidden_layers
    return layers, config.num_attention_heads


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
