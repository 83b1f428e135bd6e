"""Asking every row: prompt by prompt, vanilla between them, the order turned at every prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...text.answers import Answer, agreement
from ...text.prompts import Prompt
from ...text.running import VANILLA
from ...text.session import TextSession
from ...zoo import ProblemsNotAvailableError
from ..measuring import BETWEEN, turned
from ..plan import CONTROL, Spec
from .data import Asked, Run, TextReport, TextRow, TextSample
from .plan import shape_of

# Told about every prompt: a label, prompts done, of how many.
OnPrompt = Callable[[str, int, int], None]


@dataclass
class Bench:
    """What measuring needs: a model, and the rows that run on it."""

    session: TextSession
    report: TextReport
    ready: list[Spec]

    def ask(self, ids: Tensor, spec: Spec | None) -> Answer:
        """One generation of a row; of vanilla where there is none."""
        if spec is None or spec.kind == CONTROL:
            return self.session.ask(ids, VANILLA, **({} if spec is None else self.shape(spec)))
        return self.session.ask(ids, spec.config)

    def shape(self, spec: Spec) -> dict[str, int]:
        """Steps and block length of the control."""
        block = self.session.block_length
        found = shape_of(spec.steps, self.session.facts, block, max(self.session.gen_length // block, 1))
        assert found is not None  # others did not become ready
        return found

    def warm(self, prompt: Prompt, on_prompt: OnPrompt) -> None:
        """Run every row once untimed; one that fails keeps its reason and is left out."""
        ids, rows = self.session.encode(prompt.text), len(self.ready) + 1
        on_prompt("warm-up", 0, rows)
        self.ask(ids, None)
        for number, spec in enumerate(list(self.ready), 2):
            self._tried(spec, ids)
            on_prompt("warm-up", number, rows)

    def measure(self, number: int, prompt: Prompt, of: int) -> Asked:
        """Every row on one prompt."""
        ids, rows = self.session.encode(prompt.text), {row.name: row for row in self.report.rows}
        found = [self.ask(ids, None)]
        order = turned(self.ready, number, of)
        for first in range(0, len(order), BETWEEN):
            answers = [(spec, self._tried(spec, ids)) for spec in order[first : first + BETWEEN]]
            found.append(self.ask(ids, None))
            around = [len(found) - 2, len(found) - 1]
            for spec, answer in answers:
                if answer is not None:
                    rows[spec.name].samples.append(_sample(number, prompt, answer, found[0], around))
        first, runs = found[0], [run_of(answer) for answer in found]
        known = (prompt.label, prompt.text, prompt.answer, first.text, prompt.right(first.text))
        return Asked(number, *known, score(prompt, first.text), runs, all(a.ids == first.ids for a in found))

    def _tried(self, spec: Spec, ids: Tensor) -> Answer | None:
        try:
            return self.ask(ids, spec)
        except Exception as error:  # whatever a method fails with is its row's reason
            row: TextRow = self.report.row(spec.name)
            row.failure = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
            self.ready.remove(spec)
            return None


def run_of(answer: Answer) -> Run:
    """The numbers of one answer."""
    names = [name for name in Run.__dataclass_fields__ if name != "seconds"]
    return Run(answer.seconds, **{name: getattr(answer.stats, name) for name in names})


def score(prompt: Prompt, text: str) -> float | None:
    """Of the problem's own verifier; None where there is none, or its package is not installed."""
    if prompt.problem is None:
        return None
    try:
        return prompt.problem.score(text)
    except ProblemsNotAvailableError:
        return None


def _sample(number: int, prompt: Prompt, answer: Answer, vanilla: Answer, around: list[int]) -> TextSample:
    known: tuple[Any, ...] = (number, answer.text, prompt.right(answer.text), score(prompt, answer.text))
    return TextSample(*known, agreement(answer.ids, vanilla.ids), answer.ids == vanilla.ids, run_of(answer), around)
