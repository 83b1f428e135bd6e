"""Where the computed steps of a plan lie, judged by real runs (ours).

What the landscape says of a plan's error is a model of it. Each placement that is run tells how good the model is: the
gains are bent to agree with all runs so far, and the placement that is best then, or near the best one, is run next.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial

from ..schedules.placing import Split, Steps, shifted
from ..schedules.planning import Landscape, Placements
from .attuning import attune


class Climb:
    """The best placements that some real runs found, of any number of steps; all runs serve all numbers.

    Args:
        landscapes: with gains as measured, and others that may be nearer to the truth; at least one.
        score: placement -> mean PSNR in dB of some runs, the same ones for all.
    """

    def __init__(self, landscapes: Sequence[Landscape], score: Callable[[Steps], float]) -> None:
        self._landscapes, self._score = landscapes, score
        self.seen: dict[Steps, float] = {}

    def best(self, starts: Sequence[Steps], trials: int, splits: Collection[Split] | None = None) -> Steps:
        """The best of these placements, and of at most ``trials`` others.

        Args:
            starts: to begin with.
            trials: others that are run.
            splits: how the computed steps may be split over the segments; by default as in the first of ``starts``.
        """
        starts = list(dict.fromkeys(starts))
        if len(starts) == 1 and not trials:
            return starts[0]
        splits = frozenset(splits or [self._landscapes[0].split(starts[0])])
        for computed in starts:
            self._look(computed)
        for trial in range(trials):
            found = self._proposal(splits, near=trial % 2 == 1)
            if found is None:
                break
            self._look(found)
        return self._top(splits)

    @property
    def landscape(self) -> Landscape:
        """With gains that agree with all runs so far."""
        known = self._landscapes[0]
        return Landscape(known.evidence, known.gains * attune(known, self.seen)) if self.seen else known

    def _look(self, computed: Steps) -> None:
        if computed not in self.seen:
            self.seen[computed] = self._score(computed)

    def _top(self, splits: Collection[Split]) -> Steps:
        return max(filter(partial(self._fits, splits), self.seen), key=self.seen.__getitem__)

    def _fits(self, splits: Collection[Split], computed: Steps) -> bool:
        return self._landscapes[0].split(computed) in splits

    def _proposal(self, splits: Collection[Split], near: bool) -> Steps | None:
        """What is promising now and has not been run: the best of all, or of what differs little from the best run."""
        landscape = self.landscape
        whole = None if near else Placements(landscape, max(map(max, splits))).best(splits)
        if whole is not None and whole not in self.seen:
            return whole
        fresh = [computed for computed in self._near(splits) if computed not in self.seen]
        return min(fresh, key=landscape.error, default=None)

    def _near(self, splits: Collection[Split]) -> Iterator[Steps]:
        return filter(partial(self._fits, splits), shifted(self._top(splits), self._landscapes[0].steps))
