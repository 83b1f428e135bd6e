"""Weights that were fitted to a model: each step of a plan has its own, over the outputs computed last (ours)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from torch import Tensor

from .base import Fit, Predictor
from .moments import Moments

#: computed outputs that a prediction is made of; the sample at the newest of them comes on top
DEPTH = 3


@dataclass(frozen=True)
class Plan:
    """Which steps are computed, and what the others are predicted with.

    Attributes:
        steps: length of the trajectory.
        computed: indices of the computed steps, rising; the first is 0.
        weights: branch -> for each step :data:`DEPTH` weights over the planned outputs before it, newest first, and one
            over the sample that the denoiser was given at the newest. A computed step has them too: they tell how far
            off a prediction would have been there.
        limits: for each step the largest relative error (RMS over RMS) that its prediction had in calibration; ``inf``
            where that is not known.
        timesteps: what the sampler passes to the denoiser; empty if unknown.
        spread: branch -> for each step the variance of the outputs of dense trajectories; only ratios matter. Empty if
            that is not known.
        starts: first step of each segment, where one denoiser takes over from another: computed, and what was computed
            before it is not predicted from.
        levels: for each step the share of the tokens that is computed although the step is predicted; 0 at computed
            steps, and where nothing is. Empty for a plan without such steps.
    """

    steps: int
    computed: tuple[int, ...]
    weights: Mapping[str, Sequence[Sequence[float]]]
    limits: tuple[float, ...]
    timesteps: tuple[float, ...] = ()
    spread: Mapping[str, Sequence[float]] = field(default_factory=dict)
    starts: tuple[int, ...] = (0,)
    levels: tuple[float, ...] = ()
    _chosen: frozenset[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_chosen", frozenset(self.computed))

    def computes(self, step: int) -> bool:
        """Whether the plan computes ``step``."""
        return step in self._chosen

    def level(self, step: int) -> float:
        """Share of the tokens that is computed at a predicted ``step``."""
        return self.levels[step] if self.levels else 0.0

    def holds(self, step: int) -> bool:
        """Whether some tokens alone are computed behind a computed ``step``, before the plan's next one."""
        ahead = step + 1
        while ahead < self.steps and not self.computes(ahead):
            if self.level(ahead):
                return True
            ahead += 1
        return False

    def change(self, branch: str, since: int, step: int) -> float:
        """Factor by which the variance of the outputs changes from one step to another; 1 if that is not known."""
        known = self.spread.get(branch)
        return known[step] / known[since] if known and known[since] > 0.0 else 1.0

    def before(self, step: int) -> tuple[int, ...]:
        """The computed steps that a prediction for ``step`` is made of, newest first."""
        return before(self.computed, step, max(start for start in self.starts if start <= step))

    def segments(self) -> list[Plan]:
        """That of each denoiser, whose steps are counted from its first one."""
        return [self._cut(start, end) for start, end in pairwise((*self.starts, self.steps))]

    def _cut(self, start: int, end: int) -> Plan:
        return Plan(
            end - start,
            tuple(step - start for step in self.computed if start <= step < end),
            {branch: rows[start:end] for branch, rows in self.weights.items()},
            self.limits[start:end],
            self.timesteps[start:end],
            {branch: row[start:end] for branch, row in self.spread.items()},
            levels=self.levels[start:end] if any(self.levels[start:end]) else (),
        )


def before(computed: Sequence[int], step: int, start: int = 0) -> tuple[int, ...]:
    """The last :data:`DEPTH` of ``computed`` (rising) below ``step``, newest first, and none below ``start``.

    >>> before([0, 1, 2, 5, 9], 9), before([0, 1, 2, 5, 9], 9, 2)
    ((5, 2, 1), (5, 2))
    """
    return tuple([s for s in computed if start <= s < step][: -DEPTH - 1 : -1])


class Pilot:
    """Says which plan holds for a trajectory. One without a plan may watch a trajectory to make one.

    Attributes:
        plan: the plan in force, or None: every step is computed.
        watching: whether :meth:`watch` wants to be told.
        levelled: whether its plans have levels.
        lessons: what partial steps have learned of the model, by form of call, for whoever follows several plans of a
            model that does not change; None: it is learned anew.
    """

    plan: Plan | None = None
    watching: bool = False
    levelled: bool = False
    lessons: dict[Any, Any] | None = None

    def begin(self, total: int | None, timesteps: Sequence[float]) -> Plan | None:
        """A trajectory begins: the plan that holds for it. Raises ScheduleFileError where it was made for another."""
        return self.plan

    def watch(self, branch: str, step: int, samples: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """A step was computed.

        Args:
            branch: name of the branch.
            step: index in the segment.
            samples: for each output the noisy sample in its form; empty where one has none.
            outputs: what the denoiser returned.
        """


class Fitted(Predictor):
    """``sum_k w[k] * F[k] + w_x * x``: a straight sum with the weights that the plan has for the step.

    Reuse, linear, Taylor and any damping of them are special cases, so on the trajectories of the calibration none of
    them is better. Unlike theirs the weights need not sum to 1; where the outputs stand still the newest is reused.

    Args:
        pilot: says which plan holds.
    """

    depth = DEPTH
    least = 1

    def __init__(self, pilot: Pilot) -> None:
        self.pilot = pilot

    def fit(self, moments: Moments) -> Fit:
        raise TypeError("Fitted takes its weights from a plan: nothing is fitted in a trajectory")
