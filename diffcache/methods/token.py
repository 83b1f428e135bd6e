"""Methods that recompute some tokens at the steps between two full ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from ..hooks.modules import unit_kinds
from ..hooks.recipe import LAYOUTS, Recipe
from ..predictors import Taylor
from ..schedules import NEVER, Interval
from ..schedules.selectors import SCORES, Selector
from .base import MethodConfig
from .checks import check_as_it_is, check_choice, check_number


@dataclass(frozen=True, kw_only=True)
class TokenConfig(MethodConfig):
    """What ``toca`` and ``duca`` share: one step in ``interval`` is computed in full, the others for some tokens.

    Memory of one branch: over attention and feed-forward modules the sum of ``numel(results) * element_size``, and of
    ``numel(keys) + numel(values)`` of each attention among the tokens; ``score="input"`` adds the hidden stream.

    Args:
        interval: distance between full steps, >= 1.
        keep: share of the tokens that a partial step recomputes, in [0, 1], before the factors below.
        depth: how much more the first blocks recompute than the last ones, in [-1, 1].
        attention, cross, feedforward: factors of self-attention, attention to the text, feed-forward (and of attention
            and feed-forward in one); 0 leaves that kind as it was at the last full step.
        score: what tokens are ranked by: ``input``, ``value`` or ``random``.
        age_weight: weight of a token's age beside its score.
        oldest: age at which a token is recomputed whatever it scores; 0 for no bound.
        bonus: added, as a share of itself, to the best score of each ``window x window`` tokens of a frame, so that the
            chosen are spread over the picture (ToCa: 0.4 to 0.6); 0 for none. Needs a denoiser that returns pictures.
        window: see there, >= 2.
        layout: of the hidden stream at partial steps: ``ranked``, put in the order of the ranking once, so that what is
            computed is a prefix of it; or ``dense``, in the order of the tokens, with an index for each module.
    """

    warmup: int = 3
    max_skip: int = 64
    interval: int = 3
    keep: float = 0.3
    depth: float = 0.0
    attention: float = 1.0
    cross: float = 1.0
    feedforward: float = 1.0
    score: str = "input"
    age_weight: float = 1.0
    oldest: int = 8
    bonus: float = 0.0
    window: int = 2
    layout: str = LAYOUTS[0]

    def validate(self) -> None:
        check_as_it_is(self)
        check_number("interval", self.interval, 1, NEVER, whole=True)
        check_number("keep", self.keep, 0, 1, whole=False)
        check_number("depth", self.depth, -1, 1, whole=False)
        for name in ("attention", "cross", "feedforward", "age_weight"):
            check_number(name, getattr(self, name), 0, 1e6, whole=False)
        check_choice("score", self.score, [name for name in SCORES if name in ("input", "value", "random")])
        check_number("oldest", self.oldest, 0, NEVER, whole=True)
        check_number("bonus", self.bonus, 0, 1e6, whole=False)
        check_number("window", self.window, 2, NEVER, whole=True)
        check_choice("layout", self.layout, LAYOUTS)

    def recipe(self) -> Recipe:
        return Recipe(
            self.method,
            self,
            "token",
            lambda: Interval(self.interval, max(self.warmup, 1), self.cooldown, self.max_skip),
            Taylor(0),
            kinds=unit_kinds("module"),
            selector=Selector(self.score, self.age_weight, self.oldest, self.bonus, self.window),
            keep=self.shares(),
        )

    def shares(self) -> Callable[[int, float, str], float]:
        """(steps since the last full one, depth of the block, kind of module) -> share of the tokens."""
        factors = {"cross": self.cross, "feedforward": self.feedforward, "fused": self.feedforward}

        def share(offset: int, depth: float, kind: str) -> float:
            share = self.keep * (1.0 + self.depth * (1.0 - 2.0 * depth)) * factors.get(kind, self.attention)
            return min(share, 1.0)

        return share


@dataclass(frozen=True, kw_only=True)
class ToCaConfig(TokenConfig):
    """ToCa (arXiv 2410.05317) without attention maps: between full steps feed-forward runs on the tokens that need it.

    Its scores by attention maps are replaced by ``score``: maps cost quadratic memory and forbid fused attention.
    Self-attention rests, and less of the text attention runs, as in the release for PixArt.
    """

    method: ClassVar[str] = "toca"
    summary: ClassVar[str] = "between full steps, recomputes the tokens that need it (ToCa, map-free scores)"

    attention: float = 0.0
    cross: float = 0.4
    depth: float = 0.3


@dataclass(frozen=True, kw_only=True)
class DuCaConfig(TokenConfig):
    """DuCa (arXiv 2412.18911): partial steps, with tokens ranked by their values' norm, alternate with plain reuse."""

    method: ClassVar[str] = "duca"
    summary: ClassVar[str] = "partial steps alternate with reuse (DuCa, tokens by value norm)"

    attention: float = 0.0
    cross: float = 0.4
    score: str = "value"

    def shares(self) -> Callable[[int, float, str], float]:
        share = super().shares()
        return lambda offset, depth, kind: share(offset, depth, kind) if offset % 2 else 0.0
