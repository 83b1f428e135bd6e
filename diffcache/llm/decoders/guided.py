"""Guided diffusion: an autoregressive model says how many of the diffusion model's tokens hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ...errors import ConfigError, UnsupportedModelError
from ...methods.checks import check_choice, check_number
from ..state import SequenceState
from .base import Choice, Decoder, Sight

RULES = ("relative", "argmax", "topk", "probability")


@dataclass(frozen=True, kw_only=True)
class Guided(Decoder):
    """Guided diffusion (arXiv 2505.21467): the longest prefix of the draft that the guide agrees with is taken.

    The tokens are the diffusion model's: the guide only counts them. Where it agrees with none, the first is taken.

    Args:
        guide: a causal language model with the same vocabulary.
        rule: when the guide agrees: ``relative`` (among its best ``top``, and at least ``least`` as likely as the
            best), ``argmax`` (its best), ``topk`` (among its best ``top``), ``probability`` (at least ``least``).
        top: number of best tokens.
        least: share of the best one's probability, or a probability.
        chunk: drafted tokens that the guide reads at once.
    """

    name: ClassVar[str] = "guided"

    guide: nn.Module = field(kw_only=True)
    rule: str = "relative"
    top: int = 2
    least: float = 0.5
    chunk: int = 32

    def validate(self) -> None:
        if not hasattr(self.guide, "get_output_embeddings") or self.guide.get_output_embeddings() is None:
            raise UnsupportedModelError(f"guide: {type(self.guide).__name__} is not a causal language model")
        if not getattr(self.guide.config, "is_causal", True):
            raise UnsupportedModelError(f"guide: {type(self.guide).__name__} is a diffusion language model itself")
        check_choice("rule", self.rule, RULES)
        check_number("top", self.top, 1, 10_000, whole=True)
        check_number("least", self.least, 0, 1, whole=False)
        check_number("chunk", self.chunk, 1, 10_000, whole=True)

    def begin(self, state: SequenceState) -> Guidance:
        return Guidance(self, state)

    def select(self, logits: Tensor, tokens: Tensor, open: Tensor, budget: Tensor) -> Tensor:
        raise NotImplementedError("a guided decoder chooses in the generation that it began")

    def agrees(self, logits: Tensor, drafted: Tensor) -> Tensor:
        """Bool ``[n]``: does the guide, whose logits are ``[n, V]``, agree with each token?"""
        own = logits.gather(1, drafted[:, None])[:, 0]
        best = logits.topk(min(self.top, logits.shape[1]), dim=1).values
        if self.rule == "argmax":
            return own >= best[:, 0]
        if self.rule == "topk":
            return own >= best[:, -1]
        if self.rule == "probability":
            return torch.exp(own - logits.logsumexp(1)) >= self.least
        return (own >= best[:, -1]) & (torch.exp(own - best[:, 0]) >= self.least)


class Guidance:
    """Of one generation: what the guide has read of each sequence.

    Attributes:
        forwards, rows: of the guide.
    """

    name, post_steps = Guided.name, 0

    def __init__(self, settings: Guided, state: SequenceState) -> None:
        self.settings = settings
        self.caches = [DynamicCache(config=settings.guide.config) for _ in range(len(state.ids))]
        self.read = [0] * len(state.ids)
        self.forwards = self.rows = 0

    def choose(self, sight: Sight) -> Choice:
        """Of each sample, the longest prefix of its open positions that the guide agrees with; at least one."""
        logits, tokens = self.settings.draft(sight)
        if logits.shape[-1] != self.settings.guide.get_output_embeddings().weight.shape[0]:
            have = self.settings.guide.get_output_embeddings().weight.shape[0]
            raise ConfigError(f"guide: a vocabulary of {have} tokens, the diffusion model has {logits.shape[-1]}")
        transfer = torch.zeros_like(sight.open)
        for sample in range(len(tokens)):
            self._accept(sight, sample, tokens[sample], transfer[sample])
        return Choice(tokens, transfer)

    def _accept(self, sight: Sight, sample: int, tokens: Tensor, transfer: Tensor) -> None:
        state = sight.state
        places = sight.open[sample].nonzero()[:, 0]
        positions = sight.positions.expand(len(sight.open), -1)[sample][places]
        run = int((positions.diff() == 1).int().cumprod(0).sum()) + 1 if len(positions) else 0
        places, start = places[:run], int(positions[0]) if run else 0
        if run and int(state.masked[sample, state.prompt_length : start].sum()):
            raise ConfigError("guide: a masked position lies before those that are decoded now; decode left to right")
        done = 0
        while done < run:
            part = places[done : done + self.settings.chunk]
            before = torch.cat([state.ids[sample, self._first(state, sample) : start], tokens[places[:done]]])
            kept = self._verify(sample, before, tokens[part], least=int(done == 0))
            transfer[part[:kept]] = True
            done += kept
            if kept < len(part):
                return

    @staticmethod
    def _first(state: SequenceState, sample: int) -> int:
        """Where the text begins behind the padding."""
        return 0 if state.padding is None else int((~state.padding[sample]).sum())

    @torch.no_grad()
    def _verify(self, sample: int, text: Tensor, drafted: Tensor, least: int) -> int:
        """How many of the tokens behind ``text`` hold, at least ``least``; the cache keeps what is certain."""
        if len(text) == 0:
            raise ConfigError("input_ids: empty; a guide needs a token before the first one that it judges")
        cache, read = self.caches[sample], self.read[sample]
        fresh = torch.cat([text[read:], drafted[:-1]])[None]
        logits: Any = self.settings.guide(
            input_ids=fresh, cache=cache, use_cache=True, logits_to_keep=len(drafted)
        ).logits[0]
        self.forwards += 1
        self.rows += fresh.shape[1]
        wrong = (~self.settings.agrees(logits.float(), drafted)).nonzero()
        kept = max(int(wrong[0]) if len(wrong) else len(drafted), least)
        if kept < len(drafted):
            cache.crop(kept - len(drafted))
        self.read[sample] = len(text) - 1 + kept
        return kept
