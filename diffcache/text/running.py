"""Asking once, and asking twice: with vanilla and with a method, in turn, of one seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

from ..llm.stats import GenerationStats
from ..methods.language import LanguageConfig, VanillaConfig
from ..methods.naming import label
from ..sizes import size_text
from .answers import Answer, agreement, first_difference
from .prompts import Prompt
from .screen import Screen
from .session import TextSession

VANILLA = VanillaConfig()

# Told about every run: its label, runs done, runs in all.
OnRun = Callable[[str, int, int], None]


def ask_once(session: TextSession, prompt: Prompt, screen: Screen, config: LanguageConfig | None = None) -> Answer:
    """One answer, drawn while it is decoded; its time is without the drawing."""
    config = config or session.config
    watch = screen.watch(f"{session.name} \u00b7 {label(config)}")
    answer = session.ask(session.encode(prompt.text), config, watch)
    return replace(answer, seconds=max(answer.seconds - screen.seconds, 0.0))


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt.

    Attributes:
        vanilla, fast: the last answer of each, with the median of its seconds.
        repeats: timed runs of each.
    """

    vanilla: Answer
    fast: Answer
    repeats: int

    @property
    def speedup(self) -> float:
        """Ratio of tokens a second."""
        return self.fast.tokens_per_second / max(self.vanilla.tokens_per_second, 1e-12)


def ask_twice(session: TextSession, prompt: Prompt, repeats: int, on_run: OnRun) -> Pair:
    """Both in turn, ``repeats`` times each, without drawing; both should have run once before."""
    ids = session.encode(prompt.text)
    on_run("timing", 0, 2 * repeats)
    seconds: tuple[list[float], list[float]] = ([], [])
    last: dict[int, Answer] = {}
    for turn in range(2 * repeats):
        which = (turn + turn // 2) % 2  # vanilla, fast, fast, vanilla, ...
        last[which] = session.ask(ids, (VANILLA, session.config)[which])
        seconds[which].append(last[which].seconds)
        on_run("timing", turn + 1, 2 * repeats)
    both = [replace(last[which], seconds=median(seconds[which])) for which in (0, 1)]
    return Pair(*both, repeats)


def facts_of(prompt: Prompt, answer: Answer) -> list[tuple[str, str]]:
    """What a reader wants to know of one answer."""
    stats = answer.stats
    end = "" if answer.ended else ", no end token: the answer may be cut off (--gen-length)"
    facts = [
        ("tokens", f"{stats.new_tokens}{end}"),
        ("speed", f"{answer.tokens_per_second:.1f} tokens/s: {answer.seconds:.2f} s, {stats.steps} steps"),
        ("forwards", f"{stats.forwards}, {stats.full_forwards} of them of every row"),
        ("rows", f"{stats.rows}, {stats.row_share:.1%} of the row-layers of a full pass each step"),
        ("memory", f"{size_text(stats.kv_bytes)} keys and values, {size_text(stats.residual_bytes)} besides"),
    ]
    facts += _external(stats)
    return [*facts, *_verdicts(prompt, {"": answer}), *(("note", note) for note in stats.notes)]


def compared(session: TextSession, prompt: Prompt, pair: Pair) -> list[tuple[str, str]]:
    """What a reader wants to know of two answers."""
    a, b, name = pair.vanilla, pair.fast, session.config.method
    rows = b.stats.row_layers / max(a.stats.row_layers, 1)
    facts = [
        (
            "speed",
            f"{pair.speedup:.2f}x the tokens/s: {a.tokens_per_second:.1f} vanilla, {b.tokens_per_second:.1f} {name}"
            f" (medians of {pair.repeats} run{'s' if pair.repeats > 1 else ''} in turn)",
        ),
        ("time", f"{a.seconds:.2f} s vanilla, {b.seconds:.2f} s {name}"),
        ("tokens", f"{a.stats.new_tokens} vanilla, {b.stats.new_tokens} {name}"),
        ("forwards", f"{a.stats.forwards} vanilla, {b.stats.forwards} {name}, {b.stats.full_forwards} of every row"),
        ("rows", f"{a.stats.rows} vanilla, {b.stats.rows} {name}, {rows:.1%} of vanilla's row-layers"),
        ("memory", f"{size_text(b.stats.kv_bytes)} keys and values, {size_text(b.stats.residual_bytes)} besides"),
        *_external(b.stats),
        ("agreement", _agreement(a, b)),
        *_verdicts(prompt, {"vanilla": a, name: b}),
    ]
    return [*facts, *(("note", note) for note in b.stats.notes)]


def _external(stats: GenerationStats) -> list[tuple[str, str]]:
    if stats.external_saved is None:
        return []
    spent, saved = stats.external_seconds, stats.external_seconds_saved
    told = (
        f"attention outside the block in {stats.external_used} forwards: {stats.external_saved:.0%} of its work saved"
    )
    return [("from memory", f"{told}, {saved:.3f} s beside {spent:.3f} s that were computed")]


def _agreement(a: Answer, b: Answer) -> str:
    place = first_difference(a.ids, b.ids)
    if place is None:
        return "the same answer, token by token"
    return f"{agreement(a.ids, b.ids):.2%} of the tokens, the first difference at token {place + 1}"


def _verdicts(prompt: Prompt, answers: dict[str, Answer]) -> list[tuple[str, str]]:
    """Right or wrong, where the prompt's answer is known."""
    if prompt.answer is None:
        return []
    words = [f"{name} {'right' if prompt.right(answer.text) else 'wrong'}".strip() for name, answer in answers.items()]
    return [("verdict", f"{', '.join(words)} (the known answer to the letter; {prompt.label or 'of the file'})")]
