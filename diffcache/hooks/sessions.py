"""Generations that take turns on one pipeline or denoiser: each has a clock and a progress of its own.

Whoever generates is found by context (:mod:`contextvars`): a thread, an asyncio task or a ``with`` block. Nothing that
one of them caches, decides or counts is seen by another.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from threading import RLock
from typing import Any

from .clock import Clock
from .segment import Segment
from .stats import Stats

#: most trajectories whose numbers one session remembers, and most ended sessions that are remembered
_MOST_TRAJECTORIES, _MOST_ENDED = 4096, 64

#: for each handle's sessions the one that is entered here
_ENTERED: ContextVar[Mapping[Sessions, Session]] = ContextVar("diffcache_session", default={})  # noqa: B039 - never written


class Progress:
    """How far one denoiser is in the current trajectory of a session.

    Attributes:
        segment: the one under way.
        closed: those before it.
        trajectory: of the clock.
        label: what the pipeline calls the branch under way, or None.
    """

    def __init__(self) -> None:
        self.segment: Segment | None = None
        self.closed: list[Segment] = []
        self.trajectory = -1
        self.label: str | None = None


class Session:
    """One generation, or one after another.

    Attributes:
        clock: where its trajectory is.
        trajectories: numbers of those that ended.
        reason: why the last one predicted nothing.
        progress: of each denoiser's hook.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.trajectories: deque[Stats] = deque(maxlen=_MOST_TRAJECTORIES)
        self.reason: str | None = None
        self.progress: defaultdict[Any, Progress] = defaultdict(Progress)


class Sessions:
    """All generations under one handle.

    Args:
        pipe: whose scheduler is followed; None for a bare denoiser.
        on_begin, on_end: called when a trajectory begins or ends, in its session.

    Attributes:
        lock: held by whoever runs a denoiser.
    """

    def __init__(self, pipe: Any, on_begin: Callable[[], None], on_end: Callable[[], None]) -> None:
        self.lock = RLock()
        self._pipe, self._on_begin, self._on_end = pipe, on_begin, on_end
        self._main = self._new(guest=False)
        self._named: OrderedDict[Hashable, Session] = OrderedDict()

    @property
    def now(self) -> Session:
        """The session that is entered here; outside of all, the one without a key."""
        return _ENTERED.get().get(self, self._main)

    def turn(self) -> Clock:
        """The clock of :attr:`now`."""
        return self.now.clock

    def __iter__(self) -> Iterator[Session]:
        with self.lock:
            return iter([self._main, *self._named.values()])

    @contextmanager
    def enter(self, session: Session) -> Iterator[Session]:
        """Within, and only for who is within, ``session`` is the one whose turn it is."""
        token = _ENTERED.set({**_ENTERED.get(), self: session})
        try:
            yield session
        finally:
            _ENTERED.reset(token)

    def _new(self, guest: bool) -> Session:
        session = Session(Clock(self._pipe, self.turn, guest))
        # Wherever it ends (a generator may be closed by somebody else), it is this session that ends.
        session.clock.listen(
            partial(self._within, session, self._on_end), partial(self._within, session, self._on_begin)
        )
        return session

    def _within(self, session: Session, call: Callable[[], None]) -> None:
        with self.enter(session), self.lock:
            call()

    def of(self, key: Hashable) -> Session:
        """The session of a key; a new one if it has none."""
        with self.lock:
            if key not in self._named:
                self._named[key] = self._new(guest=True)
                self._forget_ended()
            self._named.move_to_end(key)
            return self._named[key]

    def drop(self, key: Hashable) -> Session | None:
        """Forget a key; its session, so that it can be ended."""
        with self.lock:
            return self._named.pop(key, None)

    def drop_all(self) -> None:
        """Forget every key."""
        with self.lock:
            self._named.clear()

    def _forget_ended(self) -> None:
        ended = [key for key, session in self._named.items() if not session.clock.open]
        for key in ended[: max(len(ended) - _MOST_ENDED, 0)]:
            self._named.pop(key).clock.unwatch()
