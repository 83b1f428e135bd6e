"""The hook on a denoiser's forward: it finds out where it is, decides, and has the site compute or predict."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.hooks import ModelHook
from torch import Tensor, nn

from .anatomy import Anatomy
from .attach import attach, detach
from .batch import folded
from .branch import Branch
from .budget import check_budget
from .clock import Clock
from .compiled import Around
from .conditioning import BranchLabel, Conditioning
from .exact import ExactSavings, patience, pays
from .familiar import Call, Likeness
from .flow import leaves
from .instants import instants
from .listening import ListeningSegment
from .making import make_site
from .passes import Forward
from .recipe import Recipe
from .repeats import Repeats
from .segment import Segment, Verdict
from .sessions import Progress, Sessions
from .sites import Answer, Run
from .stats import FULL, PARTIAL, PREDICTED, SegmentStats
from .tree import ModuleTree
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
        moving, wanted = (anatomy.sample, anatomy.timestep), recipe.config.exact
        self.exact = (
            ExactSavings(model, moving, anatomy.conditioning, patience(model, wanted)) if pays(model, wanted) else None
        )
        self.repeats = Repeats(model) if wanted is not False else None
        self.site = make_site(model, anatomy, recipe)
        self._now = instants(torch.device("cpu"))  # until a call shows where it runs
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
        return self.sessions.now.progress[self]

    @property
    def segment(self) -> Segment | None:
        """The segment under way."""
        return self.progress.segment

    def _hear_label(self, name: str | None) -> None:
        self.progress.label = name

    # -- hook interface --------------------------------------------------------------------------------------------

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with self.sessions.lock:  # threads take turns: what a pass has on the model is one pass's
            now, inputs = self._now, self.anatomy.bind(args, kwargs) if args else kwargs
            began = now()
            turn = self._enter(inputs, len(args))
            if now is not self._now:  # the first call on this device
                now, began = self._now, self._now()
            if self.places:
                self._choose_graphs(inputs, keeps=turn is None or turn.segment.keeps)
            forward = self.fn_ref.original_forward
            if turn is None:
                return forward(*args, **kwargs)
            branch, segment, step = turn.branch, turn.segment, turn.step
            decided = now()
            answer = self._answer(turn, forward, args, kwargs)
            computed = answer.part == 1.0
            letter = FULL if computed else self._note_prediction(turn, answer)
            branch.mark(step, letter)
            ran = now()
            if computed:
                segment.settle(step)  # what was computed decides about the coming steps
            branch.laps.append((letter, began, decided, ran, now()))
            return answer.result

    def _answer(self, turn: _Turn, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Answer:
        """What becomes of a call, with exact savings; after an exception nothing of its trajectory is used again."""
        memory, segment, full = turn.branch.exact, turn.segment, turn.verdict is Verdict.COMPUTE
        if self.exact is not None and (turn.verdict is not Verdict.PREDICT or self.site.runs):
            forward = self.exact.turn(memory, turn.inputs, segment.weights, forward, full)
        if self.repeats is not None:
            self.repeats.begin()
        try:
            run = Call(forward, *args, **kwargs)
            run.likeness = turn.likeness
            answer = self._carry_out(turn, run)
            if answer.part and self.recipe.budget is not None:
                check_budget(self.recipe, segment.branches.values())
            return answer
        except BaseException:
            self.abort()
            raise
        finally:
            if self.repeats is not None:
                self.repeats.end(memory, full)

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
            return Answer(self.site.predict(run, branch.cache, segment.predicted(step), segment.kinds), 0.0, 0.0)
        if not segment.keeps:
            return Answer(run(), 1.0, 1.0)
        if branch.signature is not turn.signature:
            self._sign(turn)
        moment = segment.recorded(step)
        if turn.verdict is Verdict.COMPUTE:
            return Answer(self.site.compute(run, branch.cache, moment), 1.0, 1.0)
        answer = self.site.ask(run, branch.cache, moment, partial(segment.judge, step, branch))
        if answer.part == 1.0:
            segment.computed(step, branch)
        return answer

    def _sign(self, turn: _Turn) -> None:
        """What a branch holds must fit the inputs of the step that is, or may be, computed."""
        branch = turn.branch
        if branch.signature != turn.signature:
            branch.forget()
        branch.signature = turn.signature
        if turn.step == 0 and self.recipe.table is not None:
            branch.folded = folded(turn.inputs.get(self.anatomy.sample))

    def _note_prediction(self, turn: _Turn, answer: Answer) -> str:
        kinds = turn.segment.kinds
        share = self.site.share(kinds) + answer.cost
        if share:
            turn.branch.block_shares.append(share)
        return PARTIAL if answer.part or self.site.partial(kinds) else PREDICTED

    def reset_state(self, module: nn.Module) -> nn.Module:
        """diffusers calls this when a pipeline call ends; the clock has ended the trajectory by then."""
        return module

    # -- the path of a step ----------------------------------------------------------------------------------------

    def _enter(self, inputs: dict[str, Any], placed: int) -> _Turn | None:
        """What to do in this call; None means: run the model and keep out of it."""
        session = self.sessions.now
        clock, progress, timestep = session.clock, session.progress[self], inputs.get(self.anatomy.timestep)
        at = clock.locate(timestep)
        segment = progress.segment
        if segment is None or progress.trajectory != clock.trajectory:
            segment = self._open(clock, progress, at)
        step = at - segment.start
        branch = segment.branches.familiar(progress.label, inputs, placed)
        likeness = None if branch is None else branch.likeness
        if branch is None:
            branch = self._recognise(segment, progress.label, inputs, placed, step)
        if branch.last_step >= step:
            if not clock.repeated(timestep):
                branch.fall_back(step, "one branch was called twice in a step")
                return None
            step = clock.step - segment.start
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
        self._now = instants(_device(inputs))
        now = Conditioning(self.anatomy.identity(inputs))
        branch = segment.branches.of(label, now, step)
        known = branch.conditioning
        # Conditioning that is made anew for each call is not worth to be remembered.
        repeats = known.tensors is not now.tensors
        branch.likeness = Likeness.of(self.anatomy, inputs, placed) if repeats else None
        return branch

    def _open(self, clock: Clock, progress: Progress, start: int) -> Segment:
        """This denoiser's segment begins, the first of a trajectory or another one."""
        if progress.trajectory != clock.trajectory:
            progress.trajectory, progress.closed = clock.trajectory, []
        clock.enter(self)
        kind = Segment if self.recipe.signal is None else ListeningSegment
        total, exact = self._segment_length(start), self.exact is not None
        progress.segment = kind(self.recipe, self.site, clock, start, total, self.weights, exact)
        return progress.segment

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
            reason = self.site.hindrance(branch.cache, step)
        if reason is not None:
            branch.fall_back(step, reason)
        return reason is None

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
            segment = session.progress[self].segment
            if segment is not None:
                segment.site = self.site

    def install(self, model: nn.Module) -> None:
        attach(model, self)
        self.site.install(model)

    def uninstall(self, model: nn.Module) -> None:
        self.leave()
        if self.exact is not None:
            self.exact.uninstall()
        if self.repeats is not None:
            self.repeats.uninstall()
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
