"""What stays in the user's hands: stats, reset, restore."""

from __future__ import annotations

import copy
import warnings
from collections import deque
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
from .stats import Stats

ATTRIBUTE = "diffcache"
_KEPT = 4096


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
        # A pipeline's user may swap its scheduler later; a bare model has none.
        self.clock = Clock(None if isinstance(owner, nn.Module) else owner)
        self.hooks: dict[str, tuple[nn.Module, DenoiserHook]] = {
            name: (model, DenoiserHook(name, model, anatomy, recipe.of(name), self.clock, boundary))
            for name, (model, anatomy) in denoisers.items()
        }
        #: what ``torch.compile(model)`` returned for a bare denoiser, if that is what its user calls
        self.wrapper: nn.Module | None = None
        #: class name of the sampler of the last trajectory
        self.sampler: str | None = None
        self.reset()

    # -- public ----------------------------------------------------------------------------------------------------

    @property
    def config(self) -> Any:
        """The method's typed configuration."""
        return self.recipe.config

    def stats(self) -> Stats:
        """The current trajectory, or the last one."""
        segments = [s for _, hook in self._active() for s in hook.stats()]
        if not segments and self.trajectories:
            return self.trajectories[-1]
        steps = self.clock.total or max((len(s.decisions) for s in segments), default=0)
        return Stats(self.recipe.name, steps, segments, len(self.trajectories) + bool(segments), self._reason)

    def reset(self) -> None:
        """End the current trajectory, free its memory, forget all numbers."""
        self.clock.end()
        for _, hook in self.hooks.values():
            hook.closed = []
        self.trajectories: deque[Stats] = deque(maxlen=_KEPT)
        self._reason: str | None = None
        self._warned = False

    def restore(self) -> None:
        """Take everything off; the owner is as it was before."""
        self.clock.close()
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

    def install(self) -> None:
        """Put the hooks on. If one of them fails, none stays."""
        try:
            for model, hook in self.hooks.values():
                hook.install(model)
                self.clock.listen(hook.leave)
                model.__dict__[ATTRIBUTE] = self
                model.__dict__[COPIER] = partial(self._copy_model, model)
            self.clock.listen(self._finish, self._begin)
            self.clock.watch(getattr(self.owner, "scheduler", None))
            self.owner.__dict__[ATTRIBUTE] = self
        except BaseException:
            self.restore()
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
        for tap in [value for value in vars(scheduler or self).values() if getattr(value, "clock", None) is self.clock]:
            tap.remove()  # the copy of a scheduler is heard by the same clock: right for a pipeline that copies its own
        handle.clock.watch(scheduler)
        return handle

    def _again(self, owner: Any, twins: dict[nn.Module, nn.Module]) -> Handle:
        """The same method on copies."""
        denoisers = {name: (twins[model], hook.anatomy) for name, (model, hook) in self.hooks.items()}
        handle = Handle(owner, denoisers, self.recipe, self.boundary)
        handle.install()
        return handle

    def _active(self) -> list[tuple[nn.Module, DenoiserHook]]:
        return [pair for pair in self.hooks.values() if pair[1].in_trajectory]

    def _finish(self) -> None:
        active = self._active()
        segments = [s for _, hook in active for s in hook.stats()]
        if not segments:
            return
        reasons = [reason for _, hook in active for reason in hook.idle_reasons()]
        idle = all(s.predicted + s.partial == 0 for s in segments)
        self._reason = reasons[0] if idle and reasons and self._may_skip else None
        steps = sum(len(s.decisions) for s in segments if s.branch == segments[0].branch)
        count = self.trajectories[-1].trajectories + 1 if self.trajectories else 1
        self.trajectories.append(Stats(self.recipe.name, steps, segments, count, self._reason))
        for _, hook in active:
            hook.closed = []
        if self._reason and not self._warned:
            self._warned = True
            warnings.warn(
                f"{self.recipe.name}: nothing was skipped: {self._reason}", NothingSkippedWarning, stacklevel=2
            )

    def _begin(self) -> None:
        self._check_denoisers()
        if not isinstance(self.owner, nn.Module):
            self.meet(getattr(self.owner, "scheduler", None))

    def _check_denoisers(self) -> None:
        """The user may have put another denoiser into the pipeline since: it runs bare, and that must be said."""
        for name, (model, hook) in self.hooks.items():
            current = self.wrapper if self.wrapper is not None else getattr(self.owner, name, model)
            if unwrapped(current) is model:
                if hook.exact is not None:
                    hook.exact.begin(compiled=current is not model)
                hook.look_again()
                hook.places = settle(model, None if current is model else current)
                if hook.places and not hook.site.traced and not self._warned:
                    self._warned = True
                    parts = ", ".join(sorted({type(place.module).__name__ for place in hook.places}))
                    warnings.warn(
                        f"{self.recipe.name} decides in the middle of the model: {len(hook.places)} compiled "
                        f"{parts} run uncompiled; compile the blocks (model.compile_repeated_blocks()), of which few "
                        "or none do, or choose a method with site output",
                        UncompiledWarning,
                        stacklevel=2,
                    )
            elif not self._warned:
                self._warned = True
                warnings.warn(
                    f"{self.recipe.name}: {name} was replaced since; accelerate the pipeline again",
                    NothingSkippedWarning,
                    stacklevel=2,
                )

    @property
    def _may_skip(self) -> bool:
        return getattr(self.config, "max_skip", 0) > 0
