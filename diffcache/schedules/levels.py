"""Plans with steps between computed and predicted: a share of the tokens is computed, the others predicted (ours).

Such a level has a price, and leaves a part of the prediction's error. A span of predicted steps errs by the sum of its
misses, so with levels it errs by a weighted one, ``||sum_j r_j m_j||^2``: all inner products are in the landscape.
Dynamic programming over pairs of computed steps and the time spent so far finds the plan with the least error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import combinations_with_replacement, pairwise
from math import ceil, floor, inf

import numpy as np

from ..predictors.fitted import before
from .placing import Steps, neighbours
from .planning import LONGEST, Landscape

#: units of time in what a computed step costs more than a predicted one
UNITS = 20
#: most steps of one span that are at a level: as many more cost what a computed step does
MOST = 2


@dataclass(frozen=True)
class Level:
    """A share of the tokens.

    Attributes:
        share: of them that is computed.
        price: what such a step costs more than a predicted one, in what a computed step costs more than that.
        left: of the error (RMS) of a prediction, how much is still there.
    """

    share: float
    price: float
    left: float


@dataclass(frozen=True)
class Placement:
    """Which steps are computed, and which of the others in part.

    Attributes:
        computed: indices of the computed steps, rising; the first is 0.
        partial: (step, number of its level), rising.
    """

    computed: Steps
    partial: tuple[tuple[int, int], ...] = ()


#: numbers of the levels of one span, in no order
Choice = tuple[int, ...]


@dataclass(frozen=True)
class Offer:
    """What a step can be besides computed and predicted.

    Attributes:
        levels: at least one.
        hold: what a computed step costs more whose keys, values and results are held for levels behind it.
    """

    levels: tuple[Level, ...]
    hold: float = 0.0

    @cached_property
    def choices(self) -> list[Choice]:
        """What one span may have, nothing first."""
        numbers = range(len(self.levels))
        return [choice for size in range(MOST + 1) for choice in combinations_with_replacement(numbers, size)]

    def units(self, choice: Choice) -> int:
        """The price of a span's levels, in units; rounded up, so that no plan is dearer than it looks."""
        parts = [self.hold] * bool(choice) + [self.levels[number].price for number in choice]
        return sum(ceil(UNITS * part - 1e-9) for part in parts)

    def price(self, placement: Placement) -> int:
        """Of a whole plan, in units."""
        return UNITS * len(placement.computed) + sum(
            self.units(tuple(number for _, number in levels)) for _, _, levels in spans(placement, 0)
        )

    def shares(self, placement: Placement, steps: int) -> tuple[float, ...]:
        """For each step the share of the tokens that is computed, 0 where it is computed or predicted as a whole."""
        found = [0.0] * steps
        for step, number in placement.partial:
            found[step] = self.levels[number].share
        return tuple(found)


def spans(placement: Placement, steps: int) -> Iterator[tuple[Steps, int, tuple[tuple[int, int], ...]]]:
    """Each span: the computed steps that it is predicted from, its end, and its levels."""
    computed = placement.computed
    for start, end in pairwise((*computed, max(steps, computed[-1] + 1, *(s + 1 for s, _ in placement.partial)))):
        inside = tuple((step, number) for step, number in placement.partial if start < step < end)
        yield before(computed, end), end, inside


class Market:
    """The best plans that a landscape and an offer have.

    Args:
        landscape: what spans of predictions leave as an error.
        offer: the levels.
    """

    def __init__(self, landscape: Landscape, offer: Offer) -> None:
        self.landscape, self.offer = landscape, offer
        self._products = cache(landscape.products)
        self._best = cache(self._best_of)

    def error(self, placement: Placement) -> float:
        """Squared error of a plan."""
        return sum(self._span(*span) for span in spans(placement, self.landscape.steps))

    def _span(self, history: Steps, end: int, levels: Sequence[tuple[int, int]]) -> float:
        count, products = end - history[0] - 1, self._products(history)
        if count > len(products):
            return inf
        left = np.ones(count)
        for step, number in levels:
            left[step - history[0] - 1] = self.offer.levels[number].left
        return max(float(left @ products[:count, :count] @ left), 0.0)

    def plan(self, room: float) -> Placement | None:
        """The plan with the least error among those that take at most so long.

        Args:
            room: what computed steps and levels may cost more than predicted ones, in computed steps; at least 1.

        Returns:
            None where no plan is possible. At most :data:`MOST` steps of a span are at a level.
        """
        most = floor(UNITS * room + 1e-9)
        found = _Walk(self, most).best() if most >= UNITS else None
        return None if found is None else self._polish(found, most)

    # -- one span --------------------------------------------------------------------------------------------------

    def gaps(self, history: Steps) -> np.ndarray:
        """``[choices, n + 1]``: the least squared error of a span of 0, 1, ... n steps with each choice of levels."""
        return np.stack([self._best(history, choice)[0] for choice in self.offer.choices])

    def levels(self, history: Steps, count: int, choice: Choice) -> list[tuple[int, int]]:
        """The best places of a choice in a span of so many steps."""
        first = history[0] + 1
        places = self._best(history, choice)[1][count]
        return sorted((first + int(place), number) for place, number in zip(places, choice, strict=True))

    def _best_of(self, history: Steps, choice: Choice) -> tuple[np.ndarray, np.ndarray]:
        """For spans of every length the least error, and ``[n + 1, levels]`` where the levels are then.

        With ``d = 1 - left`` it is ``T - 2 sum_s d_s (M 1)_s + sum_st d_s d_t M_st``.
        """
        table = self._products(history)
        n = len(table)
        rows = np.concatenate([np.zeros((1, n)), np.cumsum(table, 0)])  # [length, step]: sums over a span
        whole = np.array([rows[length, :length].sum() for length in range(n + 1)])
        drops = [1.0 - self.offer.levels[number].left for number in choice]
        inside = np.arange(n) < np.arange(n + 1)[:, None]
        if not choice:
            return np.maximum(whole, 0.0), np.zeros((n + 1, 0), int)
        single = [d * d * table.diagonal() - 2.0 * d * rows for d in drops]
        if len(choice) == 1:
            errors = np.where(inside, whole[:, None] + single[0], inf)
        else:
            both = inside[:, :, None] & inside[:, None, :] & ~np.eye(n, dtype=bool)
            pairs = single[0][:, :, None] + single[1][:, None, :] + 2.0 * drops[0] * drops[1] * table
            errors = np.where(both, whole[:, None, None] + pairs, inf).reshape(n + 1, n * n)
        if not n:
            return np.full(1, inf), np.zeros((1, len(choice)), int)
        best = errors.argmin(1)
        found = np.maximum(np.take_along_axis(errors, best[:, None], 1)[:, 0], 0.0)
        return found, np.stack(np.unravel_index(best, (n,) * len(choice)), 1)

    # -- single steps ----------------------------------------------------------------------------------------------

    def _polish(self, placement: Placement, most: int) -> Placement:
        """Single steps are moved as long as that lessens the error, now with predictions of full depth."""
        best, error = placement, self.error(placement)
        improved = True
        while improved:
            improved = False
            for moved in self._moves(best):
                found = self.error(moved) if self.offer.price(moved) <= most else inf
                if found < error * (1.0 - 1e-9):
                    best, error, improved = moved, found, True
                    break
        return best

    def _moves(self, placement: Placement, reach: int = 3) -> Iterator[Placement]:
        levels = dict(placement.partial)
        for computed in neighbours(placement.computed, self.landscape.steps, reach):
            if not levels.keys() & set(computed):
                yield Placement(computed, placement.partial)
        for step, number in placement.partial:
            others = {s: n for s, n in levels.items() if s != step}
            for place in range(max(step - reach, 1), min(step + reach + 1, self.landscape.steps)):
                if place not in levels and place not in placement.computed:
                    yield Placement(placement.computed, tuple(sorted({**others, place: number}.items())))


class _Walk:
    """Dynamic programming: the least error of every start of a plan that ends with two computed steps, and has cost so
    many units."""

    def __init__(self, market: Market, most: int) -> None:
        self._market, self._most, n = market, most, market.landscape.steps
        self._prices = [market.offer.units(choice) for choice in market.offer.choices]
        #: [newer, older + 1, units]
        self._costs = np.full((n, n + 1, most + 1), inf)
        self._costs[0, 0, UNITS] = 0.0
        self._older = np.zeros((n + 1, n, most + 1), np.int16)
        self._choice = np.zeros((n + 1, n, most + 1), np.int8)
        self._end = np.full((n, most + 1), inf)
        for newer in range(n):
            self._go_on(newer)

    def _history(self, older: int, newer: int) -> Steps:
        return (newer, older) if older >= 0 else (newer,)

    def _go_on(self, newer: int) -> None:
        """To every next computed step."""
        n = self._market.landscape.steps
        olders = [-1] if newer == 0 else list(range(max(newer - LONGEST - 1, 0), newer))
        tables = np.stack([self._market.gaps(self._history(older, newer)) for older in olders])
        known = self._costs[newer, [older + 1 for older in olders]]
        for end in range(newer + 1, min(newer + tables.shape[2], n) + 1):
            added = 0 if end == n else UNITS
            best = self._end[newer] if end == n else self._costs[end, newer + 1]
            for number, price in enumerate(self._prices):
                reached = known + tables[:, number, end - newer - 1, None]
                self._take(best, (end, newer), number, price + added, reached, olders)

    def _take(
        self,
        best: np.ndarray,
        at: tuple[int, int],
        number: int,
        price: int,
        reached: np.ndarray,
        olders: Sequence[int],
    ) -> None:
        room = self._most + 1 - price
        if room <= 0:
            return
        rows = reached[:, :room].argmin(0)
        found = np.take_along_axis(reached[:, :room], rows[None], 0)[0]
        better = found < best[price:]
        best[price:][better] = found[better]
        self._older[at][price:][better] = np.array(olders)[rows[better]]
        self._choice[at][price:][better] = number

    def best(self) -> Placement | None:
        """The best of all that end in time."""
        newer, units = np.unravel_index(int(self._end.argmin()), self._end.shape)
        if not np.isfinite(self._end[newer, units]):
            return None
        end, newer, units = len(self._end), int(newer), int(units)
        computed: list[int] = []
        partial: list[tuple[int, int]] = []
        while newer >= 0:
            older, number = int(self._older[end, newer, units]), int(self._choice[end, newer, units])
            choice = self._market.offer.choices[number]
            partial += self._market.levels(self._history(older, newer), end - newer - 1, choice)
            computed.append(newer)
            units -= self._prices[number] + (0 if end == len(self._end) else UNITS)
            end, newer = newer, older
        return Placement(tuple(reversed(computed)), tuple(sorted(partial)))
