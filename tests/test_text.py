"""Language models on the command line: what is answered, shown, written and refused."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from diffcache import ConfigError, cli, list_methods
from diffcache.llm import Threshold, TopK, generate
from diffcache.media.terminal import console
from diffcache.methods import make_config
from diffcache.text import agreement, open_text
from diffcache.text.answers import first_difference
from diffcache.text.facts import TextSubject
from diffcache.text.prompts import DEFAULT_PROBLEM, held_out, known_problem, prompt_of, spread_problems
from diffcache.text.request import TextRequest
from diffcache.text.running import ask_once
from diffcache.text.screen import MASK, Screen
from diffcache.text.session import describe, read_decoder
from diffcache.zoo import list_language_models, load_language_model, load_problems

MODEL = ("--model", "tiny-llada")
SHORT = ("--gen-length", "32")
SURE = Threshold(threshold=0.9)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """A command line in a folder of its own: exit code, standard output, and the lines of standard error."""
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_VERBOSITY", "DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, "error")

    def call(*arguments: str) -> tuple[int, str, list[str]]:
        with pytest.raises(SystemExit) as stop:
            cli.main(list(arguments))
        answer = capsys.readouterr()
        return stop.value.code, answer.out, answer.err.splitlines()

    return call


@pytest.fixture(scope="module")
def loaded():
    return load_language_model("tiny-llada")


@pytest.fixture(scope="module")
def session():
    return open_text("tiny-llada", "fast-dllm:dual", [], TextRequest(gen_length=32))


def direct(loaded, method: str, prompt: str, length: int, decoder=SURE) -> tuple[str, object]:
    """The same by Python: text and figures."""
    model, tokenizer = loaded
    ids = torch.tensor([tokenizer(prompt).input_ids])
    found = generate(model, ids, method, gen_length=length, block_length=32, decoder=decoder)
    return tokenizer.decode(found.sequences[0, ids.shape[1] :], skip_special_tokens=True), found.stats


# -- one prompt --------------------------------------------------------------------------------------------------------


def test_sample_answers_as_generate_does(run, loaded, tmp_path):
    text, stats = direct(loaded, "freecache", load_problems()[7].question, 64)
    code, out, err = run("sample", *MODEL, "--problem", "7", "--gen-length", "64", "--out", "a/text.txt")
    assert (code, err) == (0, [])
    assert text in out
    assert (tmp_path / "a/text.txt").read_text() == text + "\n"
    assert f"{stats.forwards}, {stats.full_forwards} of them of every row" in out
    assert f"{stats.rows}, {stats.row_share:.1%} of the row-layers" in out
    ended = stats.new_tokens < 64
    assert ("no end token: the answer may be cut off" in out) != ended
    assert re.search("verdict +wrong", out)  # a third of the answer is not the answer


def test_compare_says_whether_answers_agree_and_are_right(run, loaded, tmp_path):
    question = load_problems()[DEFAULT_PROBLEM].question
    arguments = ("--method", "window", "--set", "refresh=2", "--decoder", "threshold:threshold=0.5", "--compare")
    code, out, _ = run("sample", *MODEL, *arguments, "--repeats", "1", "--out", "both.json")
    assert code == 0
    told = json.loads((tmp_path / "both.json").read_text())
    vanilla, fast = (told["answers"][name] for name in ("vanilla", "window"))
    assert told["prompt"] == question
    assert told["settings"]["refresh"] == 2
    assert vanilla["right"] == load_problems()[DEFAULT_PROBLEM].matches(vanilla["text"])
    ratio = fast["stats"]["tokens_per_second"] / vanilla["stats"]["tokens_per_second"]
    assert f"{ratio:.2f}x the tokens/s" in out
    words = [f"{name} {'right' if a['right'] else 'wrong'}" for name, a in told["answers"].items()]
    assert ", ".join(words) in out
    share = fast["stats"]["row_layers"] / vanilla["stats"]["row_layers"]
    assert f"{share:.1%} of vanilla's row-layers" in out
    same = vanilla["text"] == fast["text"]
    assert ("the same answer" in out) == same


def test_a_prompt_of_ones_own_has_no_verdict_and_strange_words_are_named(run):
    code, out, _ = run("sample", *MODEL, "--prompt", "1 2 cat", *SHORT)
    assert code == 0
    assert "tiny-llada does not know the word 'cat'" in out
    assert "verdict" not in out


def test_text_is_drawn_as_it_unmasks_and_drawing_takes_no_part_in_the_time(session):
    drawn, plain = Console(file=io.StringIO(), force_terminal=True, width=80), Console(file=io.StringIO())
    prompt, session = held_out(DEFAULT_PROBLEM), replace(session, gen_length=64)  # two blocks: one is drawn masked
    with Screen(drawn, session.tokenizer) as screen:
        shown = ask_once(session, prompt, screen)
        assert screen.seconds > 0
        assert shown.seconds == pytest.approx(shown.stats.seconds - screen.seconds)
    with Screen(plain, session.tokenizer) as screen:
        unseen = ask_once(session, prompt, screen)
        assert screen.seconds == 0
    frames = drawn.file.getvalue()
    assert MASK in frames.split("fast-dllm:dual")[1]
    assert shown.text.splitlines()[0] in frames
    assert plain.file.getvalue() == ""
    assert (shown.ids, shown.seconds > 0) == (unseen.ids, True)


def test_guidance_is_that_of_generate(session, loaded):
    guided = replace(session, guidance=1.5)
    ids = guided.encode("1 1 0 2")
    model, _ = loaded
    asked = dict(gen_length=32, block_length=32, decoder=SURE, cfg_scale=1.5)
    found = generate(model, ids, "fast-dllm:dual", **asked)
    answer = guided.ask(ids)
    assert found.sequences[0, ids.shape[1] :][: len(answer.ids)].tolist() == answer.ids
    assert answer.stats.notes == found.stats.notes != ()


def test_agreement_counts_what_one_answer_lacks():
    assert agreement([1, 2, 3, 4], [1, 2]) == 0.5
    assert (first_difference([1, 2], [1, 2, 3]), first_difference([1, 9], [1, 2]), first_difference([1], [1])) == (
        2,
        1,
        None,
    )


def test_decoders_are_read_and_written_alike():
    for text in ("threshold:threshold=0.5,temperature=0.3", "factor:factor=2", "topk", "entropy"):
        decoder = read_decoder(text)
        assert read_decoder(describe(decoder)) == decoder
    assert read_decoder(None).threshold == 0.9


def test_chat_templates_are_used_unless_raw(session, monkeypatch):
    bare = session.encode("1 1 0")
    template = (
        "{% for m in messages %}{{ '0 1 ' + m['content'] }}{% endfor %}{% if add_generation_prompt %} 1{% endif %}"
    )
    monkeypatch.setattr(session.tokenizer, "chat_template", template)
    asked = session.tokenizer("0 1 1 1 0 1", add_special_tokens=False).input_ids  # a template has its own
    assert session.encode("1 1 0").tolist() == [asked]
    raw = open_text("tiny-llada", "vanilla", [], TextRequest(raw=True, gen_length=32))
    monkeypatch.setattr(raw.tokenizer, "chat_template", template)
    assert raw.encode("1 1 0").tolist() == bare.tolist()


# -- many prompts ------------------------------------------------------------------------------------------------------


def test_files_of_prompts_are_answered_and_gone_on_with(run, loaded, tmp_path):
    text, _ = direct(loaded, "freecache", "1 1 0", 32)
    lines = [json.dumps("0 0 1"), json.dumps({"prompt": "1 1 0", "answer": f" {text} "}), "", json.dumps("2 1")]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    arguments = ("sample", *MODEL, *SHORT, "--prompts", "in.jsonl", "--out", "out.jsonl")
    code, out, err = run(*arguments)
    assert (code, err) == (0, [])
    assert "1 of 1 whose answer is known" in out
    whole = (tmp_path / "out.jsonl").read_text()
    found = [json.loads(line) for line in whole.splitlines()]
    assert [line["prompt"] for line in found] == ["0 0 1", "1 1 0", "2 1"]
    assert (found[1]["text"], found[1]["right"], "right" in found[0]) == (text, True, False)
    code, _, err = run(*arguments)
    assert (code, len(err)) == (2, 1)
    assert "holds answers: --resume goes on with it" in err[0]
    cut = whole[: whole.index("\n") + 40]  # interrupted while the second line was written
    (tmp_path / "out.jsonl").write_text(cut)
    assert run(*arguments, "--resume")[0] == 0
    again = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert again[0] == found[0]
    assert [line["text"] for line in again] == [line["text"] for line in found]
    code, _, err = run(*arguments, "--resume", "--seed", "1")
    assert (code, "seed differs" in err[0]) == (2, True)
    (tmp_path / "in.jsonl").write_text(json.dumps("other"))
    assert "holds 3 answers" in run(*arguments, "--resume")[2][0]


def test_problems_are_spread_over_their_settings_and_found_again():
    few, more = spread_problems(6), spread_problems(8)
    assert more[:6] == few
    labels = [prompt.label for prompt in more]
    assert max(map(labels.count, labels)) - min(map(labels.count, labels)) <= 1
    problem = load_problems()[3]
    assert known_problem(problem.question + "\n") == prompt_of(problem)
    assert known_problem("1 1").right("1") is None


# -- wrong arguments ---------------------------------------------------------------------------------------------------

BAD = {
    "pictures' size": (["--height", "64"], "height: 64 cannot be used, tiny-llada is a language model"),
    "actions": (["--actions", "F8"], "actions: 'F8' cannot be used, tiny-llada is a language model"),
    "fps": (["--fps", "4"], "fps: 4.0 cannot be used"),
    "pictures' method": (["--method", "worldcache"], "worldcache is a method for denoisers"),
    "method": (["--method", "freecash"], "unknown method 'freecash': did you mean 'freecache'?"),
    "regime": (["--method", "flashblock"], "flashblock over='exact' does not run on a bidirectional model"),
    "field": (["--set", "setle=no"], "unknown field 'setle': did you mean 'settle'?"),
    "decoder": (["--decoder", "treshold"], "unknown decoder 'treshold': did you mean 'threshold'?"),
    "decoder's field": (["--decoder", "threshold:threshold=2"], "threshold: 2 is out of range"),
    "blocks": (["--gen-length", "40"], "block_length: 32 does not divide gen_length 40"),
    "length": (["--gen-length", "0"], "gen_length: 0 is out of range"),
    "too long": (["--gen-length", "1024"], "gen_length: 1024 new tokens and a prompt of 228 are more than the 1024"),
    "steps": (["--steps", "0"], "steps: 0 is out of range"),
    "problem": (["--problem", "99999"], "problem: 99999 is out of range, must be a whole number from 0 to"),
    "two prompts": (["--problem", "1", "--prompt", "1"], "prompt: only one of --prompt, --prompts and --problem"),
    "empty prompt": (["--prompt", " "], "prompt: empty"),
    "no file": (["--prompts", "none.txt"], "prompts: 'none.txt' cannot be read"),
    "compare many": (["--prompts", "none.txt", "--compare"], "compare: cannot go with --prompts"),
    "resume one": (["--resume"], "resume: goes with --prompts alone"),
    "suffix": (["--out", "a.png"], "out: 'a.png' has the suffix '.png', must end in .txt or .json"),
    "guidance": (["--guidance", "-1"], "guidance: -1.0 is out of range"),
    "device": (["--device", "tpu"], "device: 'tpu' is not a device"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_arguments_answer_with_one_line(run, case):
    arguments, expected = BAD[case]
    code, _, err = run("sample", *MODEL, *arguments)
    assert (code, len(err)) == (2, 1)
    assert expected in err[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["sample", "--gen-length", "32"], "gen_length: 32 cannot be used, tiny-world is not a language model"),
        (["sample", "--prompts", "a.txt"], "prompts: 'a.txt' cannot be used, tiny-world is not a language model"),
        (["sample", "--model", "tiny-lada"], "unknown model 'tiny-lada': did you mean 'tiny-llada'?"),
        (["sample", "--model", "dream-7b"], "prompt: none given, dream-7b needs one"),
        (["sample", "--model", "sdar-4b", "--prompt", "1", "--method", "dkv"], "of a block-causal model are exact"),
        (["sample", "--model", "sdar-4b", "--prompt", "1", "--block-length", "8"], "the model was trained with 4"),
        (["report", "--problems", "3"], "problems: 3 cannot be used, tiny-wan is not a language model"),
        (["report", "--out", ""], "out: '' names no folder, must be one to write the report to"),
        (["report", *MODEL, "--seeds", "3"], "seeds: 3 cannot be used, tiny-llada is a language model"),
        (["report", *MODEL, "--prompt", "1"], "prompt: one prompt is no measurement"),
        (["report", *MODEL, "--problems", "0"], "problems: 0 is out of range"),
        (["report", *MODEL, "--methods", "worldcache"], "unknown method 'worldcache'"),
        (["report", "--model", "llada-8b"], "prompts: none given, llada-8b has no problems of its own"),
        (["tune", *MODEL, "--target", "psnr>=30"], "diffcache sample and report do"),
        (["info", *MODEL[1:], "--height", "3"], "height: 3 cannot be used"),
    ],
)
def test_other_commands_answer_alike(run, arguments, expected):
    code, _, err = run(*arguments)
    assert (code, len(err)) == (2, 1)
    assert expected in err[0]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "line 1 is not JSON"),
        ("[1]", "line 1 is no prompt"),
        ('{"prompt": 3}', "no prompt"),
        (" ", "holds no prompt"),
    ],
)
def test_damaged_files_of_prompts_are_named(run, tmp_path, line, expected):
    (tmp_path / "in.jsonl").write_text(line)
    code, _, err = run("sample", *MODEL, "--prompts", "in.jsonl")
    assert (code, expected in err[0]) == (2, True)


def test_a_model_that_is_not_here_names_the_embedded_one(run, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name in ("llada-8b", "GSAI-ML/LLaDA-8B-Instruct"):
        code, _, err = run("sample", "--model", name, "--prompt", "1 1")
        assert (code, len(err)) == (1, 1)
        assert err[0].startswith("error: llada-8b (GSAI-ML/LLaDA-8B-Instruct): ")
        assert "try --model tiny-llada" in err[0]


def test_folders_are_language_models_by_their_configuration(run, loaded, tmp_path):
    model, tokenizer = loaded
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "mine")
    code, out, _ = run("sample", "--model", "mine", *SHORT)
    assert (code, out.splitlines()[0]) == (
        0,
        direct(loaded, "freecache", held_out(DEFAULT_PROBLEM).text, 32)[0].splitlines()[0],
    )
    (tmp_path / "mine" / "model.safetensors").write_bytes(b"not weights")
    code, _, err = run("sample", "--model", "mine", *SHORT)
    assert (code, len(err)) == (2, 1)
    assert err[0].startswith("error: model: 'mine' cannot be loaded")


# -- what it says of models --------------------------------------------------------------------------------------------


def test_info_says_what_runs_and_why_the_rest_does_not(run):
    code, out, _ = run("info", "tiny-llada")
    assert code == 0
    assert "LlamaForCausalLM" in out
    told = json.loads(run("info", "tiny-llada", "--json")[1])["methods"]
    assert told["vanilla"]["status"] == "exact"
    assert told["freecache"]["status"] == "works"
    assert told["flashblock"]["status"] == "refused"
    assert "bidirectional" in told["flashblock"]["note"]
    assert set(list_methods("language")) <= set(told)
    assert "not in the local cache; try: diffcache info tiny-llada" in run("info", "llada-8b")[1]
    assert run("info", "dream-7b", "--method", "elastic")[0] == 1
    assert "diffcache sample --model tiny-llada --method dkv" in run("methods", "dkv")[1]


@pytest.mark.parametrize("method", [m for m in list_methods("language") if m != "flashblock"] + ["flashblock:dual"])
def test_info_foretells_the_memory_of_a_run(loaded, method):
    told = TextSubject("tiny-llada", TextRequest(gen_length=32), None).estimate(method, [])
    stats = direct(loaded, make_config(method), held_out(DEFAULT_PROBLEM).text, 32, TopK())[1]
    tokens = told["tokens"]
    layers, heads = (getattr(loaded[0].config, f"num_{what}") for what in ("hidden_layers", "attention_heads"))
    transient = 4 * (layers + heads) * tokens**2 if method == "d2cache" else 0  # of a step, not held
    assert told["bytes"] - transient == pytest.approx(stats.kv_bytes + stats.residual_bytes, rel=0.002)


def test_names_of_the_zoo_lead_to_language_models():
    from diffcache.zoo import find_language_model, is_language_model

    for entry in list_language_models().values():
        assert find_language_model(entry.name) is entry
        assert is_language_model(entry.source) != entry.embedded
    assert not any(map(is_language_model, ("tiny-wan", "owner/other", "nothing")))
    assert console().width > 0


def test_requests_are_checked():
    for field, value in (("block_length", 0), ("steps", -1), ("seed", -1), ("gen_length", 10**9)):
        with pytest.raises(ConfigError, match=f"{field}: {value}"):
            TextRequest(**{field: value})
