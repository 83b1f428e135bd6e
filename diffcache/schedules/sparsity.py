"""Token sparsity: which share of its tokens each unit computes at each step, and the schedule that follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ScheduleFileError
from .bound import Bound

#: tokens that a count is rounded to where there are many: the height of a matrix product's tile
TILE = 64
#: a timestep that differs by more than this share of the largest is another one
_CLOSE = 1e-3


@dataclass(frozen=True)
class KeepTable:
    """The learned table of one denoiser: ``K[t, l]`` as ratios, so that it carries over to another number of tokens.

    Attributes:
        units: dotted names of the attention and feed-forward modules, in order.
        keep: share of the tokens that each computes, ``[steps][units]``, in [0, 1]; the first step is all 1.
        timesteps: what the sampler passed at each step, empty where it was not known.
        branches: conditionings that were called one after the other at a step.
        folded: whether the conditionings were halves of one batch.
        source: for messages.
    """

    units: tuple[str, ...]
    keep: tuple[tuple[float, ...], ...]
    timesteps: tuple[float, ...] = ()
    branches: int = 1
    folded: bool = False
    source: str = "table"

    def share(self, step: int, unit: str) -> float:
        """Share of its tokens that a unit computes at a step of the segment."""
        return self.keep[step][self._index[unit]]

    @property
    def steps(self) -> int:
        return len(self.keep)

    @property
    def full(self) -> frozenset[int]:
        """Steps at which every unit computes every token."""
        return frozenset(step for step, row in enumerate(self.keep) if min(row) >= 1.0)

    @property
    def idle(self) -> frozenset[int]:
        """Steps at which nothing is computed."""
        return frozenset(step for step, row in enumerate(self.keep) if max(row) <= 0.0)

    @property
    def partial(self) -> frozenset[int]:
        """Steps that are neither."""
        return frozenset(range(self.steps)) - self.full - self.idle

    @property
    def _index(self) -> dict[str, int]:
        found = self.__dict__.get("_known")
        if found is None:
            found = {unit: number for number, unit in enumerate(self.units)}
            object.__setattr__(self, "_known", found)
        return found

    # -- what it is good for ---------------------------------------------------------------------------------------

    def check_units(self, units: Sequence[str]) -> None:
        """Refuse a denoiser with other attention and feed-forward modules; raises ScheduleFileError."""
        if tuple(units) != self.units:
            pairs = zip((*self.units, "nothing"), (*units, "nothing"), strict=False)
            known, here = next(pair for pair in pairs if pair[0] != pair[1])
            raise self._mismatch(
                "sublayers", f"{len(self.units)} of them with {known}", f"{len(units)} with {here} there"
            )

    def check_timesteps(self, timesteps: Sequence[float]) -> None:
        """Refuse other noise levels (another shift, other spacing); raises ScheduleFileError. Unknown ones pass."""
        if not timesteps or not self.timesteps:
            return
        room = _CLOSE * max(map(abs, self.timesteps))
        for step, (known, here) in enumerate(zip(self.timesteps, timesteps, strict=False)):
            if not abs(known - here) <= room:
                raise self._mismatch("timesteps", f"{known:g} at step {step}", f"{here:g}")

    def check_guidance(self, branches: int, folded: bool) -> None:
        """Refuse a run with other guidance; raises ScheduleFileError.

        Args:
            branches: conditionings that were called at the first step.
            folded: whether a call's batch was the same noise twice.
        """
        if (branches, folded) != (self.branches, self.folded):
            raise self._mismatch("guidance", _guidance(self.branches, self.folded), _guidance(branches, folded))

    def _mismatch(self, what: str, made_for: str, here: str) -> ScheduleFileError:
        return ScheduleFileError(
            f"{self.source}: {what}: made for {made_for}, but here it is {here}; make one for this with: "
            "diffcache calibrate"
        )


def _guidance(branches: int, folded: bool) -> str:
    if folded:
        return "guidance within the batch"
    return "no guidance" if branches == 1 else f"guidance of {branches} calls a step"


class Tabled(Bound):
    """The full steps of a table are computed; at the others the site does what the table says.

    Args:
        table: see :class:`KeepTable`.
        warmup, cooldown, max_skip: computed in full besides, whatever the table says.
    """

    wants_timesteps = True

    def __init__(self, table: KeepTable, warmup: int, cooldown: int, max_skip: int) -> None:
        self.table, self._full = table, table.full
        super().__init__(warmup, cooldown, max_skip)

    def start(self, total: int | None, timesteps: Sequence[float] = ()) -> None:
        super().start(total, timesteps)
        if total is not None:
            self.table.check_timesteps(self.timesteps)

    def placed(self, step: int) -> bool:
        return step in self._full


def count_tokens(share: float, tokens: int) -> int:
    """Tokens that are computed: a share above 0 is at least one; of many tokens a multiple of :data:`TILE`.

    >>> count_tokens(0.25, 64), count_tokens(0.25, 1000), count_tokens(0.001, 1000), count_tokens(0.0, 1000)
    (16, 256, 64, 0)
    """
    if share <= 0.0:
        return 0
    tile = TILE if tokens >= 8 * TILE and share < 1.0 else 1
    return min(max(round(share * tokens / tile), 1) * tile, tokens)
