"""d2Cache: the likeliest next masks, what was just decoded, and what attention flows through."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ...methods.language import D2CacheConfig, LanguageConfig
from ..attention import probabilities
from ..passes import ForwardPass
from ..plan import StepPlan
from ..rows import Rows
from ..state import SequenceState
from .adaptive import AdaptivePolicy
from .base import Task


class D2Cache(AdaptivePolicy):
    """Rows are chosen after each forward, for the next one."""

    config: D2CacheConfig

    def __init__(self, config: LanguageConfig, task: Task) -> None:
        super().__init__(config, task)
        self._confidence: Tensor | None = None
        self._flow: list[tuple[Tensor, Tensor]] = []
        reach = min(math.ceil(6.0 * self.config.sigma), task.length)  # beyond 6 it is below the resolution of fp32
        self._gaussian = torch.exp(-torch.arange(-reach, reach + 1).float().square() / (2.0 * self.config.sigma**2))

    # -- before the forward --------------------------------------------------------------------------------------------

    def plan(self, state: SequenceState) -> StepPlan:
        self._flow = []
        self._padding = state.padding
        if state.step == 0 or state.step < self.config.warmup:
            want = Rows(state.prompt_length, state.length)
            return StepPlan(Rows(0, state.length), want, state.length, full=True, probe=self)
        chosen = self._masks(state)
        rows = chosen | (state.decoded_at == state.step - 1) | self._nucleus_rows(state, chosen)
        want = self.wanted(state, chosen, self.config.masks + 1)
        return self.over(state, _filled(rows, self.config.gap), want, probe=self)

    def _masks(self, state: SequenceState) -> Tensor:
        """The masks that are likely and near to known tokens, within reach of the block; of the block at least one."""
        score = self._confidence * self._nearness(state)
        opened = state.open
        in_block = super().decodable(state)
        score = torch.where(opened & (state.positions < self._reach(state)), score, -1.0)
        top = score.topk(min(self.config.masks, score.shape[1]), dim=1).indices
        chosen = torch.zeros_like(opened).scatter(1, top, True) & (score >= 0)
        own = torch.where(in_block, score + 1.0, -1.0)
        return chosen | (in_block & (own == own.amax(1, keepdim=True)))

    def _reach(self, state: SequenceState) -> Tensor:
        """End of the block in which the last of so many remaining masks lies ``[B, 1]``."""
        size, start = self.task.block_length, self.task.prompt_length
        within = state.open & (state.open.cumsum(1) <= self.config.masks)
        last = torch.where(within, state.positions, state.block[0]).amax(1, keepdim=True)
        return start + (torch.div(last - start, size, rounding_mode="floor") + 1) * size

    def _nearness(self, state: SequenceState) -> Tensor:
        """``D_i``: sum over known tokens of a Gaussian of the distance."""
        self._gaussian = self._gaussian.to(state.ids.device)
        known = (~state.masked).float()[:, None]
        return F.conv1d(known, self._gaussian[None, None], padding=len(self._gaussian) // 2)[:, 0]

    def _nucleus_rows(self, state: SequenceState, chosen: Tensor) -> Tensor:
        """The smallest set of the other positions that has ``nucleus`` of the rollout's mass."""
        mass = torch.where(chosen, 0.0, self._importance)
        ordered, order = mass.sort(dim=1, descending=True)
        share = ordered.cumsum(1) / ordered.sum(1, keepdim=True).clamp(min=1e-12)
        inside = (share - ordered / ordered.sum(1, keepdim=True).clamp(min=1e-12)) < self.config.nucleus
        return torch.zeros_like(chosen).scatter(1, order, inside)

    # -- during it -----------------------------------------------------------------------------------------------------

    def hear_before(self, current: ForwardPass, layer: int, q: Tensor, k: Tensor, scale: float) -> None:
        """Nothing to hear yet."""

    def hear_after(self, current: ForwardPass, layer: int, q: Tensor, k: Tensor, scale: float) -> None:
        """``rownorm(A + I)`` at the rows computed; other rows pass on what they are."""
        mask = None if current.padding is None else current.padding[:, None, None, :]
        weights = probabilities(q, k, scale, mask).mean(1)
        rows = current.rows.positions(q.device).expand(len(q), -1)
        own = torch.zeros_like(weights).scatter_(2, rows[..., None], 1.0)
        self._flow.append((rows, (weights + own) / 2.0))  # rows of attention sum to 1

    # -- after it ------------------------------------------------------------------------------------------------------

    def read(self, state: SequenceState, want: Rows, logits: Tensor) -> None:
        """Keep the confidence of each prediction until it is made anew."""
        if self._confidence is None:
            self._confidence = torch.zeros_like(state.ids, dtype=torch.float32)
        want.put(self._confidence, logits.float().softmax(-1).amax(-1))

    def after(self, state: SequenceState, decoded: Tensor) -> None:
        self._importance = column_mass(self._flow, decoded.shape[1])
        self._flow = []
        if self._padding is not None:
            self._importance = self._importance * self._padding


def column_mass(flow: list[tuple[Tensor, Tensor]], length: int) -> Tensor:
    """Column sums ``[B, N]`` of the rollout ``R_L ... R_1``, from the last layer down: no ``N * N`` product is made.

    Args:
        flow: of each layer the rows computed, ascending ``[B, T]`` (a repeated one counts once), and ``R`` there
            ``[B, T, N]``; elsewhere it is the identity.
        length: N.
    """
    first = flow[0][1]
    mass = first.new_ones(len(first), length)
    for rows, weights in reversed(flow):
        own = mass.gather(1, rows)
        own[:, 1:] *= rows.diff(dim=1) != 0
        mass = mass.scatter(1, rows, 0.0) + (own[:, None] @ weights)[:, 0]
    return mass


def _filled(rows: Tensor, gap: int) -> Tensor:
    """With gaps of at most ``gap`` positions between two rows filled."""
    if gap == 0:
        return rows
    position = torch.arange(rows.shape[1], device=rows.device)
    before = torch.where(rows, position, -(2**30)).cummax(1).values
    behind = torch.where(rows, position, 2**30).flip(1).cummin(1).values.flip(1)
    return rows | (behind - before - 1 <= gap)
