"""Many prompts from a file: an answer a line of JSON, kept as they come, so that an interrupted run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .answers import Answer
from .prompts import Prompt
from .session import TextSession, describe

SUFFIX = ".jsonl"


def settings_of(session: TextSession) -> dict[str, Any]:
    """What makes two answers comparable; it stands in every line."""
    config = {"method": session.config.method, **session.config.to_dict()}
    shape = {"gen_length": session.gen_length, "block_length": session.block_length, "steps": session.steps}
    shape |= {"guidance": session.guidance}
    return {"model": session.name, **config, **shape, "decoder": describe(session.decoder), "seed": session.seed}


def line_of(number: int, prompt: Prompt, answer: Answer, settings: dict[str, Any]) -> dict[str, Any]:
    """One line."""
    stats = answer.stats
    counted = {name: getattr(stats, name) for name in ("new_tokens", "steps", "forwards", "rows", "row_share")}
    held = {"kv_bytes": stats.kv_bytes, "residual_bytes": stats.residual_bytes}
    known = {} if prompt.answer is None else {"right": prompt.right(answer.text)}
    timed = {"seconds": answer.seconds, "tokens_per_second": answer.tokens_per_second}
    told = {"number": number, "prompt": prompt.text, "text": answer.text, "ended": answer.ended}
    return {**told, **known, **counted, **held, **timed, "settings": settings}


def kept_lines(path: Path, prompts: list[Prompt], settings: dict[str, Any], resume: bool) -> list[dict[str, Any]]:
    """The lines of an interrupted run; a last line that was cut off is dropped from the file.

    Raises:
        ConfigError: the file holds something and ``resume`` was not asked for, or it holds other prompts or settings.
    """
    if not path.is_file() or not path.stat().st_size:
        return []
    if not resume:
        raise ConfigError(f"out: '{path}' holds answers: --resume goes on with it, or give another file")
    lines = _whole_lines(path)
    if len(lines) > len(prompts):
        raise ConfigError(f"resume: '{path}' holds {len(lines)} answers, must be at most the {len(prompts)} prompts")
    for number, (line, prompt) in enumerate(zip(lines, prompts)):
        for name, there, now in (("prompt", line.get("prompt"), prompt.text), ("number", line.get("number"), number)):
            if there != now:
                raise ConfigError(f"resume: line {number + 1} of '{path}' is for another {name}, must be the same")
        differing = _differing(line.get("settings"), settings)
        if differing is not None:
            raise ConfigError(f"resume: {differing} differs in '{path}', must be the same")
    return lines


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    found, text = [], path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ConfigError(f"resume: line {number} of '{path}' is damaged, must be an answer of an earlier run")
        found.append(value)
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return found


def _differing(there: Any, now: dict[str, Any]) -> str | None:
    there, now = (there if isinstance(there, dict) else {}), json.loads(json.dumps(now))
    return next((name for name in {**now, **there} if there.get(name) != now.get(name)), None)


def answer_all(
    session: TextSession,
    prompts: list[Prompt],
    path: Path,
    resume: bool,
    on_prompt: Callable[[str, int, int], None],
) -> list[dict[str, Any]]:
    """Answer every prompt and append each answer to the file at once; all lines, also those that were there.

    Raises:
        ConfigError: as :func:`kept_lines`; a prompt that is too long, before anything is answered.
    """
    settings = settings_of(session)
    encoded = [session.encode(prompt.text) for prompt in prompts]
    lines = kept_lines(path, prompts, settings, resume)
    on_prompt(session.name, 0, len(prompts))
    with path.open("a", encoding="utf-8") as file:
        for number in range(len(lines), len(prompts)):
            answer = session.ask(encoded[number])
            lines.append(line_of(number, prompts[number], answer, settings))
            file.write(json.dumps(lines[-1], ensure_ascii=False) + "\n")
            file.flush()
            on_prompt(session.name, number + 1, len(prompts))
    return lines


def summary(lines: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Totals of all lines."""
    tokens, seconds = (sum(line[name] for line in lines) for name in ("new_tokens", "seconds"))
    known = [line["right"] for line in lines if "right" in line]
    facts = [
        ("prompts", str(len(lines))),
        ("speed", f"{tokens / max(seconds, 1e-9):.1f} tokens/s: {tokens} tokens in {seconds:.1f} s"),
        ("forwards", str(sum(line["forwards"] for line in lines))),
        ("memory", f"{max(line['kv_bytes'] + line['residual_bytes'] for line in lines) / 1e6:.1f} MB at most"),
    ]
    cut = sum(not line["ended"] for line in lines)
    facts += [("cut off", f"{cut} without an end token (--gen-length)")] if cut else []
    return facts + ([("right", f"{sum(known)} of {len(known)} whose answer is known")] if known else [])
