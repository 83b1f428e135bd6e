"""Reasoning problems with verifiers: a frozen set that ships with the package, and new ones from reasoning-gym.

The frozen problems are the held-out ones of ``tiny-llada`` and ``tiny-sdar``; training never saw their seeds or
questions. Comparing with the stored answer needs nothing; reasoning-gym's own score needs the extra ``llm``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import unknown

FROZEN = Path(__file__).parent / "data" / "problems.jsonl"


class ProblemsNotAvailableError(RuntimeError):
    """Problems were asked of a package that is not installed, or that draws other ones. One line with the way out."""


@dataclass(frozen=True)
class Problem:
    """One problem of one family.

    Attributes:
        family: reasoning-gym's name of the data set.
        seed: of the data set.
        index: in the data set.
        question: the prompt.
        answer: the reference answer.
        settings: of the data set, besides its seed.
    """

    family: str
    seed: int
    index: int
    question: str
    answer: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def matches(self, text: str) -> bool:
        """Whether a text is the reference answer, blanks at its ends aside. The only measure that needs no extra."""
        return text.strip() == self.answer.strip()

    def score(self, text: str) -> float:
        """reasoning-gym's own score of an answer, 0 to 1.

        Raises:
            ProblemsNotAvailableError: reasoning-gym is missing, or its version draws another problem here.
        """
        data = _dataset(self.family, self.seed, self.settings)
        entry = data[self.index]
        if entry["question"] != self.question:
            raise ProblemsNotAvailableError(
                f"{self.family}, seed {self.seed}, index {self.index}: the installed reasoning-gym draws another "
                "problem; pip install reasoning-gym==0.1.25"
            )
        return float(data.score_answer(text, entry))


def load_problems(family: str | None = None, count: int | None = None) -> tuple[Problem, ...]:
    """The frozen held-out problems, of one family or of all, at most ``count`` of each family.

    Raises:
        ValueError: a family that the frozen set does not hold; the message lists those that it does.
    """
    problems = [Problem(**json.loads(line)) for line in FROZEN.read_text(encoding="utf-8").splitlines()]
    families = list(dict.fromkeys(problem.family for problem in problems))
    if family is not None and family not in families:
        raise ValueError(unknown("family", family, families))
    chosen = [[p for p in problems if p.family == name][:count] for name in families if family in (None, name)]
    return tuple(problem for group in chosen for problem in group)


def draw_problems(family: str, seed: int, **settings: Any) -> Iterator[Problem]:
    """Problems of a reasoning-gym data set from index 0 on, without end.

    reasoning-gym draws problem ``i`` from ``Random(seed + i)``: two ranges of seed plus index that do not meet hold
    different draws.

    Raises:
        ProblemsNotAvailableError: reasoning-gym is missing.
    """
    data = _dataset(family, seed, settings)
    for index in range(data.config.size):
        entry = data[index]
        yield Problem(family, seed, index, entry["question"], entry["answer"], settings)


def _dataset(family: str, seed: int, settings: Mapping[str, Any]) -> Any:
    return _reasoning_gym().create_dataset(family, **settings, seed=seed, size=10**9)


def _reasoning_gym() -> ModuleType:
    try:
        import reasoning_gym
    except ImportError:
        raise ProblemsNotAvailableError(
            "reasoning-gym is not installed, it draws and scores problems; pip install 'diffcache[llm]'"
        ) from None
    return reasoning_gym
