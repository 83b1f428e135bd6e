"""What a policy is: before each forward it says what is computed; after each step it learns what was decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...methods.language import LanguageConfig
from ..external import ExternalStore
from ..families import Facts
from ..kv import PositionKVCache
from ..passes import ForwardPass
from ..plan import StepPlan
from ..rows import Rows
from ..state import SequenceState


@dataclass(frozen=True)
class Task:
    """One generation, as asked for.

    Attributes:
        facts: of the model.
        prompt_length, length: positions of the prompt and in all.
        block_length: of a block.
        model: for policies whose files belong to one.
    """

    facts: Facts
    prompt_length: int
    length: int
    block_length: int
    model: Any = None


class Policy:
    """Computes everything at every step; the others say less.

    Args:
        config: of the method.
        task: the generation.
    """

    def __init__(self, config: LanguageConfig, task: Task) -> None:
        self.config, self.task = config, task
        self.shift = task.facts.shift
        self.kv = PositionKVCache(task.length)
        self.store = ExternalStore()

    # -- what subclasses say -------------------------------------------------------------------------------------------

    def blocks(self) -> list[tuple[int, int]]:
        """``(start, stop)`` of each block, in the order in which they are decoded."""
        task, size = self.task, self.task.block_length
        if task.facts.causal:
            first = task.prompt_length // size * size
            return [(start, start + size) for start in range(first, task.length, size)]
        return [(start, start + size) for start in range(task.prompt_length, task.length, size)]

    def prefill(self, state: SequenceState) -> StepPlan | None:
        """A forward before the first block, or None."""
        return None

    def asks(self) -> Tensor | None:
        """What the host must know of the device before the next plan, bool ``[n]``; the loop reads it with its own."""
        return None

    def told(self, answer: list[bool]) -> None:
        """What :meth:`asks` asked, read."""

    def plan(self, state: SequenceState) -> StepPlan:
        """The forward of this step."""
        return self.full(state, keep=False)

    def decodable(self, state: SequenceState) -> Tensor:
        """Bool ``[B, N]``: positions that may be decoded now; of the block, without more."""
        start, stop = state.block
        return state.open & (state.positions >= start) & (state.positions < stop)

    def read(self, state: SequenceState, want: Rows, logits: Tensor) -> None:
        """After a forward: the logits ``[B, W, V]`` of ``want``."""

    def after(self, state: SequenceState, decoded: Tensor) -> None:
        """After a step: bool ``[B, N]`` is True where a token was written."""

    def commit(self, state: SequenceState) -> StepPlan | None:
        """A forward after the block, or None."""
        return None

    def row_layers(self, plan: StepPlan, current: ForwardPass) -> int:
        """Rows times layers that a forward computed."""
        return plan.rows.count * self.task.facts.layers

    @property
    def residual_bytes(self) -> int:
        """Held besides keys and values."""
        return self.store.bytes

    # -- plans ---------------------------------------------------------------------------------------------------------

    def want(self, state: SequenceState) -> Rows:
        """Positions whose predictions are read: the block's."""
        return Rows(max(state.block[0], self.task.prompt_length), state.block[1])

    def span(self, state: SequenceState, start: int, end: int, **more: Any) -> StepPlan:
        """Computes ``[start, end)``, and the row before the block where rows predict the next position."""
        want = self.want(state)
        first = max(min(start, want.start - self.shift), 0)
        return StepPlan(Rows(first, end), want, **{"stop": state.length, **more})

    def full(self, state: SequenceState, **more: Any) -> StepPlan:
        """Computes every row that the regime lets the block see."""
        if self.task.facts.causal:
            stop = state.block[1]
            return self.span(state, 0, stop, stop=stop, triangular=self.task.block_length, full=True, **more)
        return self.span(state, 0, state.length, full=True, **more)
