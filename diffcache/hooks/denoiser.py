"""Sites ``output`` and ``body``: the hook on a denoiser's forward that decides, predicts and records."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.hooks import ModelHook
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..predictors import TokenLayout
from .anatomy import Anatomy, find_block_lists
from .attach import attach, detach
from .body import BodySite
from .branch import Branch
from .clock import Clock
from .conditioning import BranchLabel, Conditioning
from .outputs import flatten
from .recipe import Recipe
from .segment import Segment
from .stats import FULL, PREDICTED, Mark, SegmentStats
from .weights import WeightsWatch


class DenoiserHook(ModelHook):
    """Runs one denoiser (an expert) under a recipe.

    The decision comes before anything of the denoiser runs. At a predicted step of site ``output`` nothing of it
    runs at all; of site ``body`` its embeddings and its head run, and no block.

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
        self.label = BranchLabel()
        self.weights = WeightsWatch(model)
        self.segment: Segment | None = None
        self.closed: list[Segment] = []
        self._trajectory = -1
        self._body = BodySite(find_block_lists(model), model) if recipe.site == "body" else None

    # -- hook interface --------------------------------------------------------------------------------------------

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        inputs = self.anatomy.bind(args, kwargs)
        began = Mark(_device(inputs))  # deciding counts as well
        branch, step, predict = self._enter(inputs)
        if branch is None:
            return self.fn_ref.original_forward(*args, **kwargs)
        if predict:
            result = self._predict(branch, step, args, kwargs)
            branch.mark(step, PREDICTED)
            branch.predict_watch.add(began)
            return result
        try:
            result = self._compute(branch, step, inputs, args, kwargs)
        except BaseException:
            self.abort()
            raise
        branch.mark(step, FULL)
        self.segment.settle(step)
        branch.compute_watch.add(began)
        return result

    def reset_state(self, module: nn.Module) -> nn.Module:
        """diffusers calls this when a pipeline call ends; the clock has ended the trajectory by then."""
        return module

    # -- the path of a step ----------------------------------------------------------------------------------------

    def _enter(self, inputs: dict[str, Any]) -> tuple[Branch | None, int, bool]:
        """Branch, step in the segment, and whether to predict; no branch means: run the model and keep out of it."""
        timestep = inputs.get(self.anatomy.timestep)
        segment, step = self._locate(timestep)
        conditioning = Conditioning(inputs.get(name) for name in self.anatomy.conditioning)
        branch = segment.branch(self.label.name, conditioning, step)
        if branch.last_step >= step:
            if not self.clock.repeated(timestep):
                branch.fall_back(step, "one branch was called twice in a step")
                return None, step, False
            segment, step = self._locate(timestep)
        if segment.decide(step, self.weights.fingerprint):
            return branch, step, False
        predict = self._can_predict(branch, step, inputs)
        if not predict:
            segment.compute_after_all(step, branch)
        return branch, step, predict

    def _locate(self, timestep: Any) -> tuple[Segment, int]:
        now = self.clock.locate(timestep)
        if self._trajectory != self.clock.trajectory:
            self._trajectory, self.closed, self.segment = self.clock.trajectory, [], None
        if self.segment is None:
            self.clock.enter(self)
            self.segment = Segment(self.recipe, now, self._segment_length(now), self._time)
        return self.segment, now - self.segment.start

    def _segment_length(self, start: int) -> int | None:
        """Steps until the trajectory ends, or until the other expert takes over."""
        total = self.clock.total
        if total is None:
            return None
        switch = self.clock.first_below(self.boundary) if self.boundary is not None else None
        return (switch if switch is not None and switch > start else total) - start

    def _time(self, step: int) -> float:
        return self.clock.time(self.recipe.axis, step)

    def _can_predict(self, branch: Branch, step: int, inputs: dict[str, Any]) -> bool:
        """Whether a due prediction is possible; if not, the reason is counted."""
        if not branch.ready:
            branch.fall_back(step, "too few computed steps in this branch")
        elif branch.signature != self._signature(inputs):
            branch.forget()
            branch.fall_back(step, "input shape, dtype or device changed")
        elif torch.is_grad_enabled() and any(getattr(v, "requires_grad", False) for v in inputs.values()):
            branch.fall_back(step, "an input requires a gradient")
        elif self._body is not None and not self._body.known:
            branch.fall_back(step, "the body was not captured")
        else:
            return True
        return False

    def _compute(self, branch: Branch, step: int, inputs: dict[str, Any], args: Any, kwargs: Any) -> Any:
        keeps = self.segment is not None and self.segment.keeps
        if self._body is not None and keeps:
            with self._body.capturing() as captured:
                result = self.fn_ref.original_forward(*args, **kwargs)
            self._record(branch, step, inputs, [captured.residual()], None)
            return result
        result = self.fn_ref.original_forward(*args, **kwargs)
        if keeps:
            tensors, template = flatten(result)
            self._record(branch, step, inputs, tensors, template)
        return result

    def _record(self, branch: Branch, step: int, inputs: dict[str, Any], tensors: list[Tensor], template: Any) -> None:
        signature = self._signature(inputs)
        if branch.signature != signature:
            branch.forget()
        branch.signature, branch.template = signature, template
        if len(branch.layouts) != len(tensors):
            branch.layouts = [self._layout(t) for t in tensors]
        segment = self.segment
        with torch.no_grad():
            ahead = segment.ahead(step)
            branch.record(tensors, step, segment.time(step), ahead, segment.schedule.wants_error and bool(ahead))

    def _predict(self, branch: Branch, step: int, args: Any, kwargs: Any) -> Any:
        with torch.no_grad():
            values = branch.predict(step, self.segment.time(step))
        if self._body is None:
            return branch.template.rebuild(values)
        with self._body.replaying(values[0]):
            return self.fn_ref.original_forward(*args, **kwargs)

    def _signature(self, inputs: dict[str, Any]) -> tuple[Any, ...]:
        """What must not change under a history: shape, dtype and device of the sample, and the kind of return value."""
        sample, returned = inputs.get(self.anatomy.sample), inputs.get("return_dict", True)
        if isinstance(sample, (list, tuple)):
            return tuple(tuple(part.shape) for part in sample), sample[0].dtype, sample[0].device, returned
        return tuple(sample.shape), sample.dtype, sample.device, returned

    def _layout(self, output: Tensor) -> TokenLayout:
        if self._body is not None:
            return TokenLayout()  # hidden states have their features last
        widths = self.recipe.modalities
        if widths:
            probe = self.anatomy.layout(output)
            width = output.shape[probe.channel_dim]
            if sum(widths) != width:
                raise UnsupportedModelError(
                    f"modalities: {list(widths)} sum to {sum(widths)}, the output has {width} channels"
                )
        return self.anatomy.layout(output, widths)

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

    def install(self, model: nn.Module) -> None:
        attach(model, self)
        if self._body is not None:
            self._body.install()

    def uninstall(self, model: nn.Module) -> None:
        self.leave()
        if self._body is not None:
            self._body.uninstall()
        detach(model)


def _device(inputs: dict[str, Any]) -> torch.device:
    return next((v.device for v in inputs.values() if isinstance(v, Tensor)), torch.device("cpu"))
