"""Sites that only listen: the denoiser runs in full, and numbers about its step are kept."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..hooks.anatomy import find_block_lists
from ..hooks.body import BodySite
from ..hooks.cache import Cache, Moment
from ..hooks.denoiser import DenoiserHook
from ..hooks.gate import GatedBody
from ..hooks.outputs import flatten
from ..hooks.sites import Run, Site
from ..schedules import ratios, relative_change

UNKNOWN = float("nan")
#: told at every step: how many are done of how many (0 when a trajectory begins)
OnStep = Callable[[int, int], None]


@dataclass
class Track:
    """One branch of one denoiser in one trajectory.

    Attributes:
        steps: length of the segment that it belongs to.
        trajectory_steps: length of the whole trajectory.
        sampler: class name of its sampler.
        numbers: step of the segment -> what was measured there against the step before; NaN where nothing could be.
        last: the last step at which the branch was called.
    """

    trajectory: int
    expert: str
    branch: str
    steps: int
    trajectory_steps: int
    sampler: str | None
    numbers: dict[int, tuple[float, ...]] = field(default_factory=dict)
    last: int = -1
    before: list[Tensor] | None = None


class Silent(Cache):
    """Holds nothing and predicts nothing."""

    ready = False

    def held(self) -> Iterator[Tensor]:
        return iter(())

    def forget(self) -> None:
        pass


class Ear(Site):
    """Measures each step of a denoiser against the step before.

    Args:
        model: the denoiser.
        hook: its hook, which knows where in the trajectory it is.
        sampler: tells the class name of the sampler that drives it.
        on_step: told at every step.
    """

    #: numbers that one step gives
    width = 1

    def __init__(
        self, model: nn.Module, hook: DenoiserHook, sampler: Callable[[], str | None], on_step: OnStep
    ) -> None:
        self.body = self._body(model)
        self.tracks: list[Track] = []
        self._hook, self._sampler, self._on_step = hook, sampler, on_step

    def _body(self, model: nn.Module) -> BodySite:
        return BodySite(find_block_lists(model), model)

    @abstractmethod
    def listen(self, result: Any, residuals: list[Tensor] | None) -> list[Tensor] | None:
        """What to keep of a step until the next one; None if the step does not show it."""

    @abstractmethod
    def compare(self, now: list[Tensor], before: list[Tensor]) -> tuple[float, ...]:
        """What a step says about the one before."""

    # -- as the engine calls it ------------------------------------------------------------------------------------

    def cache(self) -> Silent:
        return Silent()

    def compute(self, run: Run, cache: Cache, moment: Moment) -> Any:
        result, residuals = self.body.compute(run)
        with torch.no_grad():
            self._note(self._track(cache), moment.step, self.listen(result, residuals))
        return result

    def predict(self, run: Run, cache: Cache, moment: Moment, kinds: frozenset[str]) -> Any:
        return run()

    def install(self, model: nn.Module) -> None:
        self.body.install()

    def uninstall(self, model: nn.Module) -> None:
        self.body.uninstall()

    # -- keeping ---------------------------------------------------------------------------------------------------

    def _track(self, cache: Cache) -> Track:
        segment, clock = self._hook.segment, self._hook.clock
        branch = next(b.name for b in segment.branches.values() if b.cache is cache)
        key = (clock.trajectory, branch)
        found = next((t for t in reversed(self.tracks) if (t.trajectory, t.branch) == key), None)
        if found is None:
            expert = self._hook.expert
            found = Track(clock.trajectory, expert, branch, segment.total, clock.total, self._sampler())
            self.tracks.append(found)
        return found

    def _note(self, track: Track, step: int, now: list[Tensor] | None) -> None:
        if step > 0:
            known = now is not None and track.before is not None and _shapes(now) == _shapes(track.before)
            if known or track.last >= 0:
                track.numbers[step] = self.compare(now, track.before) if known else (UNKNOWN,) * self.width
        track.before, track.last = now, step
        self._on_step(self._hook.clock.step + 1, self._hook.clock.total)


class MagnitudeEar(Ear):
    """The magnitude ratio of the residual over all blocks (MagCache, arXiv 2506.09045)."""

    def listen(self, result: Any, residuals: list[Tensor] | None) -> list[Tensor] | None:
        return None if residuals is None else [torch.cat([r.float().norm(dim=-1).flatten() for r in residuals])]

    def compare(self, now: list[Tensor], before: list[Tensor]) -> tuple[float, ...]:
        return (ratios(torch.stack([*before, *now]))[1],)


class DriftEar(Ear):
    """Relative L1 change of the first block's modulated input, and of the output (TeaCache, arXiv 2411.19108)."""

    width = 2

    def _body(self, model: nn.Module) -> GatedBody:
        return GatedBody(find_block_lists(model), model, first=0, last=0, inside=True)

    def listen(self, result: Any, residuals: list[Tensor] | None) -> list[Tensor] | None:
        heard, self.body.heard = self.body.heard, None
        if heard is None:
            raise UnsupportedModelError("teacache: the first block has no attention to listen to")
        return [heard, *(tensor.detach().clone() for tensor in flatten(result)[0])]

    def compare(self, now: list[Tensor], before: list[Tensor]) -> tuple[float, ...]:
        heard, *outputs = (relative_change(*pair).amax() for pair in zip(now, before, strict=True))
        return float(heard), float(torch.stack(outputs).amax())


def _shapes(values: list[Tensor]) -> list[torch.Size]:
    return [value.shape for value in values]
