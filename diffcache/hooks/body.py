"""Site ``body``: the residual over all blocks of a denoiser, at model level.

It stays right where the model adds something between its blocks (ControlNet, face adapters, control branches),
because nothing that the loop does with the skipped blocks' placeholders reaches the output: the value at the end of
the body is replaced as a whole. Where the body begins and ends is not a list of names. It is proposed by watching one
computed step and then proved by replaying it: the model, run again with every block skipped, has to return what it
returned. A body that cannot be proved is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from diffusers.hooks import ModelHook
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from .again import compare, repeatable
from .attach import HOOK_NAME, attach, detach
from .outputs import flatten
from .passes import Capturing, Exploring, Replaying
from .plans import Plan, propose

_EXIT_NAME = f"{HOOK_NAME}_exit"
_BLOCK_NAME = f"{HOOK_NAME}_block"

Run = Callable[[], Any]


class BodySite:
    """Hooks on the blocks of one denoiser and on the modules behind them.

    Attributes:
        plan: where the body begins and ends; None until a computed step has shown it.
    """

    def __init__(self, block_lists: Mapping[str, nn.ModuleList], model: nn.Module) -> None:
        self.model = model
        self.blocks = {block: name for name, blocks in block_lists.items() for block in blocks}
        self.plan: Plan | None = None
        #: the pass under way
        self.now: Exploring | Capturing | Replaying | None = None
        self._copies = False  # whether the model writes into what its first block receives

    # -- running the model -----------------------------------------------------------------------------------------

    def compute(self, run: Run) -> tuple[Any, list[Tensor] | None]:
        """Run in full; the result, and the residuals of this step (None if this step does not show them).

        Raises:
            UnsupportedModelError: no body of this model can be replayed.
        """
        if self.plan is None:
            return self._explore(run)
        seen = Capturing(self.plan, self._copies)
        return self._under(seen, run), self._taken(seen)

    def _taken(self, seen: Capturing) -> list[Tensor] | None:
        residuals = seen.residuals()
        if residuals is None:
            # Another kind of call (a modality left out, a block list not run), or the input was overwritten.
            self._copies = self._copies or seen.overwritten
            self._adopt(None)
        return residuals

    def replay(self, run: Run, residuals: list[Tensor]) -> Any:
        """Run with every block skipped and ``residuals`` added to the body's input."""
        return self._under(Replaying(self.plan, residuals), run)

    def _under(self, now: Any, run: Run) -> Any:
        """Run with ``now`` as the pass under way."""
        before, self.now = self.now, now
        try:
            return run()
        finally:
            self.now = before

    def _explore(self, run: Run) -> tuple[Any, list[Tensor] | None]:
        again = repeatable(run)
        explorer = self._explorer()
        with explorer.watching():
            result = self._under(explorer, run)
        with torch.no_grad():
            for plan, residuals in self._proposals(explorer):
                verdict = self._try(plan, residuals, again, result, explorer)
                if verdict is None:
                    return result, None
                if verdict:
                    self._adopt(plan)
                    return result, residuals
        raise UnsupportedModelError(
            f"site body: {type(self.model).__name__} does not return the same when its blocks are skipped and their "
            "residual is put back: something else of the blocks reaches the output; use site output"
        )

    def _explorer(self) -> Exploring:
        return Exploring(self.model, self.blocks)

    def _proposals(self, explorer: Exploring) -> Iterator[tuple[Plan, list[Tensor]]]:
        return propose(explorer)

    def _try(self, plan: Plan, residuals: list[Tensor], run: Run, result: Any, explorer: Exploring) -> bool | None:
        """Whether a replay of the step just computed returns ``result``; None if that is not finite."""
        self._adopt(plan)
        replaying = Replaying(plan, residuals)
        try:
            replayed = self._under(replaying, run)
        except Exception:
            return False  # what the skipped blocks leave behind does not fit this plan
        finally:
            self._adopt(None)
        if replaying.first is None:
            return False
        same = explorer.begins_like(plan, replaying.first)
        finite, close = compare(flatten(result)[0], flatten(replayed)[0])
        # one host read for a model's first computed step
        finite, passed = torch.stack([finite, close & same]).tolist()
        return passed if finite else None

    # -- hooks -----------------------------------------------------------------------------------------------------

    def install(self) -> None:
        for block in self.blocks:
            attach(block, _BlockHook(self), _BLOCK_NAME)

    def uninstall(self) -> None:
        for block in self.blocks:
            detach(block, _BLOCK_NAME)
        self._adopt(None)

    def _adopt(self, plan: Plan | None) -> None:
        """Make ``plan`` the one that runs; the hooks of the one before come off."""
        for module in self.plan.exits if self.plan is not None else ():
            detach(module, _EXIT_NAME)
        self.plan = plan
        for index, module in enumerate(plan.exits if plan is not None else ()):
            attach(module, _ExitHook(self, index), _EXIT_NAME)


class _BlockHook(ModelHook):
    """Lets a block run, or passes its inputs on in its place."""

    def __init__(self, site: BodySite) -> None:
        super().__init__()
        self.site = site

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        now, forward = self.site.now, self.fn_ref.original_forward  # runs for every block: no call more than needed
        if now is None:
            return forward(*args, **kwargs)
        if now.looks_at is None or module in now.looks_at:
            return now.block(module, forward, args, kwargs)
        now.ended = ()
        return forward(*args, **kwargs)


class _ExitHook(ModelHook):
    """A module behind the body."""

    def __init__(self, site: BodySite, index: int) -> None:
        super().__init__()
        self.site, self.index = site, index

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        now, forward = self.site.now, self.fn_ref.original_forward
        if now is None:
            return forward(*args, **kwargs)
        if args and isinstance(args[0], Tensor):
            return forward(now.exit(self.index, args[0]), *args[1:], **kwargs)
        place = next((i for i, value in enumerate(args) if isinstance(value, Tensor)), None)
        if place is not None:
            return forward(*args[:place], now.exit(self.index, args[place]), *args[place + 1 :], **kwargs)
        name = next(key for key, value in kwargs.items() if isinstance(value, Tensor))
        return forward(*args, **{**kwargs, name: now.exit(self.index, kwargs[name])})
