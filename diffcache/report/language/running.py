"""``diffcache.report.language.run``: check, load, warm up, measure prompt by prompt, keep it, draw the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ...text.prompts import Prompt, read_prompts, spread_problems
from ...text.request import TextRequest
from ...text.session import TextSession, describe, open_text
from ...zoo import find_language_model
from ..data import DATA, load_report
from ..machine import examine_machine
from ..measuring import without_folders
from ..plan import CONTROL, Spec
from ..running import check_folder, continued
from .data import TextModel, TextReport, TextRow, TextSettings
from .measuring import Bench, OnPrompt, score
from .plan import make_text_plan, refused, shape_of

PROBLEMS = 60
HELD_OUT = "held-out problems"
VERIFIER = "verifier"
HOW = {VERIFIER: "pip install 'diffcache[llm]'"}
"""What a report may lack, and how to get it."""


def run(
    model: str = "tiny-llada",
    methods: str | Sequence[Any] | None = None,
    *,
    problems: int | None = None,
    prompts: str | Path | None = None,
    out: str | Path = "out/report",
    sweep: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    seed: int = 0,
    gen_length: int | None = None,
    block_length: int | None = None,
    steps: int | None = None,
    decoder: str | None = None,
    raw: bool = False,
    guidance: float | None = None,
    dtype: str | None = None,
    device: str | None = None,
    command: str | None = None,
    on_prompt: OnPrompt | None = None,
    say: Callable[[str], None] | None = None,
) -> TextReport:
    """Measure methods on a language model and write ``report.json`` and ``report.html``.

    Args:
        model: zoo name, hub id of a zoo model, or a folder.
        methods: as ``--methods``, or a list of such entries and of configuration objects; None takes a default set.
        problems: how many held-out problems, evenly over their settings (60), or of the prompts in ``prompts`` (all).
        prompts: a file of prompts, with answers or without, instead of problems.
        out: folder to write.
        sweep: vary the one natural knob of each method that has one.
        resume: go on where an interrupted run stopped; ``overwrite``: begin anew.
        seed: of the decoder's noise.
        gen_length, block_length, steps, decoder, raw, guidance: of the decoding, as in ``diffcache sample``.
        dtype, device: as in ``diffcache sample``.
        command: how to repeat it, for the page.
        on_prompt: told about progress: label, prompts done, of how many.
        say: told notes in a sentence.

    Returns:
        What was measured, also in ``report.json``.

    Raises:
        ConfigError: a wrong argument, a folder that cannot be written, another run's report there.
        ModelNotAvailableError, UnsupportedModelError: as for :func:`diffcache.text.open_text`.
    """
    asked = read_asked(model, problems, prompts)
    request = TextRequest(gen_length, block_length, steps, decoder, raw, seed, guidance)
    folder = check_folder(Path(out), resume, overwrite)
    session = open_text(model, "vanilla", [], request, dtype, device)
    text = command or f"diffcache.report.language.run({session.name!r}, out={without_folders(str(out))!r})"
    source = HELD_OUT if prompts is None else Path(prompts).name
    return run_session(session, methods, asked, folder, source, sweep, resume, text, on_prompt, say)


def run_session(
    session: TextSession,
    methods: str | Sequence[Any] | None,
    asked: list[Prompt],
    folder: Path,
    source: str = HELD_OUT,
    sweep: bool = False,
    resume: bool = False,
    command: str = "",
    on_prompt: OnPrompt | None = None,
    say: Callable[[str], None] | None = None,
) -> TextReport:
    """:func:`run` of a model that is loaded already, into a folder that is known to be writable.

    Args:
        asked: the prompts; ``source`` says where they are from.
    """
    specs = make_text_plan(methods, session.facts, session.gen_length, session.block_length, session.steps, sweep)
    for prompt in asked:
        session.encode(prompt.text)  # one that is too long is told before anything is measured
    report = _begin(session, specs, asked, source, command)
    if resume and (folder / DATA).exists():
        report = _continued(load_report(folder / DATA, "resume", TextReport), report, asked)
    return fill(report, session, specs, asked, folder, on_prompt, say)


def read_asked(model: str, problems: int | None, prompts: str | Path | None) -> list[Prompt]:
    """What is asked; raises ConfigError where there is nothing to ask, or not so much."""
    if prompts is not None:
        found = read_prompts(Path(prompts))
        if problems is not None and not 1 <= problems <= len(found):
            raise ConfigError(f"problems: {problems} is out of range, must be from 1 to the {len(found)} of the file")
        return found[:problems]
    entry = find_language_model(model)
    if entry is not None and not entry.embedded:
        raise ConfigError(f"prompts: none given, {model} has no problems of its own: --prompts FILE (.txt or .jsonl)")
    return spread_problems(PROBLEMS if problems is None else problems)


def _begin(session: TextSession, specs: list[Spec], asked: list[Prompt], source: str, command: str) -> TextReport:
    facts, network = session.facts, session.model
    shape = (session.gen_length, session.block_length, session.steps, describe(session.decoder), session.seed)
    names = [spec.name for spec in specs]
    settings = TextSettings(session.name, names, len(asked), source, *shape, session.chats is False, session.guidance)
    parameters = sum(p.numel() for p in network.parameters())
    place = (network.device.type, str(network.dtype).removeprefix("torch."))
    model = TextModel(session.name, type(network).__name__, facts.regime, facts.layers, parameters, *place)
    rows = [_row(spec, session) for spec in specs]
    lacking = any(p.problem for p in asked) and score(next(p for p in asked if p.problem), "") is None
    missing = {VERIFIER: HOW[VERIFIER]} if lacking else {}
    return TextReport(settings, examine_machine(), model, command, rows, [], missing)


def _row(spec: Spec, session: TextSession) -> TextRow:
    block, facts = session.block_length, session.facts
    blocks = max(session.gen_length // block, 1)
    failure = refused(spec, facts, block, blocks)
    if spec.kind == CONTROL:
        shape = shape_of(spec.steps, facts, block, blocks) or {"steps": spec.steps, "block_length": block}
        return TextRow(spec.name, spec.family, spec.kind, shape, False, **shape, failure=failure)
    config = {"method": spec.config.method, **spec.config.to_dict()}
    exact = spec.config.exact_on(facts.regime)
    return TextRow(spec.name, spec.family, spec.kind, config, exact, session.steps, block, failure)


def _continued(old: TextReport, new: TextReport, asked: list[Prompt]) -> TextReport:
    """The old report, to go on with, with more problems if asked for."""
    names = [name for name in TextSettings.__dataclass_fields__ if name != "problems"]
    continued(old, new, names)
    if len(old.asked) > new.settings.problems:
        raise ConfigError(f"resume: {len(old.asked)} problems are measured, {new.settings.problems} must be as many")
    differing = next((a.number for a in old.asked if a.prompt != asked[a.number].text), None)
    if differing is not None:
        raise ConfigError(f"resume: prompt {differing + 1} differs, must be the same")
    old.settings.problems, old.command, old.missing = new.settings.problems, new.command, new.missing
    return old


def fill(
    report: TextReport,
    session: TextSession,
    specs: list[Spec],
    asked: list[Prompt],
    folder: Path,
    on_prompt: OnPrompt | None = None,
    say: Callable[[str], None] | None = None,
) -> TextReport:
    """Measure what is missing, keep it after every prompt, and write the page."""
    tell, told = say or (lambda text: None), on_prompt or (lambda *_: None)
    bench = Bench(session, report, [spec for spec in specs if report.row(spec.name).failure is None])
    done = {a.number for a in report.asked}
    todo = [number for number in range(len(asked)) if number not in done]
    try:
        if todo:
            bench.warm(asked[todo[0]], told)
        for row in report.rows:
            if row.failure is not None:
                tell(f"{row.name}: {row.failure}")
        told("prompts", 0, len(asked))
        for number in todo:
            report.asked.append(bench.measure(number, asked[number], len(asked)))
            report.save(folder)
            told("prompts", len(report.asked), len(asked))
    finally:  # an interrupted run has a page of what it measured
        if report.asked:
            from .page import write_text_page

            _cut(report)
            report.save(folder)
            write_text_page(report, folder)
    return report


def _cut(report: TextReport) -> None:
    """Samples of a prompt that was not finished are no samples."""
    done = {a.number for a in report.asked}
    for row in report.rows:
        row.samples = [sample for sample in row.samples if sample.number in done]
