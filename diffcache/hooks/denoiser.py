"""The hook on a denoiser's forward: it finds out where it is, decides, and has the site compute or predict."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers.hooks import ModelHook
from torch import Tensor, nn

from .anatomy import Anatomy
from .attach import attach, detach
from .branch import Branch
from .cache import Moment
from .clock import Clock
from .conditioning import BranchLabel, Conditioning
from .exact import ExactSavings
from .gated import GatedSite
from .modules import find_units
from .rate import RateSite
from .recipe import Recipe
from .segment import Segment, Verdict
from .sites import BodyOutput, OutputSite, Run, Site
from .stats import FULL, PARTIAL, PREDICTED, Mark, SegmentStats
from .tree import ModuleTree
from .units import UnitSite
from .weights import WeightsWatch


class DenoiserHook(ModelHook):
    """Runs one denoiser (an expert) under a recipe.

    The decision comes before anything of the denoiser runs; what runs at a predicted step is up to the site.

    Args:
        expert: component name, for stats.
        model: the denoiser.
        anatomy: its anatomy.
        recipe: the method.
        clock: shared by all experts of a pipeline.
        boundary: timesteps from which (and below which) this expert runs, where the pipeline says so.
    """

    _is_stateful = True  # so that a pipeline's cache_context reaches our label

    def __init__(
        self, expert: str, model: nn.Module, anatomy: Anatomy, recipe: Recipe, clock: Clock, boundary: float | None
    ) -> None:
        super().__init__()
        self.expert, self.anatomy, self.recipe, self.clock, self.boundary = expert, anatomy, recipe, clock, boundary
        self.model = model
        self.label = BranchLabel()
        self.weights, self.tree = WeightsWatch(model), ModuleTree(model)
        self.segment: Segment | None = None
        self.closed: list[Segment] = []
        self._trajectory = -1
        saves = getattr(recipe.config, "exact", True)
        moving = (anatomy.sample, anatomy.timestep)
        self.exact = ExactSavings(model, moving, anatomy.conditioning) if saves else None
        self.site = make_site(model, anatomy, recipe)

    # -- hook interface --------------------------------------------------------------------------------------------

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        inputs = self.anatomy.bind(args, kwargs)
        began = Mark(_device(inputs))
        branch, step, verdict = self._enter(inputs)
        forward = self.fn_ref.original_forward
        if branch is None:
            return forward(*args, **kwargs)
        branch.decide_watch.add(began)
        began = Mark(_device(inputs))
        if self.exact is not None and (verdict is not Verdict.PREDICT or self.site.runs):
            full = verdict is Verdict.COMPUTE
            forward = self.exact.turn(branch.exact, inputs, self.segment.weights, forward, full)
        run = partial(forward, *args, **kwargs)
        try:
            result, computed = self._carry_out(verdict, branch, step, inputs, run)
        except BaseException:
            self.abort()
            raise
        if computed:
            branch.mark(step, FULL)
            branch.compute_watch.add(began)
            began = Mark(_device(inputs))
            self.segment.settle(step)  # what was computed decides about the coming steps
            branch.decide_watch.add(began)
        else:
            self._note_prediction(branch, step)
            branch.predict_watch.add(began)
        return result

    def _carry_out(
        self, verdict: Verdict, branch: Branch, step: int, inputs: dict[str, Any], run: Run
    ) -> tuple[Any, bool]:
        """The result, and whether it was computed in full."""
        if verdict is Verdict.PREDICT:
            moment = Moment(step, self.segment.time(step))
            return self.site.predict(run, branch.cache, moment, self.segment.kinds), False
        if not self.segment.keeps:
            return run(), True
        moment = self._recorded(branch, step, inputs)
        if verdict is Verdict.ASK:
            judge = partial(self.segment.judge, step, branch)
            return self.site.ask(run, branch.cache, moment, judge)
        return self.site.compute(run, branch.cache, moment), True

    def _note_prediction(self, branch: Branch, step: int) -> None:
        share = self.site.share(self.segment.kinds)
        if share:
            branch.block_shares.append(share)
        branch.mark(step, PARTIAL if self.segment.kinds else PREDICTED)

    def reset_state(self, module: nn.Module) -> nn.Module:
        """diffusers calls this when a pipeline call ends; the clock has ended the trajectory by then."""
        return module

    # -- the path of a step ----------------------------------------------------------------------------------------

    def _enter(self, inputs: dict[str, Any]) -> tuple[Branch | None, int, Verdict]:
        """Branch, step in the segment, and what to do; no branch means: run the model and keep out of it."""
        timestep = inputs.get(self.anatomy.timestep)
        segment, step = self._locate(timestep)
        conditioning = Conditioning(self.anatomy.identity(inputs))
        branch = segment.branch(self.label.name, conditioning, step)
        if branch.last_step >= step:
            if not self.clock.repeated(timestep):
                branch.fall_back(step, "one branch was called twice in a step")
                return None, step, Verdict.COMPUTE
            segment, step = self._locate(timestep)
        verdict = segment.decide(step, branch, self._fingerprint)
        if verdict is not Verdict.COMPUTE and not self._can_predict(branch, step, inputs):
            segment.compute_after_all(step, branch)
            verdict = Verdict.COMPUTE
        return branch, step, verdict

    def _fingerprint(self) -> Any:
        """Of the weights; a change of them in mid-trajectory may have moved modules as well."""
        found = self.weights.fingerprint()
        if self.segment.deciding >= 0 and found != self.segment.weights:
            self.look_again()
        return found

    def _locate(self, timestep: Any) -> tuple[Segment, int]:
        now = self.clock.locate(timestep)
        if self._trajectory != self.clock.trajectory:
            self._trajectory, self.closed, self.segment = self.clock.trajectory, [], None
        if self.segment is None:
            self.clock.enter(self)
            self.segment = Segment(self.recipe, self.site, self.clock, now, self._segment_length(now))
        return self.segment, now - self.segment.start

    def _segment_length(self, start: int) -> int | None:
        """Steps until the trajectory ends, or until the other expert takes over."""
        total = self.clock.total
        if total is None:
            return None
        switch = self.clock.first_below(self.boundary) if self.boundary is not None else None
        return (switch if switch is not None and switch > start else total) - start

    def _can_predict(self, branch: Branch, step: int, inputs: dict[str, Any]) -> bool:
        """Whether a due prediction is possible; if not, the reason is counted."""
        if branch.cache.ready and branch.signature != self._signature(inputs):
            branch.forget()
            reason = "input shape, dtype or device changed"
        elif torch.is_grad_enabled() and any(getattr(v, "requires_grad", False) for v in inputs.values()):
            reason = "an input requires a gradient"
        else:
            reason = self.site.hindrance(branch.cache)
        if reason is not None:
            branch.fall_back(step, reason)
        return reason is None

    def _recorded(self, branch: Branch, step: int, inputs: dict[str, Any]) -> Moment:
        """A step that is, or may be, computed; what its branch holds must fit its inputs."""
        segment, signature = self.segment, self._signature(inputs)
        if branch.signature != signature:
            branch.forget()
        branch.signature = signature
        ahead = segment.ahead(step)
        return Moment(step, segment.time(step), ahead, segment.schedule.wants_error and bool(ahead))

    def _signature(self, inputs: dict[str, Any]) -> tuple[Any, ...]:
        """What must not change under a history."""
        return self.anatomy.signature(inputs)

    # -- lifetime --------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """The trajectory ended, or another expert runs: free the memory, keep the numbers."""
        if self.segment is not None:
            self.segment.close()
            self.closed.append(self.segment)
            self.segment = None

    def abort(self) -> None:
        """An exception passed through: nothing of this trajectory may be used again."""
        self.leave()
        self.clock.end()

    @property
    def in_trajectory(self) -> bool:
        """Whether this expert has run in the clock's current trajectory."""
        return self._trajectory == self.clock.trajectory

    def stats(self) -> list[SegmentStats]:
        segments = [*self.closed, *([self.segment] if self.segment is not None else [])]
        return [s for segment in segments for s in segment.stats(self.expert)]

    def idle_reasons(self) -> list[str]:
        """Why each closed segment predicted nothing; empty if one of them did predict."""
        reasons = [segment.idle_reason for segment in self.closed if segment.branches]
        return [] if None in reasons else [r for r in reasons if r]

    def look_again(self) -> None:
        """Modules may have been put in or taken out (LoRA, quantisers): the site's hooks go to where they belong."""
        self.weights.look_again()
        if not self.tree.look_again():
            return
        self.site.uninstall(self.model)
        self.site = make_site(self.model, self.anatomy, self.recipe)
        self.site.install(self.model)
        if self.segment is not None:
            self.segment.site = self.site

    def install(self, model: nn.Module) -> None:
        attach(model, self)
        self.site.install(model)

    def uninstall(self, model: nn.Module) -> None:
        self.leave()
        if self.exact is not None:
            self.exact.uninstall()
        self.site.uninstall(model)
        detach(model)


def _device(inputs: dict[str, Any]) -> torch.device:
    return next((v.device for v in inputs.values() if isinstance(v, Tensor)), torch.device("cpu"))


def make_site(model: nn.Module, anatomy: Anatomy, recipe: Recipe) -> Site:
    """The site that a recipe asks for, on one denoiser.

    Raises:
        UnsupportedModelError: the denoiser does not have it.
    """
    if recipe.signal == "rate":
        return RateSite(anatomy, recipe)
    if recipe.signal is not None:
        return GatedSite(model, recipe)
    if recipe.site == "output":
        return OutputSite(anatomy, recipe)
    if recipe.site == "body":
        return BodyOutput(model, recipe)
    return UnitSite(find_units(model, recipe.site, recipe.kinds), recipe)
