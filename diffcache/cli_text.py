"""``diffcache sample`` of a diffusion language model: one prompt, or a file of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_options import Asked, Decoding, refuse_pictures
from .cli_stopping import kept_answers, load_torch, stoppable
from .errors import ConfigError

if TYPE_CHECKING:
    from .text import Answer, Prompt, TextSession

METHOD = "freecache"


@dataclass(frozen=True)
class TextSample:
    """What ``diffcache sample`` was asked for."""

    model: str
    method: str
    settings: list[str]
    steps: int | None
    seed: int
    problem: int | None
    prompts: Path | None
    out: Path | None
    compare: bool
    repeats: int
    resume: bool


def sample_text(wanted: TextSample, asked: Asked, decoding: Decoding) -> None:
    """Answer a prompt, on a terminal as it unmasks; or every prompt of a file."""
    content = {name: value for name, value in asked.content.items() if name not in ("prompt", "guidance")}
    refuse_pictures(wanted.model, **content)
    _check(wanted, asked.prompt)
    from .text.request import TextRequest

    request = TextRequest(steps=wanted.steps, seed=wanted.seed, guidance=asked.guidance, **decoding.options)
    target = _target(wanted)
    load_torch()
    from .text import open_text
    from .text.prompts import read_prompts

    prompts = [_prompt(wanted, asked.prompt)] if wanted.prompts is None else read_prompts(wanted.prompts)
    opened = partial(open_text, wanted.model, wanted.method, wanted.settings, request, asked.dtype, asked.device)
    if wanted.prompts is not None:
        with stoppable(partial(kept_answers, target, len(prompts), wanted.resume)):
            _answer_file(opened(), prompts, target, wanted.resume)
        return
    session = opened()
    _warn(session, prompts[0])
    if wanted.compare:
        _compare(session, prompts[0], wanted.repeats, target)
    else:
        _answer(session, prompts[0], target)


def _check(wanted: TextSample, prompt: str | None) -> None:
    if sum(given is not None for given in (prompt, wanted.problem, wanted.prompts)) > 1:
        raise ConfigError("prompt: only one of --prompt, --prompts and --problem can be given")
    if wanted.compare and wanted.prompts is not None:
        raise ConfigError("compare: cannot go with --prompts: diffcache report compares over many prompts")
    if wanted.resume and wanted.prompts is None:
        raise ConfigError("resume: goes with --prompts alone, there is nothing else to go on with")


def _prompt(wanted: TextSample, text: str | None) -> Prompt:
    from .text.prompts import DEFAULT_PROBLEM, held_out, known_problem
    from .zoo import find_language_model

    if text is not None:
        return known_problem(text)
    entry = find_language_model(wanted.model)
    if wanted.problem is None and entry is not None and not entry.embedded:
        raise ConfigError(f"prompt: none given, {wanted.model} needs one, e.g. --prompt 'What is 6 times 7?'")
    return held_out(DEFAULT_PROBLEM if wanted.problem is None else wanted.problem)


def _target(wanted: TextSample) -> Path | None:
    from .media.request import short_name
    from .media.writing import check_target

    if wanted.prompts is not None:
        from .text.batch import SUFFIX

        return check_target(wanted.out or Path("out") / f"{short_name(wanted.model)}{SUFFIX}", (SUFFIX,))
    return None if wanted.out is None else check_target(wanted.out, (".txt", ".json"))


def _warn(session: TextSession, prompt: Prompt) -> None:
    from .media.terminal import say

    strange = session.strange(prompt.text)
    if strange:
        say(f"{session.name} does not know the word '{strange[0]}'; it has only seen problems (--problem N)")


def _answer(session: TextSession, prompt: Prompt, target: Path | None) -> None:
    from .media.terminal import console, say
    from .text.running import ask_once, facts_of
    from .text.screen import Screen

    with Screen(console(), session.tokenizer) as screen:
        answer = ask_once(session, prompt, screen)
    say(f"{answer.text}\n")
    _close(session, {session.config.method: answer}, prompt, facts_of(prompt, answer), target)


def _compare(session: TextSession, prompt: Prompt, repeats: int, target: Path | None) -> None:
    from .media.terminal import StepProgress, console, say
    from .text.running import VANILLA, ask_once, ask_twice, compared
    from .text.screen import Screen

    with Screen(console(), session.tokenizer) as screen:  # untimed: both are warm then
        for config in (VANILLA, session.config):
            ask_once(session, prompt, screen, config)
    with StepProgress(console(), "run") as progress:
        pair = ask_twice(session, prompt, repeats, progress)
    answers = {"vanilla": pair.vanilla, session.config.method: pair.fast}
    if pair.vanilla.text == pair.fast.text:
        say(f"{pair.fast.text}\n")
    else:
        say("\n".join(f"{name}:\n{answer.text}\n" for name, answer in answers.items()))
    _close(session, answers, prompt, compared(session, prompt, pair), target)


def _close(
    session: TextSession,
    answers: dict[str, Answer],
    prompt: Prompt,
    facts: list[tuple[str, str]],
    target: Path | None,
) -> None:
    from .media.terminal import summarise
    from .methods.naming import label

    if target is not None:
        _write(session, answers, prompt, target)
        facts = [*facts, ("written to", str(target))]
    summarise(f"{session.name} · {label(session.config)} · seed {session.seed} · {session.about}", facts)


def _write(session: TextSession, answers: dict[str, Answer], prompt: Prompt, target: Path) -> None:
    """The method's text, or everything as JSON."""
    if target.suffix.lower() == ".txt":
        target.write_text(answers[session.config.method].text + "\n", encoding="utf-8")
        return
    from .text.batch import settings_of

    told: dict[str, Any] = {"settings": settings_of(session), "prompt": prompt.text, "answers": {}}
    for name, answer in answers.items():
        known = {} if prompt.answer is None else {"right": prompt.right(answer.text)}
        timed = {"seconds": answer.seconds, "tokens_per_second": answer.tokens_per_second}
        told["answers"][name] = {"text": answer.text, **known, "stats": {**answer.stats.to_dict(), **timed}}
    target.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _answer_file(session: TextSession, prompts: list[Prompt], target: Path | None, resume: bool) -> None:
    from .media.terminal import StepProgress, console, summarise
    from .methods.naming import label
    from .text.batch import answer_all, summary

    assert target is not None
    with StepProgress(console(), "prompt") as progress:
        lines = answer_all(session, prompts, target, resume, progress)
    title = f"{session.name} · {label(session.config)} · seed {session.seed} · {session.about}"
    summarise(title, [*summary(lines), ("written to", str(target))])
