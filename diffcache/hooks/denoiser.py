"""The hook on a denoiser's forward: it finds out where it is, decides, and has the site compute or predict."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.hooks import ModelHook
from torch import Tensor, nn

from ..predictors import Fitted
from .anatomy import Anatomy
from .attach import attach, detach
from .batch import folded
from .branch import Branch
from .budget import check_budget
from .cache import Moment
from .clock import Clock
from .compiled import Around
from .conditioning import BranchLabel, Conditioning
from .exact import ExactSavings, pays
from .familiar import Call, Likeness
from .flow import leaves
from .gated import GatedSite
from .levels import fitted_site
from .modules import find_units, unit_kinds
from .partial import PartialOutputSite
from .rate import RateSite
from .recipe import Recipe
from .segment import Segment, Verdict
from .sessions import Progress, Session, Sessions
from .sites import Answer, BodyOutput, OutputSite, Run, Site
from .sparse import sparse_site
from .stats import FULL, PARTIAL, PREDICTED, Mark, SegmentStats
from .tokens import TokenSite
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
        sessions: whose turn it is; shared by all experts of a pipeline.
        boundary: timesteps from which (and below which) this expert runs, where the pipeline says so.
    """

    _is_stateful = True  # so that a pipeline's cache_context reaches our label

    def __init__(
        self,
        expert: str,
        model: nn.Module,
        anatomy: Anatomy,
        recipe: Recipe,
        sessions: Sessions,
        boundary: float | None,
    ) -> None:
        super().__init__()
        self.expert, self.anatomy, self.recipe, self.boundary = expert, anatomy, recipe, boundary
        self.model, self.sessions = model, sessions
        self.label = BranchLabel(self._hear_label)
        self.weights, self.tree = WeightsWatch(model), ModuleTree(model)
        moving = (anatomy.sample, anatomy.timestep)
        self.exact = ExactSavings(model, moving, anatomy.conditioning) if pays(model, recipe.config.exact) else None
        self.site = make_site(model, anatomy, recipe)
        #: around what is compiled and has hooks of the site inside
        self.places: list[Around] = []

    # -- whose turn it is ------------------------------------------------------------------------------------------

    @property
    def clock(self) -> Clock:
        """That of the session under way."""
        return self.sessions.now.clock

    @property
    def progress(self) -> Progress:
        """This denoiser's in the session under way."""
        return self.sessions.now.progress(self)

    @property
    def segment(self) -> Segment | None:
        """The segment under way."""
        return self.progress.segment

    def _hear_label(self, name: str | None) -> None:
        self.progress.label = name

    # -- hook interface --------------------------------------------------------------------------------------------

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with self.sessions.lock:  # threads take turns: what a pass has on the model is one pass's
            return self._forward(args, kwargs)

    def _forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs = self.anatomy.bind(args, kwargs)
        began = Mark(_device(inputs))
        turn = self._enter(self.sessions.now, inputs, len(args))
        if self.places:
            self._choose_graphs(inputs, keeps=turn is None or turn.segment.keeps)
        forward = self.fn_ref.original_forward
        if turn is None:
            return forward(*args, **kwargs)
        branch, segment = turn.branch, turn.segment
        began = branch.decide_watch.lap(began)
        if self.exact is not None and (turn.verdict is not Verdict.PREDICT or self.site.runs):
            full = turn.verdict is Verdict.COMPUTE
            forward = self.exact.turn(branch.exact, inputs, segment.weights, forward, full)
        try:
            run = Call(forward, *args, **kwargs)
            run.likeness = turn.likeness
            answer = self._carry_out(turn, run)
            if answer.part and self.recipe.budget is not None:
                check_budget(self.recipe, segment.branches.values())
        except BaseException:
            self.abort()
            raise
        if answer.part == 1.0:
            branch.mark(turn.step, FULL)
            began = branch.compute_watch.lap(began)
            segment.settle(turn.step)  # what was computed decides about the coming steps
            branch.decide_watch.lap(began)
        else:
            self._note_prediction(turn, answer)
            branch.predict_watch.lap(began)
        return answer.result

    def _choose_graphs(self, inputs: dict[str, Any], keeps: bool) -> None:
        """What is compiled around the site's hooks runs as it is written while the site has to learn from it.

        Where nothing is kept there is nothing to learn.
        """
        form = tuple(getattr(v, "shape", v) for v in leaves(inputs) if not isinstance(v, float))
        learns = keeps and self.site.learns(form)
        for place in self.places:
            place.compile(not learns)

    def _carry_out(self, turn: _Turn, run: Run) -> Answer:
        segment, branch, step = turn.segment, turn.branch, turn.step
        if turn.verdict is Verdict.PREDICT:
            moment = Moment(step, segment.time(step))
            return Answer(self.site.predict(run, branch.cache, moment, segment.kinds), 0.0, 0.0)
        if not segment.keeps:
            return Answer(run(), 1.0, 1.0)
        moment = self._recorded(turn)
        if turn.verdict is Verdict.ASK:
            judge = partial(segment.judge, step, branch)
            answer = self.site.ask(run, branch.cache, moment, judge)
            if answer.part == 1.0:
                segment.computed(step, branch)
            return answer
        return Answer(self.site.compute(run, branch.cache, moment), 1.0, 1.0)

    def _note_prediction(self, turn: _Turn, answer: Answer) -> None:
        branch, kinds = turn.branch, turn.segment.kinds
        share = self.site.share(kinds) + answer.cost
        if share:
            branch.block_shares.append(share)
        computed_some = answer.part or self.site.partial(kinds)
        branch.mark(turn.step, PARTIAL if computed_some else PREDICTED)

    def reset_state(self, module: nn.Module) -> nn.Module:
        """diffusers calls this when a pipeline call ends; the clock has ended the trajectory by then."""
        return module

    # -- the path of a step ----------------------------------------------------------------------------------------

    def _enter(self, session: Session, inputs: dict[str, Any], placed: int) -> _Turn | None:
        """What to do in this call; None means: run the model and keep out of it."""
        clock, progress = session.clock, session.progress(self)
        timestep = inputs.get(self.anatomy.timestep)
        segment, step = self._locate(clock, progress, timestep)
        branch = segment.branches.familiar(progress.label, inputs, placed)
        likeness = None if branch is None else branch.likeness
        if branch is None:
            branch = self._recognise(segment, progress.label, inputs, placed, step)
        if branch.last_step >= step:
            if not clock.repeated(timestep):
                branch.fall_back(step, "one branch was called twice in a step")
                return None
            segment, step = self._locate(clock, progress, timestep)
        signature = likeness.signature if likeness is not None else self.anatomy.signature(inputs)
        verdict = segment.decide(step, branch)
        if segment.changed:  # what changed the weights may have moved modules as well
            segment.changed = False
            self.look_again()
        if verdict is not Verdict.COMPUTE and not self._can_predict(branch, step, inputs, signature):
            segment.compute_after_all(step, branch)
            verdict = Verdict.COMPUTE
        return _Turn(segment, branch, step, verdict, inputs, signature, likeness)

    def _recognise(self, segment: Segment, label: str | None, inputs: dict[str, Any], placed: int, step: int) -> Branch:
        """The branch of a call that is not like those before it."""
        now = Conditioning(self.anatomy.identity(inputs))
        branch = segment.branches.of(label, now, step)
        known = branch.conditioning
        # Conditioning that is made anew for each call is not worth to be remembered.
        repeats = known.tensors is not now.tensors
        branch.likeness = Likeness.of(self.anatomy, inputs, placed) if repeats else None
        return branch

    def _locate(self, clock: Clock, progress: Progress, timestep: Any) -> tuple[Segment, int]:
        now = clock.locate(timestep)
        if progress.trajectory != clock.trajectory:
            progress.trajectory, progress.closed, progress.segment = clock.trajectory, [], None
        if progress.segment is None:
            clock.enter(self)
            total, always = self._segment_length(now), self.exact is not None
            progress.segment = Segment(self.recipe, self.site, clock, now, total, self.weights, always)
        return progress.segment, now - progress.segment.start

    def _segment_length(self, start: int) -> int | None:
        """Steps until the trajectory ends, or until the other expert takes over."""
        total = self.clock.total
        if total is None:
            return None
        switch = self.clock.first_below(self.boundary) if self.boundary is not None else None
        return (switch if switch is not None and switch > start else total) - start

    def _can_predict(self, branch: Branch, step: int, inputs: dict[str, Any], signature: Any) -> bool:
        """Whether a due prediction is possible; if not, the reason is counted."""
        if branch.signature is not signature and branch.signature != signature and branch.cache.ready:
            branch.forget()
            reason = "input shape, dtype or device changed"
        elif torch.is_grad_enabled() and any(getattr(v, "requires_grad", False) for v in inputs.values()):
            reason = "an input requires a gradient"
        else:
            reason = self.site.hindrance_at(branch.cache, step)
        if reason is not None:
            branch.fall_back(step, reason)
        return reason is None

    def _recorded(self, turn: _Turn) -> Moment:
        """A step that is, or may be, computed; what its branch holds must fit its inputs."""
        segment, branch, step, signature = turn.segment, turn.branch, turn.step, turn.signature
        if branch.signature is not signature and branch.signature != signature:
            branch.forget()
        branch.signature = signature
        if step == 0 and self.recipe.table is not None:
            branch.folded = folded(turn.inputs.get(self.anatomy.sample))
        ahead = segment.ahead(step)
        return Moment(step, segment.time(step), ahead, segment.schedule.wants_error and bool(ahead))

    # -- lifetime --------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """The trajectory ended, or another expert runs: free the memory, keep the numbers."""
        progress = self.progress
        if progress.segment is not None:
            progress.segment.close()
            progress.closed.append(progress.segment)
            progress.segment = None

    def abort(self) -> None:
        """An exception passed through: nothing of this trajectory may be used again."""
        self.leave()
        self.clock.end()

    @property
    def in_trajectory(self) -> bool:
        """Whether this expert has run in the clock's current trajectory."""
        return self.progress.trajectory == self.clock.trajectory

    def stats(self) -> list[SegmentStats]:
        progress = self.progress
        segments = [*progress.closed, *([progress.segment] if progress.segment is not None else [])]
        return [s for segment in segments for s in segment.stats(self.expert)]

    def idle_reasons(self) -> list[str]:
        """Why each closed segment predicted nothing; empty if one of them did predict."""
        reasons = [segment.idle_reason for segment in self.progress.closed if segment.branches]
        return [] if None in reasons else [r for r in reasons if r]

    def look_again(self) -> None:
        """Modules may have been put in or taken out (LoRA, quantisers): the site's hooks go to where they belong."""
        self.weights.look_again()
        if not self.tree.look_again():
            return
        self.site.uninstall(self.model)
        self.site = make_site(self.model, self.anatomy, self.recipe)
        self.site.install(self.model)
        for session in self.sessions:
            segment = session.progress(self).segment
            if segment is not None:
                segment.site = self.site

    def install(self, model: nn.Module) -> None:
        attach(model, self)
        self.site.install(model)

    def uninstall(self, model: nn.Module) -> None:
        self.leave()
        if self.exact is not None:
            self.exact.uninstall()
        self.site.uninstall(model)
        detach(model)


@dataclass(slots=True)
class _Turn:
    """One call of the denoiser: where it is in its trajectory, what to do, and what must not change under a history."""

    segment: Segment
    branch: Branch
    step: int
    verdict: Verdict
    inputs: dict[str, Any]
    signature: Any
    likeness: Likeness | None


def _device(inputs: dict[str, Any]) -> torch.device:
    for value in inputs.values():
        if isinstance(value, Tensor):
            return value.device
    return torch.device("cpu")


def make_site(model: nn.Module, anatomy: Anatomy, recipe: Recipe) -> Site:
    """The site that a recipe asks for, on one denoiser.

    Raises:
        UnsupportedModelError: the denoiser does not have it.
    """
    if recipe.signal == "rate":
        return RateSite(anatomy, recipe)
    if recipe.signal is not None:
        return GatedSite(model, anatomy, recipe)
    if isinstance(recipe.predictor, Fitted):
        return fitted_site(model, anatomy, recipe)
    if recipe.site == "output" and recipe.table is not None:
        return sparse_site(model, anatomy, find_units(model, "module", recipe.kinds), recipe)
    if recipe.site == "output" and recipe.selector is not None:
        return PartialOutputSite(model, anatomy, find_units(model, "module", unit_kinds("module")), recipe)
    if recipe.site == "output":
        return OutputSite(anatomy, recipe)
    if recipe.site == "body":
        return BodyOutput(model, recipe)
    if recipe.site == "token":
        return TokenSite(model, find_units(model, "module", recipe.kinds), recipe)
    return UnitSite(find_units(model, recipe.site, recipe.kinds), recipe)
