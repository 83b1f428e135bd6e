"""What stays in the user's hands: stats, reset, restore."""

from __future__ import annotations

import copy
import warnings
from collections import deque
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from ..errors import NothingSkippedWarning, UncompiledWarning
from .anatomy import Anatomy
from .attach import settle, unsettle
from .clock import Clock
from .compiled import unwrapped
from .copying import COPIER, copy_plain
from .denoiser import DenoiserHook
from .recipe import Recipe
from .sessions import Sessions
from .sites import Asking
from .stats import Stats

ATTRIBUTE = "diffcache"


class Handle:
    """One method on one pipeline or denoiser. Reached as ``pipe.diffcache`` or ``model.diffcache``.

    ``copy.deepcopy`` of what is accelerated, pipeline or bare denoiser, gives one that is accelerated by the same
    method and shares nothing with the original: its handle is its own and has no numbers yet. A denoiser copied out of
    an accelerated pipeline is a plain model, for there is no pipeline that would drive it.

    Args:
        owner: the pipeline, or the bare denoiser.
        denoisers: component name -> (denoiser, its anatomy), experts in order.
        recipe: the method.
        boundary: timestep below which a second expert takes over, if there is one.
    """

    def __init__(
        self, owner: Any, denoisers: dict[str, tuple[nn.Module, Anatomy]], recipe: Recipe, boundary: float | None
    ) -> None:
        self.owner = owner
        self.recipe, self.boundary = recipe, boundary
        self.hooks: dict[str, tuple[nn.Module, DenoiserHook]] = {}
        # A pipeline's user may swap its scheduler later; a bare model has none.
        self.sessions = Sessions(None if isinstance(owner, nn.Module) else owner, self._begin, self._finish)
        for name, (model, anatomy) in denoisers.items():
            self.hooks[name] = model, DenoiserHook(name, model, anatomy, recipe.of(name), self.sessions, boundary)
        #: what ``torch.compile(model)`` returned for a bare denoiser, if that is what its user calls
        self.wrapper: nn.Module | None = None
        #: class name of the sampler of the last trajectory
        self.sampler: str | None = None
        self._warned = False

    def __repr__(self) -> str:
        return f"<diffcache: {self.recipe.name} on {type(self.owner).__name__}>"

    # -- public ----------------------------------------------------------------------------------------------------

    @property
    def config(self) -> Any:
        """The method's typed configuration."""
        return self.recipe.config

    @property
    def clock(self) -> Clock:
        """That of the session under way."""
        return self.sessions.now.clock

    @property
    def trajectories(self) -> deque[Stats]:
        """Numbers of the trajectories that ended in the session under way."""
        return self.sessions.now.trajectories

    @contextmanager
    def session(self, key: Hashable) -> Iterator[Handle]:
        """A generation of its own within the block: for requests that take turns on one pipeline or denoiser.

        Enter it for each step or for many, from one thread, several, or asyncio tasks; what belongs to one key is never
        seen by another. Each generation needs a sampler of its own (``copy.deepcopy(pipe.scheduler)``), whose
        ``set_timesteps`` is called inside, or :func:`diffcache.denoising` there. ``stats()`` inside is the key's. What
        is cached is freed when the trajectory ends, or by :meth:`close`.

        >>> for key, request in requests:  # doctest: +SKIP
        ...     with pipe.diffcache.session(key):
        ...         request.step(pipe.transformer)
        """
        with self.sessions.enter(self.sessions.of(key)):
            yield self

    def close(self, key: Hashable) -> None:
        """Give up a session: end its trajectory, free its memory. No effect on a key that is not known."""
        session = self.sessions.drop(key)
        if session is not None:
            with self.sessions.enter(session):
                session.clock.end()
                session.clock.unwatch()

    def stats(self) -> Stats:
        """The current trajectory, or the last one."""
        segments = [s for _, hook in self._active() for s in hook.stats()]
        if not segments and self.trajectories:
            return self.trajectories[-1]
        steps = self.clock.total or max((len(s.decisions) for s in segments), default=0)
        count = len(self.trajectories) + bool(segments)
        return Stats(self.recipe.name, steps, segments, count, self._idle_so_far())

    def reset(self) -> None:
        """End the current trajectory of every session, free their memory, forget all numbers."""
        for session in self.sessions:
            with self.sessions.enter(session):
                session.clock.end()
                session.trajectories.clear()
                session.reason = None
                for _, hook in self.hooks.values():
                    hook.progress.closed = []
        self.sessions.drop_all()
        self._warned = False

    def restore(self) -> None:
        """Take everything off; the owner is as it was before. No effect on what was taken off or replaced already."""
        if any(holder.__dict__.get(ATTRIBUTE) is self for holder in (self.owner, *(m for m, _ in self.hooks.values()))):
            self._take_off()

    def _take_off(self) -> None:
        for session in self.sessions:
            with self.sessions.enter(session):
                session.clock.close()
                for _, hook in self.hooks.values():
                    hook.leave()
        for model, hook in self.hooks.values():
            unsettle(model)
            hook.uninstall(model)
            model.__dict__.pop(ATTRIBUTE, None)
            model.__dict__.pop(COPIER, None)
        self.owner.__dict__.pop(ATTRIBUTE, None)

    # -- lifetime --------------------------------------------------------------------------------------------------

    def meet(self, scheduler: Any) -> None:
        """A trajectory begins with ``scheduler``; raises ScheduleFileError if the calibration is for another."""
        self.sampler = None if scheduler is None else type(scheduler).__name__
        if self.recipe.calibration is not None:
            self.recipe.calibration.check_sampler(self.sampler)
            self.recipe.calibration.check_guidance(getattr(self.owner, "_guidance_scale", None))

    def install(self) -> None:
        """Put the hooks on. If one of them fails, none stays."""
        try:
            for model, hook in self.hooks.values():
                hook.install(model)
                model.__dict__[ATTRIBUTE] = self
                model.__dict__[COPIER] = partial(self._copy_model, model)
            self.clock.watch(getattr(self.owner, "scheduler", None))
            self.owner.__dict__[ATTRIBUTE] = self
        except BaseException:
            self._take_off()
            raise

    def _copy_model(self, model: nn.Module, memo: dict[int, Any]) -> nn.Module:
        twin = copy_plain(model, memo, (ATTRIBUTE,))
        if model is self.owner:
            self._again(twin, {model: twin})
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Handle:
        owner = memo.get(id(self.owner))
        if owner is None:
            return self  # a handle belongs to its owner
        handle = self._again(owner, {model: copy.deepcopy(model, memo) for model, _ in self.hooks.values()})
        scheduler = copy.deepcopy(getattr(self.owner, "scheduler", None), memo)
        self.clock.untap(scheduler)  # heard by the same clock: right for a pipeline that copies its own scheduler only
        handle.clock.watch(scheduler)
        return handle

    def _again(self, owner: Any, twins: dict[nn.Module, nn.Module]) -> Handle:
        """The same method on copies."""
        denoisers = {name: (twins[model], hook.anatomy) for name, (model, hook) in self.hooks.items()}
        handle = Handle(owner, denoisers, self.recipe, self.boundary)
        handle.install()
        return handle

    def _idle_so_far(self) -> str | None:
        """Why the trajectory under way will predict nothing, where that is known before its end."""
        if self.clock.total is not None or not self._may_skip:
            return None
        under_way = [hook.progress.segment for _, hook in self._active() if hook.progress.segment is not None]
        return next((segment.idle_reason for segment in under_way), None)

    def _active(self) -> list[tuple[nn.Module, DenoiserHook]]:
        return [pair for pair in self.hooks.values() if pair[1].in_trajectory]

    def _finish(self) -> None:
        for _, hook in self.hooks.values():
            hook.leave()
        active = self._active()
        segments = [s for _, hook in active for s in hook.stats()]
        if not segments:
            return
        reasons = [reason for _, hook in active for reason in hook.idle_reasons()]
        idle = all(s.predicted + s.partial == 0 for s in segments)
        reason = self.sessions.now.reason = reasons[0] if idle and reasons and self._may_skip else None
        meant = any(segment.schedule.pause for _, hook in active for segment in hook.progress.closed)
        steps = sum(len(s.decisions) for s in segments if s.branch == segments[0].branch)
        count = self.trajectories[-1].trajectories + 1 if self.trajectories else 1
        self.trajectories.append(Stats(self.recipe.name, steps, segments, count, reason))
        for _, hook in active:
            hook.progress.closed = []
        if reason and not meant:
            self._warn(f": nothing was skipped: {reason}", NothingSkippedWarning)

    def _warn(self, text: str, kind: type[Warning]) -> None:
        """Once; again after :meth:`reset`."""
        if not self._warned:
            self._warned = True
            warnings.warn(f"{self.recipe.name}{text}", kind, stacklevel=3)

    def _begin(self) -> None:
        self._check_denoisers()
        if not isinstance(self.owner, nn.Module):
            self.meet(getattr(self.owner, "scheduler", None))

    def _check_denoisers(self) -> None:
        """The user may have put another denoiser into the pipeline since: it runs bare, and that must be said."""
        for name, (model, hook) in self.hooks.items():
            current = self.wrapper if self.wrapper is not None else getattr(self.owner, name, model)
            if getattr(model, "is_cache_enabled", False):
                text = f": {name}.enable_cache() is on as well, so that what is computed here may be reused there"
                self._warn(f"{text}: {name}.disable_cache()", UserWarning)
            if unwrapped(current) is not model:
                self._warn(f": {name} was replaced since; accelerate the pipeline again", NothingSkippedWarning)
                continue
            if hook.exact is not None:
                hook.exact.begin(compiled=current is not model)
            if hook.repeats is not None:
                hook.repeats.look(compiled=current is not model)
            hook.look_again()
            hook.places = settle(model, None if current is model else current)
            if hook.places and not hook.site.traced:
                self._warn(f" {self._uncompiled(model, hook)}", UncompiledWarning)

    def _uncompiled(self, model: nn.Module, hook: DenoiserHook) -> str:
        """What runs as it is written although it was compiled, and what to do about it."""
        parts = ", ".join(sorted({type(place.module).__name__ for place in hook.places}))
        advice = "choose a method with site output, body, block or module"
        if isinstance(hook.site, Asking) and any(place.module is model for place in hook.places):
            advice = f"compile the blocks (model.compile_repeated_blocks()), of which few or none do, or {advice}"
        runs = f"{len(hook.places)} compiled {parts} {'runs' if len(hook.places) == 1 else 'run'} uncompiled"
        return f"decides in the middle of the model: {runs}; {advice}"

    @property
    def _may_skip(self) -> bool:
        return getattr(self.config, "max_skip", 0) > 0
