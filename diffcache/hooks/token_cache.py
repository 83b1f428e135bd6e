"""What a branch holds for partial steps, and how it ranks its tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..predictors.resting import home_of
from ..schedules.selectors import Evidence
from .cache import Cache, Holding
from .recipe import Recipe
from .selection import Selection
from .token_passes import Call, Lesson, Memory


class TokenCache(Cache):
    """What a branch holds for partial steps.

    Memory: over the units the sum of ``numel(results) * element_size``, and of ``numel(keys) + numel(values)`` of each
    attention among the tokens; selector ``input`` adds the hidden stream, each selector 4 bytes a token.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        #: kernel calls that went to the torch reference on a GPU, with their reason
        self.slow: Counter[tuple[str, str]] = Counter()
        #: scores that somebody else can tell
        self.more_scores: Mapping[str, Callable[[], Tensor]] = {}
        self.forget()

    def forget(self) -> None:
        self.memories: dict[Call, Memory] = {}
        self.lessons: dict[Call, Lesson] | None = None
        self.full = -1  # last step that was computed in full
        self.age: Tensor | None = None
        self.grid: tuple[int, int] | None = None  # rows and columns of a frame's tokens, where the selector asks
        self.chosen: Tensor | None = None  # tokens that the last partial step computed
        self.seen: Tensor | None = None  # the hidden stream of each token when it was computed last
        self.pending = None

    @property
    def ready(self) -> bool:
        return self.lessons is not None

    def held(self) -> Iterator[Tensor]:
        for memory in self.memories.values():
            yield from memory.held()
        yield from (t for t in (self.age, self.seen) if t is not None)

    def holdings(self) -> Iterator[Holding]:
        return (Holding(t.numel(), home_of(t), rests=False) for t in self.held())

    def slow_kernels(self) -> Counter[str]:
        return Counter({f"{kernel}: {reason}": count for (kernel, reason), count in self.slow.items()})

    def renew(self, stream: Tensor, step: int) -> None:
        """All tokens were computed at ``step``."""
        self.full = step
        self.age = torch.zeros(stream.shape[1], device=stream.device)
        self.seen = stream.detach().clone() if self.recipe.selector.score == "input" else None

    def select(self, stream: Tensor, least: int, counts: Sequence[int] = ()) -> Selection:
        """Rank the tokens, and note which are computed by every unit that computes any.

        Args:
            stream: ``[B, tokens, D]``, where it enters.
            least: how many these are.
            counts: how many tokens units compute, if no other number will be asked for.
        """
        self.age += 1.0
        ranking = self.recipe.selector.rank(Evidence(self.age, self._scores(stream), self.grid))
        selection = Selection(ranking, self.recipe.layout == "ranked", counts)
        self.chosen = chosen = selection.rows(least)
        self.age.index_fill_(0, chosen, 0.0)
        if self.seen is not None:
            self.seen.index_copy_(1, chosen, stream.index_select(1, chosen))
        return selection

    def _scores(self, stream: Tensor) -> Mapping[str, Callable[[], Tensor]]:
        return {
            "input": lambda: (stream.float() - self.seen.float()).square_().sum(-1).sqrt_().mean(0),
            "value": lambda: self._small_values(stream.shape[1]),
            "random": lambda: torch.rand(stream.shape[1], device=stream.device),
            **self.more_scores,
        }

    def _small_values(self, tokens: int) -> Tensor:
        """``sum_heads(1 - ||v||)`` in the last attention, shifted to be positive: small values are recomputed."""
        *_, (value, place) = [
            (value, self.lessons[call].keys[number])
            for call, memory in self.memories.items()
            for number, (_, value, _) in memory.attended.items()
        ]
        size = value.narrow(place.axis, place.offset, tokens).float().norm(dim=-1)
        size = size.mean([axis for axis in range(size.dim()) if axis != place.axis])
        return size.amax() - size
