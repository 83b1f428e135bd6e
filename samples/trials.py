"""Embedded models sampled under one method after the other: what the comparing scripts share."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from diffcache import accelerated
from diffcache.media.frames import Clip, read_output
from diffcache.media.request import Request
from diffcache.media.runs import generate
from diffcache.media.subject import Subject
from diffcache.methods import MethodConfig
from diffcache.report import fidelity
from diffcache.zoo import list_models, load_pipeline
from diffcache.zoo.loading import WEIGHTS


@dataclass
class Trials:
    """A loaded embedded model, and its dense results so far."""

    model: str
    steps: int = 50
    pipe: Any = None
    _dense: dict[int, Clip] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pipe = load_pipeline(self.model)
        self.pipe.set_progress_bar_config(disable=True)
        self._subject = Subject(self.pipe, list_models()[self.model], WEIGHTS / self.model, Request())

    def arguments(self, seed: int, steps: int | None = None) -> dict[str, Any]:
        """Of the pipeline's call for a seed."""
        return dict(self._subject.call(seed, steps or self.steps).arguments)

    def run(self, config: MethodConfig | str, seed: int, steps: int | None = None) -> tuple[Clip, float]:
        """The decoded result of a seed, and the share of block calls and tokens that was computed."""
        steps = steps or self.steps
        with accelerated(self.pipe, config):
            clip = read_output(generate(self.pipe, self.arguments(seed, steps), seed))
            segments = self.pipe.diffcache.stats().segments
        return clip, statistics.mean(s.token_share for s in segments) * steps / self.steps

    def psnr(self, config: MethodConfig | str, seed: int, steps: int | None = None) -> tuple[float, float]:
        """PSNR in dB of a seed against its dense result, and the work."""
        if seed not in self._dense:
            self._dense[seed] = self.run("none", seed)[0]
        clip, work = self.run(config, seed, steps)
        return fidelity(clip.pixels, self._dense[seed].pixels).psnr, work
