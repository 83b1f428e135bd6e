"""Where a trajectory is: step, number of steps, noise level. Taken from the sampler, never from counting calls."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from .timesteps import host_value, index_of, log_snr, noise_levels

_TAPPED = ("set_timesteps", "step")


class Clock:
    """Time of one pipeline (or bare denoiser), shared by its experts.

    A trajectory begins when the sampler gets ``set_timesteps``, when :meth:`begin` is called, or when the timestep
    jumps back; it ends after its last step. A step ends when the sampler's ``step`` returns; where no sampler is
    known, when the denoiser receives another timestep.

    Args:
        pipe: the pipeline whose ``scheduler`` is followed; None for a bare denoiser.
        turn: of several clocks of one pipeline, the one whose turn it is; it hears what any of them has tapped.
        guest: of a named session, whose sampler need not be the pipeline's: that one is looked at only while no
            trajectory is open.

    Attributes:
        trajectory: number of trajectories begun; a change means that nothing earlier may be used.
        total: number of steps, None while unknown.
        step: 0-based index of the current step.
    """

    def __init__(self, pipe: Any = None, turn: Callable[[], Clock] | None = None, guest: bool = False) -> None:
        self._pipe = weakref.ref(pipe) if pipe is not None else None
        self._guest = guest
        self.turn = turn if turn is not None else lambda: self
        self._watched: Any = None
        self._taps: list[_Tap] = []
        self._copies: list[weakref.ref[_Tap]] = []
        self._listeners: list[Callable[[], None]] = []
        self._starters: list[Callable[[], None]] = []
        self.trajectory = 0
        self._running: list[Any] = []
        self._entered = 0
        self._leave()

    # -- attaching -------------------------------------------------------------------------------------------------

    def listen(self, on_end: Callable[[], None], on_begin: Callable[[], None] | None = None) -> None:
        """Call ``on_end`` when a trajectory ends (also where another begins before its time), ``on_begin`` after."""
        self._listeners.append(on_end)
        if on_begin is not None:
            self._starters.append(on_begin)

    def watch(self, scheduler: Any) -> None:
        """Tap ``set_timesteps`` and ``step`` of this scheduler instance (a copy made later carries its own taps)."""
        self.unwatch()
        self._watched = scheduler
        if scheduler is not None and all(hasattr(scheduler, name) for name in _TAPPED):
            taps = [_Tap(scheduler, name, self) for name in _TAPPED]
            self._taps = [tap for tap in taps if tap.install()]

    def unwatch(self) -> None:
        """Remove the taps; the scheduler is as it was."""
        for tap in self._taps:
            tap.remove()
        self._taps, self._watched = [], None

    def untap(self, scheduler: Any) -> None:
        """Remove from a copy of a scheduler the taps that it carries along."""
        for tap in [value for value in getattr(scheduler, "__dict__", {}).values() if isinstance(value, _Tap)]:
            if tap.clock.turn == self.turn:
                tap.remove()

    def close(self) -> None:
        """Detach for good."""
        self.end()
        self.unwatch()
        for copied in self._copies:
            tap = copied()
            if tap is not None:
                tap.remove()
        self._copies.clear()
        self._listeners.clear()
        self._starters.clear()

    # -- a trajectory ----------------------------------------------------------------------------------------------

    @property
    def open(self) -> bool:
        """Whether a trajectory is under way."""
        return self._open

    def begin(self, total: int | None, scheduler: Any = None) -> None:
        """A new trajectory of ``total`` steps; ``scheduler`` gives the noise levels and drives the steps."""
        self.end()
        self.trajectory += 1
        self.total = total
        self._scheduler = scheduler
        self._open = True
        for starter in self._starters:
            starter()

    def end(self) -> None:
        """The trajectory is over: listeners free what they hold."""
        if self._open:
            self._leave()
            for listener in self._listeners:
                listener()

    def _leave(self) -> None:
        self._open = False
        self._running.clear()
        self.total: int | None = None
        self.step = 0
        self._scheduler: Any = None
        self._leader: int | None = None
        self._started = False
        self._rises: bool | None = None  # the timesteps of this trajectory
        self._seen: float | None = None
        self._levels: list[float] | None = None
        self._offset = 0

    def enter(self, expert: Any) -> None:
        """``expert`` runs from here on; those that began at an earlier step leave their segments (``expert.leave()``).

        Denoisers that begin at the same step run side by side, as the two of asymmetric guidance do.
        """
        if self._entered != self.step:
            for other in self._running:
                if other is not expert:
                    other.leave()
            self._running.clear()
        self._running.append(expert)
        self._entered = self.step

    def advance(self, scheduler: Any = None) -> None:
        """The sampler took a step. Of several schedulers that step in turn only the first one counts."""
        if not self._started:
            return  # a step before any denoiser call belongs to nobody
        if scheduler is not None:
            self._leader = self._leader or id(scheduler)
            if self._leader != id(scheduler):
                return
        self.step += 1
        if self.total is not None and self.step >= self.total:
            self.end()

    def locate(self, timestep: Any) -> int:
        """Step index for a denoiser call that received ``timestep``; begins a trajectory where none is open."""
        if self._pipe is not None:
            self._follow_pipe()
        value, seen = host_value(timestep), self._seen
        moved = value is not None and seen is not None and value != seen
        if not self._open or (moved and (value > seen) is not self._rises and self._jumped_back(value > seen)):
            self.begin(None)
        if not self._started:
            self._start(timestep, value)
        elif self._scheduler is None:
            self._advance_by_value(value if value is not None else host_value(timestep, sync=True))
        if value is not None:
            self._seen = value
        return self.step

    def repeated(self, timestep: Any) -> bool:
        """One branch was called twice in this step: True (and a step further) if the timestep shows a new step."""
        value = host_value(timestep, sync=True)
        before, self._seen = self._seen, value
        if before is None or value == before:
            return False
        self._scheduler_silent()
        return True

    def _scheduler_silent(self) -> None:
        # The sampler that steps is not the one that we watch (a copy without taps): let the timestep drive.
        self._scheduler = None
        self.step += 1

    def _follow_pipe(self) -> None:
        """The user may have put another scheduler into the pipeline since we attached."""
        pipe = self._pipe() if self._pipe is not None else None
        current = getattr(pipe, "scheduler", None)
        if current is None or current is self._watched or (self._guest and self._open):
            return
        self.watch(current)
        if getattr(current, "timesteps", None) is not None:
            self.begin(len(current.timesteps), current)

    def _start(self, timestep: Any, value: float | None) -> None:
        self._started = True
        if self._scheduler is None:
            return
        first = getattr(self._scheduler, "begin_index", None)
        if first is None:
            # Late start (img2img) without a begin index: one host read a trajectory, at its first computed step.
            value = value if value is not None else host_value(timestep, sync=True)
            first = index_of(value, self._scheduler.timesteps)
        self._offset = int(first)
        if self.total is not None:
            self.total = max(self.total - self._offset, 1)

    def _jumped_back(self, rises: bool) -> bool:
        if self._rises is None:  # nobody knew the direction yet
            self._rises = rises
        return rises is not self._rises

    def _advance_by_value(self, value: float | None) -> None:
        if value is None or (self._seen is not None and value != self._seen):
            self.step += 1
            if self.total is not None and self.step >= self.total:
                # More steps than announced: the plan no longer fits, compute the rest.
                self.total = None
        self._seen = value

    # -- axes ------------------------------------------------------------------------------------------------------

    def times(self, axis: str, steps: Iterable[int]) -> list[float]:
        """Times of ``steps`` on an axis that increases along the trajectory: ``index``, ``sigma`` or ``logsnr``."""
        levels = self._noise_levels() if axis != "index" else []
        if not levels:
            return list(map(float, steps))
        known = [levels[min(step + self._offset, len(levels) - 1)] for step in steps]
        flow = axis != "sigma" and max(levels) <= 1.0 + 1e-6
        return [-level if axis == "sigma" else log_snr(level, flow) for level in known]

    def _noise_levels(self) -> list[float]:
        if self._levels is None:
            self._levels = noise_levels(self._scheduler) if self._scheduler is not None else []
        return self._levels

    def timesteps(self, start: int) -> list[float]:
        """What the sampler passes to the denoiser from step ``start`` on; empty if unknown. Read once a segment."""
        if self._scheduler is None:
            return []
        return [float(t) for t in self._scheduler.timesteps.tolist()[self._offset + start :]]

    def first_below(self, boundary: float) -> int | None:
        """First step whose timestep is below ``boundary`` (where a two-expert pipeline switches), if known."""
        if self._scheduler is None or self.total is None:
            return None
        steps = self._scheduler.timesteps.tolist()[self._offset :]
        return next((i for i, t in enumerate(steps) if t < boundary), len(steps))


class _Tap:
    """One method of one scheduler instance, wrapped so that the clock hears of each call."""

    def __init__(self, scheduler: Any, name: str, clock: Clock) -> None:
        self.scheduler, self.name, self.clock = scheduler, name, clock
        self.method = getattr(scheduler, name)
        functools.update_wrapper(self, self.method)  # `inspect.signature` still shows the real one

    def install(self) -> bool:
        """Put it on; False where one stands that another clock, which takes turns with ours, will remove."""
        present = self.scheduler.__dict__.get(self.name)
        ours = isinstance(present, _Tap) and present.clock.turn == self.clock.turn
        if ours and present.clock is not self.clock:
            return False
        if ours:  # a copy of a tapped scheduler, now in the pipeline itself: do not tap a tap
            present.remove()
            self.method = present.method
        self._had = None if ours else present
        self.scheduler.__dict__[self.name] = self
        return True

    def remove(self) -> None:
        if self.scheduler.__dict__.get(self.name) is not self:
            return
        del self.scheduler.__dict__[self.name]
        if self._had is not None:
            self.scheduler.__dict__[self.name] = self._had

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self.method(*args, **kwargs)
        clock = self.clock.turn()
        if self.name == "set_timesteps":
            clock.begin(len(self.scheduler.timesteps), self.scheduler)
        else:
            clock.advance(self.scheduler)
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickled scheduler is a plain one, heard by no clock: the method is its own."""
        return getattr, (self.scheduler, self.name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A pipeline that copies its scheduler gets a working one: the method of the copy, heard by the same clock."""
        copied = memo.get(id(self.scheduler))
        if copied is None:
            return self
        tap = _Tap.__new__(_Tap)
        tap.scheduler, tap.name, tap.clock, tap._had = copied, self.name, self.clock, None
        tap.method = getattr(type(copied), self.name).__get__(copied)
        functools.update_wrapper(tap, tap.method)
        self.clock._copies.append(weakref.ref(tap))
        return tap
