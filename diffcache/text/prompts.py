"""What a model is asked: one prompt, held-out problems, or the lines of a file; with the answer where it is known."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..zoo.problems import Problem, load_problems

#: the problem that an embedded model is asked by default: the first one of the setting that it knows best
DEFAULT_PROBLEM = 160


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        text: of the prompt.
        answer: the right answer, or None where nobody knows it.
        label: what it belongs to: a problem's family and settings, or "".
        problem: the problem that it is, or None.
    """

    text: str
    answer: str | None = None
    label: str = ""
    problem: Problem | None = None

    def right(self, text: str) -> bool | None:
        """Whether an answer is the right one to the letter, blanks at its ends aside; None where nobody knows it."""
        return None if self.answer is None else text.strip() == self.answer.strip()


def prompt_of(problem: Problem) -> Prompt:
    """A problem as a prompt."""
    varied = [f"{key}={value}" for key, value in problem.settings.items() if key in ("p_zero", "max_numbers")]
    return Prompt(problem.question, problem.answer, " ".join([problem.family, *varied]), problem)


def known_problem(text: str) -> Prompt:
    """A prompt; with its answer where it is one of the held-out problems."""
    found = _by_question().get(text.strip())
    return Prompt(text) if found is None else prompt_of(found)


@cache
def _by_question() -> dict[str, Problem]:
    return {problem.question.strip(): problem for problem in load_problems()}


def held_out(number: int) -> Prompt:
    """A held-out problem by its number; raises ConfigError where there is none of that number."""
    problems = load_problems()
    if not 0 <= number < len(problems):
        raise ConfigError(f"problem: {number} is out of range, must be a whole number from 0 to {len(problems) - 1}")
    return prompt_of(problems[number])


def spread_problems(count: int) -> list[Prompt]:
    """So many held-out problems, as evenly over their families and settings as it goes.

    Raises:
        ConfigError: there are not so many.
    """
    groups: dict[str, list[Prompt]] = {}
    for prompt in map(prompt_of, load_problems()):
        groups.setdefault(prompt.label, []).append(prompt)
    whole = sum(map(len, groups.values()))
    if not 1 <= count <= whole:
        raise ConfigError(f"problems: {count} is out of range, must be a whole number from 1 to {whole}")
    turns = max(map(len, groups.values()))
    mixed = [group[turn] for turn in range(turns) for group in groups.values() if turn < len(group)]
    return mixed[:count]


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file: the lines of a text, or of ``.jsonl`` strings or objects with ``prompt`` and ``answer``.

    Raises:
        ConfigError: it cannot be read, a line is no prompt, or it holds none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not text"
        raise ConfigError(f"prompts: '{path}' cannot be read ({why}), must be .txt or .jsonl") from error
    read = _from_json if path.suffix.lower() == ".jsonl" else (lambda line, where: known_problem(line.strip()))
    found = [read(line, f"'{path}', line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ConfigError(f"prompts: '{path}' holds no prompt, must be one prompt a line")
    return found


def _from_json(line: str, where: str) -> Prompt:
    try:
        value: Any = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"prompts: {where} is not JSON, must be a string or an object with 'prompt'") from error
    fields = {"prompt": value} if isinstance(value, str) else value
    text, answer = (fields.get(key) if isinstance(fields, dict) else None for key in ("prompt", "answer"))
    if not isinstance(text, str) or not text.strip() or not isinstance(answer, (str, type(None))):
        raise ConfigError(f"prompts: {where} is no prompt, must be a string or an object with 'prompt' (and 'answer')")
    return known_problem(text) if answer is None else Prompt(text, answer)
