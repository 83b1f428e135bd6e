"""FlashBlock's calibration: which heads of a language model must compute attention outside the block at which step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..errors import ConfigError
from ..methods.checks import check_number
from ..schedules.calibration import Calibration, Expert
from .calibrator import Calibrator, Call, Facts, Progress, check_whole


@dataclass(frozen=True)
class HeadCalibrator(Calibrator):
    """The mask of :func:`diffcache.llm.calibrate_heads` (arXiv 2602.05305, section 3.3).

    Args:
        similarity: least mean cosine similarity of a head's part outside with the one that is kept, in [-1, 1].
        shift: largest mean change of its log-sum-exp, >= 0.
        steps: steps of a block that are told apart; later ones are like the last.
        gen_length: new tokens of each generation.
        block_length: of a block; None: the model's own, or 32.
        threshold: of the decoder, in [0, 1]; that of the generations that the mask is for.
    """

    method: ClassVar[str] = "flashblock"
    measures: ClassVar[str] = "how attention outside the block, of each head of a language model, moves within a block"
    seeds: ClassVar[str] = "0,60,120,180"

    similarity: float = 0.85
    shift: float = 0.05
    steps: int = 8
    gen_length: int = 128
    block_length: int | None = None
    threshold: float = 0.9

    def __post_init__(self) -> None:
        check_number("similarity", self.similarity, -1.0, 1.0, whole=False)
        check_number("shift", self.shift, 0.0, 1e6, whole=False)
        check_number("threshold", self.threshold, 0.0, 1.0, whole=False)
        for name in ("steps", "gen_length"):
            check_whole(name, getattr(self, name), 1)
        if self.block_length is not None:
            check_whole("block_length", self.block_length, 1)

    def measure(self, pipe: Any, calls: Sequence[Call], progress: Progress | None, kept: Path | None) -> Calibration:
        """The numbers of a language model; each call is ``{"input_ids": [B, P]}``."""
        from ..llm import Threshold, calibrate_heads  # transformers is needed there alone

        if not all(isinstance(call, dict) and "input_ids" in call for call in calls):
            raise ConfigError("calls: of a language model each must be {'input_ids': token ids [batch, length]}")

        def told(number: int, state: Any) -> None:
            if progress is None:
                return
            label, left = f"generation {number + 1}/{len(calls)}", int(state.open[0].sum())
            for done in (0, self.gen_length - left) if state.step == 0 else (self.gen_length - left,):
                progress(label, done, self.gen_length)

        mask = calibrate_heads(
            pipe, [call["input_ids"] for call in calls], gen_length=self.gen_length, similarity=self.similarity,
            shift=self.shift, steps=self.steps, decoder=Threshold(threshold=self.threshold), on_step=told,
            block_length=self.block_length,
        )  # fmt: skip
        return mask.calibration()

    def describe(self, expert: Expert) -> Facts:
        recompute = expert.numbers["recompute"]
        by_step = ", ".join(f"{share:.0%}" for share in recompute.mean((0, 2)).tolist())
        return [
            ("rows", f"over {expert.facts.get('over')}, blocks of {expert.facts.get('block_length')}"),
            ("heads that compute", f"{expert.quality['share']:.1%} behind the first step"),
            ("at each step", by_step),
        ]
