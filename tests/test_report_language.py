"""The report on language models: what it measures, what it catches, how it goes on, and what its page holds."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from diffcache import ConfigError, cli
from diffcache.llm import declare
from diffcache.methods import make_config
from diffcache.report.data import DATA, load_report
from diffcache.report.language import run, text_losses
from diffcache.report.language.data import Asked, Run, TextReport, TextRow, TextSample, TextSettings
from diffcache.report.language.measuring import Bench
from diffcache.report.language.page import TextPage, marked, write_text_page
from diffcache.report.language.plan import DEFAULT, DEFAULT_CAUSAL, make_text_plan, shape_of
from diffcache.report.language.summary import summarise
from diffcache.report.plan import CONTROL, LANGUAGE_KNOBS
from diffcache.report.statistics import paired_shares, proportion
from diffcache.text import TextSession, open_text
from diffcache.text.request import TextRequest
from diffcache.zoo import load_language_model

from .language import COMMON

QUESTIONS = ("1 1 0", "0 0 1 2", "2 1")
LENGTH = 64
METHODS = ("freecache", "fast-dllm:prefix", "dkv", "flashblock")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Prompts whose answers vanilla gives, but for the last one."""
    session = open_text("tiny-llada", "vanilla", [], TextRequest(gen_length=LENGTH))
    answers = [session.ask(session.encode(question)).text for question in QUESTIONS[:-1]] + ["something else"]
    lines = [json.dumps({"prompt": q, "answer": a}) for q, a in zip(QUESTIONS, answers, strict=True)]
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("\n".join(lines))
    return path


def measured(out, prompts, *methods: str, **options) -> TextReport:
    return run("tiny-llada", list(methods), prompts=prompts, **{"gen_length": LENGTH, "out": out, **options})


@pytest.fixture(scope="module")
def healthy(tmp_path_factory, prompts):
    out = tmp_path_factory.mktemp("healthy")
    return measured(out, prompts, *METHODS), out


# -- what it measures --------------------------------------------------------------------------------------------------


def test_every_row_is_measured_between_two_runs_of_vanilla(healthy):
    found, out = healthy
    assert load_report(out, kind=TextReport) == found
    assert [a.right for a in found.asked] == [True, True, False]
    assert all(a.repeats and len(a.runs) == 3 for a in found.asked)  # six rows: before, between, after
    for row in found.rows:
        assert row.failure or [s.number for s in row.samples] == [0, 1, 2]
        for sample in row.samples:
            assert sample.around in ([0, 1], [1, 2])
            assert sample.run.seconds > 0
            assert sample.same == (sample.agreement == 1)
            assert sample.right == (sample.text.strip() == json.loads(_line(found, sample.number))["answer"].strip())


def _line(found: TextReport, number: int) -> str:
    asked = found.asked[number]
    return json.dumps({"prompt": asked.prompt, "answer": asked.answer})


def test_the_control_is_vanilla_with_fewer_steps(healthy):
    found, _ = healthy
    controls = {row.name: row for row in found.rows if row.kind == CONTROL}
    assert {name: (row.steps, row.block_length) for name, row in controls.items()} == {
        "fewer-steps:4": (4, 32),
        "fewer-steps:2": (2, 32),
        "fewer-steps:1": (1, 64),
    }
    for row in controls.values():
        assert all(s.run.steps <= row.steps and s.run.kv_bytes == 0 for s in row.samples)


def test_what_is_refused_keeps_its_reason_and_the_rest_goes_on(healthy):
    found, out = healthy
    assert "needs over=dual" in found.row("flashblock").failure
    assert "needs over=dual" in (out / "report.html").read_text()
    assert found.row("freecache").samples


def test_a_row_that_fails_is_left_out_and_the_rest_goes_on(tmp_path, prompts, monkeypatch):
    ask = TextSession.ask

    def failing(self, ids, config=None, on_step=None, **changed):
        if config is not None and config.method == "window":
            raise RuntimeError("the method's own fault")
        return ask(self, ids, config, on_step, **changed)

    monkeypatch.setattr(TextSession, "ask", failing)
    found = measured(tmp_path, prompts, "window", "freecache", problems=1, gen_length=32)
    assert found.row("window").failure == "RuntimeError: the method's own fault"
    assert len(found.row("freecache").samples) == 1


def test_interrupted_runs_go_on_where_they_stopped(tmp_path, prompts, monkeypatch):
    whole = Bench.measure

    def killed(self, number, *rest):
        if number == 1:
            self.report.row("freecache").samples.append(self.report.row("freecache").samples[0])
            raise KeyboardInterrupt
        return whole(self, number, *rest)

    monkeypatch.setattr(Bench, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, prompts, "freecache", gen_length=32)
    kept = load_report(tmp_path, kind=TextReport)
    assert len(kept.asked) == 1
    assert (tmp_path / "report.html").exists()
    monkeypatch.setattr(Bench, "measure", whole)
    with pytest.raises(ConfigError, match="resume"):
        measured(tmp_path, prompts, "freecache", gen_length=32)
    with pytest.raises(ConfigError, match="seed differs"):
        measured(tmp_path, prompts, "freecache", gen_length=32, resume=True, seed=3)
    found = measured(tmp_path, prompts, "freecache", gen_length=32, resume=True)
    assert [a.number for a in found.asked] == [0, 1, 2]
    assert found.asked[0] == kept.asked[0]
    with pytest.raises(ConfigError, match="report on a language model, must be one on a denoiser"):
        load_report(tmp_path, "baseline")


def test_the_command_prints_the_table_and_says_where_the_page_is(tmp_path, prompts, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["--methods", "freecache", "--prompts", str(prompts), "--problems", "2", "--gen-length", "32"]
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", "--model", "tiny-llada", *arguments, "--out", "here"])
    out = capsys.readouterr().out
    assert stop.value.code == 0
    assert re.search(r"vanilla +(\d|-)", out)
    assert "fewer-steps:1" in out
    assert "here/report.html" in out
    data = json.loads((tmp_path / "here" / DATA).read_text())
    mine = [sample["run"] for sample in data["rows"][0]["samples"]]
    for timed in (*mine, *(one for asked in data["asked"] for one in asked["runs"])):
        timed["seconds"] = 1.0  # the clock of a busy machine must not decide
    (tmp_path / "here" / DATA).write_text(json.dumps(data))
    for timed in mine:
        timed["seconds"] = 0.1
    (tmp_path / "before.json").write_text(json.dumps(data))
    again = [*arguments, "--out", "here", "--resume", "--baseline"]
    for baseline, code, said in (("before.json", 1, "worse than the baseline: freecache: tokens/s over vanilla fell"),
                                 (f"here/{DATA}", 0, "no loss beyond 5%")):  # fmt: skip
        with pytest.raises(SystemExit) as stop:
            cli.main(["report", "--model", "tiny-llada", *again, baseline])
        assert stop.value.code == code
        assert said in capsys.readouterr().out


def test_exact_methods_of_a_block_causal_model_give_vanillas_tokens(tmp_path, prompts):
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**{**COMMON, "vocab_size": 432}, head_dim=16)).eval()
    declare(model, regime="block-causal", block_length=8, mask_id=0, eos_id=1).save_pretrained(tmp_path / "model")
    load_language_model("tiny-llada")[1].save_pretrained(tmp_path / "model")
    found = run(str(tmp_path / "model"), prompts=prompts, gen_length=16, out=tmp_path / "out")
    assert not any(row.failure for row in found.rows)
    exact = [row for row in found.rows if row.exact]
    assert [row.name for row in exact] == ["freecache", "flashblock:dirty=1"]
    assert all(s.same for row in exact for s in row.samples)
    assert all(s.run.rows < a.runs[0].rows for row in exact for s, a in zip(row.samples, found.asked, strict=True))
    assert found.settings.block_length == 8


# -- the page ----------------------------------------------------------------------------------------------------------


def test_page_refers_to_nothing_outside_and_shows_every_row(healthy):
    found, out = healthy
    html = (out / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", html)
    assert not re.search(r"@import|url\((?!#)", html)
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', html)) <= set(ids)
    assert all(row.name in html for row in found.rows)
    assert all(question in html for question, _ in zip(QUESTIONS, range(1), strict=False))
    assert (out / "right.png").is_file()
    assert str(out) not in html + (out / DATA).read_text()


def test_texts_are_escaped_and_their_differences_marked():
    assert str(marked("a <b> c", "a <b> d")) == "a &lt;b&gt; <mark>c</mark>"
    assert "<mark>" not in marked("1 2\n3", "1 2\n3 ")


# -- what it says, on planted numbers ----------------------------------------------------------------------------------


def planted(rows: dict[str, tuple[float, list[bool]]], vanilla: list[bool], known: bool = True, exact: bool = False):
    """A report in which each row needs so many seconds where vanilla needs 1, and is right where it says so."""
    from diffcache.report.language.data import TextModel
    from diffcache.report.machine import examine_machine

    def run_of(seconds: float) -> Run:
        return Run(seconds, 10, 5, 5, 1, 50, 300, 0, 0, 0, None)

    asked = [
        Asked(n, "", f"p{n}", "x" if known else None, "x", r if known else None, None, [run_of(1.0)] * 3, True)
        for n, r in enumerate(vanilla)
    ]
    made = []
    for name, (seconds, right) in rows.items():
        agrees = [1.0 if r else 0.5 for r in right]
        samples = [
            TextSample(n, "x", r if known else None, None, a, a == 1, run_of(seconds), [0, 1])
            for n, (r, a) in enumerate(zip(right, agrees, strict=True))
        ]
        family = name.partition(":")[0]
        made.append(
            TextRow(name, family, CONTROL if family == CONTROL else "method", {}, exact, None, 8, None, samples)
        )
    settings = TextSettings("planted", list(rows), len(vanilla), "planted", 10, 5, None, "topk", 0, False)
    model = TextModel("planted", "LlamaForCausalLM", "bidirectional", 1, 1, "cpu", "float32")
    return TextReport(settings, examine_machine(), model, "planted", made, asked)


GOOD, HALF = [True] * 38 + [False] * 2, [True] * 20 + [False] * 20


def test_methods_that_lose_are_called_so(tmp_path):
    found = planted(
        {"same": (0.5, GOOD), "worse": (0.25, HALF), "slow": (2.0, GOOD), f"{CONTROL}:2": (0.4, HALF)}, GOOD
    )
    summary = summarise(found)
    lines = {line.name: line for line in summary.lines}
    assert lines["same"].speed.median == pytest.approx(2)
    assert (lines["same"].word, lines["worse"].word) == ("tie", "less")
    assert lines["same"].margin.verdict == "more"
    assert lines["worse"].notes[0].startswith("loses 45.0 points")
    assert "slower than vanilla (0.50x)" in lines["slow"].notes
    assert [name for name, line in lines.items() if line.best] == ["same", "worse"]
    said = " ".join(summary.verdict)
    assert "same gives 2.00x vanilla's tokens/s with 38 of 40 right, vanilla 38" in said
    assert "These lose right answers: worse (-45.0 points)" in said
    assert "These are slower than vanilla: slow (0.50x)" in said
    write_text_page(found, tmp_path)
    assert "loses 45.0 points" in (tmp_path / "report.html").read_text()


def test_fewer_steps_that_beat_every_method_are_said_to():
    found = planted({"same": (0.5, GOOD), f"{CONTROL}:2": (0.2, GOOD)}, GOOD)
    (line,) = [line for line in summarise(found).lines if line.name == "same"]
    assert line.margin.verdict == "tie"
    assert f"Fewer steps are faster than any method: {CONTROL}:2 gives 5.00x" in summarise(found).verdict[1]


def test_without_known_answers_agreement_is_shown_and_called_so():
    found = planted({"near": (0.5, GOOD), "far": (0.5, HALF)}, GOOD, known=False)
    summary = summarise(found)
    assert (summary.known, summary.right) == (False, None)
    assert any("agreement with vanilla is shown, which is not quality" in text for text in summary.warnings)
    assert "near gives 2.00x" in summary.verdict[0]
    assert TextPage(found).metrics == ["agreement"]


def test_losses_against_a_baseline():
    before = planted({"same": (0.5, GOOD), "slower": (0.4, GOOD), "worse": (0.5, GOOD), "gone": (0.5, GOOD)}, GOOD)
    now = planted({"same": (0.51, GOOD), "slower": (0.5, GOOD), "worse": (0.5, HALF), "gone": (1.0, GOOD)}, GOOD)
    now.row("gone").failure, now.row("gone").samples = "RuntimeError: no", []
    said = [str(loss) for loss in text_losses(now, before)]
    assert said == [
        "slower: tokens/s over vanilla fell from 2.5 to 2",
        "worse: right answers fell from 0.95 to 0.5",
        "gone: does not run any more: RuntimeError: no",
    ]
    assert [loss.row for loss in text_losses(now, before, tolerance=0.5)] == ["gone"]
    far = planted({"far": (0.5, HALF)}, GOOD, known=False)
    (loss,) = text_losses(far, planted({"far": (0.5, GOOD)}, GOOD, known=False))
    assert str(loss) == "far: agreement with vanilla fell from 0.975 to 0.75"
    now.settings.decoder = "threshold"
    with pytest.raises(ConfigError, match="baseline: decoder differs"):
        text_losses(now, before)


def test_an_exact_method_that_differs_is_told():
    (line,) = summarise(planted({"exact": (0.5, GOOD)}, GOOD, exact=True)).lines
    assert line.notes == ["exact by construction, and 5% of the answers differ from vanilla's: rounding"]


def test_intervals_of_shares():
    found = proportion(0, 10)
    assert (found.low, found.high) == (0, pytest.approx(0.2775, abs=1e-4))  # as in tables of Wilson's interval
    a, b = [True] * 60 + [False] * 40, [True] * 40 + [False] * 60
    difference, word = paired_shares(a, b)
    assert (difference.mean, word) == (pytest.approx(0.2), "more")
    assert (difference.low, difference.high) == (pytest.approx(0.1167, abs=1e-4), pytest.approx(0.2755, abs=1e-4))
    assert paired_shares(b, b)[1] == "tie"
    assert paired_shares(b, b)[0].high > 0  # nothing seen is not nothing there


def test_intervals_cover_what_is_true_95_times_in_100():
    cells = np.random.default_rng(0).choice(4, size=(1500, 40), p=(0.6, 0.15, 0.05, 0.2))  # both, first, second, none
    first, second = (cells == 0) | (cells == 1), (cells == 0) | (cells == 2)
    shares = [proportion(int(row.sum()), 40) for row in first]
    pairs = [paired_shares(list(a), list(b))[0] for a, b in zip(first, second, strict=True)]
    for found, true in ((shares, 0.75), (pairs, 0.1)):
        hits = [p.low <= true <= p.high for p in found]
        assert np.mean(hits) == pytest.approx(0.955, abs=0.02)


# -- the rows ----------------------------------------------------------------------------------------------------------


def facts(name: str = "tiny-llada"):
    return open_text(name, "vanilla", [], TextRequest()).facts


def test_default_rows_and_controls_fit_the_regime():
    from dataclasses import replace

    from diffcache.llm.policies import refusal

    own = facts()
    causal = replace(own, regime="block-causal", block_length=8)
    for known, default, block in ((own, DEFAULT, 32), (causal, DEFAULT_CAUSAL, 8)):
        specs = make_text_plan(None, known, 256, block, None)
        assert [s.name for s in specs if s.kind != CONTROL] == list(default)
        assert all(refusal(make_config(name), known) is None for name in default)
    assert [s.steps for s in make_text_plan(None, causal, 256, 8, None) if s.kind == CONTROL] == [64, 32]
    assert [s.steps for s in make_text_plan(None, own, 256, 32, 128) if s.kind == CONTROL] == [96, 64, 43, 32]
    assert shape_of(3, own, 32, 8) is None


def test_every_natural_knob_sweeps():
    for method, (field, values) in LANGUAGE_KNOBS.items():
        over = ":over=dual" if method == "flashblock" else ""
        specs = make_text_plan(method + over, facts(), 256, 32, None, sweep=True)
        assert [getattr(s.config, field) for s in specs if s.kind != CONTROL] == list(values)
