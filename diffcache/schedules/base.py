"""The decision of a step, on plain numbers: which steps of a trajectory are computed."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

NEVER = 1 << 30


class Schedule:
    """Computes every step; subclasses say which of the others may be predicted.

    A step is computed when it is one of the first ``warmup`` or last ``cooldown`` steps, when ``max_skip`` steps in
    a row were predicted, when a plan made at the last computed step says so, or when :meth:`placed` says so. A
    schedule with a :attr:`signal` leaves the other steps undecided until it has heard it: ask :meth:`undecided`
    first, then :meth:`judge`.

    Its state is plain values, so that a copy goes its own way: samples of a batch that decide apart have one each.
    A schedule without a signal decides for the whole batch, whose samples share the times of their history.

    Args:
        warmup: first steps that are always computed.
        cooldown: last steps that are always computed.
        max_skip: longest run of predicted steps; 0 never skips. A schedule whose other settings never skip passes 0:
            then nothing is stored or measured in vain.
    """

    #: whether :meth:`plan` wants the drift of the coming steps, and the error of the last prediction
    wants_drift = False
    wants_error = False
    #: what :meth:`judge` must hear at an undecided step: ``first``, ``modulated`` or ``rate`` (see
    #: :mod:`diffcache.schedules.change`), or None
    signal: str | None = None
    #: whether the rule reads :attr:`timesteps`
    wants_timesteps = False
    _places = False  # whether it has a :meth:`placed` of its own
    #: what the rule compares with what it heard, or None
    threshold: float | None = None

    def __init__(self, warmup: int = 0, cooldown: int = 1, max_skip: int = NEVER) -> None:
        self.warmup, self.cooldown, self.max_skip = warmup, cooldown, max_skip
        self.start(None)

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        cls._places = cls.placed is not Schedule.placed

    def start(self, total: int | None, timesteps: Sequence[float] = ()) -> None:
        """Begin a segment of ``total`` steps. An unknown total computes every step.

        Args:
            total: number of steps, None while unknown.
            timesteps: what the sampler passes to the denoiser at each step, if known.
        """
        self.total = total
        self.timesteps = tuple(timesteps)
        self.last = -1
        self._until = NEVER
        #: step -> what was compared with :attr:`threshold` there
        self.heard: dict[int, float] = {}

    @property
    def pause(self) -> str | None:
        """Why every step of this trajectory is computed, where that is meant and has been said."""
        return None

    def twin(self) -> Schedule:
        """A copy that goes its own way from here on."""
        twin = copy(self)
        twin.heard = dict(self.heard)
        return twin

    def placed(self, step: int) -> bool:
        """Whether the method's own rule wants this step computed."""
        return False

    def wants_compute(self, step: int) -> bool:
        """The decision for ``step``, given all that was computed before it; not final where :meth:`undecided`."""
        if self.total is None or step < self.warmup or step >= self.total - self.cooldown:
            return True
        if self.signal is not None and self.last < 0:
            return True  # a signal is a change against something computed
        return step - self.last > self.max_skip or step >= self._until or (self._places and self.placed(step))

    def undecided(self, step: int) -> bool:
        """Whether ``step`` is neither forced nor planned, so that :meth:`judge` decides it."""
        return self.signal is not None and not self.wants_compute(step)

    def judge(self, step: int, drift: float) -> bool:
        """Whether an undecided ``step`` is computed. Called once a step, in order; may count what it hears.

        Args:
            step: index in the segment.
            drift: the signal's number, the worst of the samples that decide together. NaN and inf compute.
        """
        return True

    def restrict(self, kinds: frozenset[str]) -> None:
        """The denoiser has modules of these ``kinds`` only."""

    def partial(self, step: int) -> frozenset[str]:
        """Kinds of module that are computed at a ``step`` that is not computed in full; asked once, in order."""
        return frozenset()

    def computed(self, step: int) -> None:
        """Record that ``step`` was computed; the old plan ends."""
        self.last = step
        self._until = NEVER

    def reach(self, step: int) -> int:
        """How many steps after a computed ``step`` may be predicted at most, before any plan."""
        ahead = step + 1
        if self.total is None or ahead < self.warmup:
            return 0
        left = self.total - self.cooldown - ahead
        reach = left if left < self.max_skip else self.max_skip
        if not self._places:
            return reach if reach > 0 else 0
        end = ahead + reach
        while ahead < end and not self.placed_after(ahead, step):
            ahead += 1
        return ahead - step - 1

    def placed_after(self, step: int, last: int) -> bool:
        """:meth:`placed` as if ``last`` had just been computed."""
        kept, self.last = self.last, last
        try:
            return self.placed(step)
        finally:
            self.last = kept

    def limit(self, skip: int) -> None:
        """At most ``skip`` predicted steps after the last computed one; of several limits the smallest holds."""
        self._until = min(self._until, self.last + skip + 1)

    def plan(self, drifts: Sequence[Sequence[float]], errors: Sequence[float]) -> None:
        """Plan the run after the last computed step, from what every branch measured there.

        Args:
            drifts: for each branch, the drift of the 1st, 2nd, ... predicted step.
            errors: for each branch, the relative error that the prediction for the computed step would have had; NaN
                if there was none.
        """
