"""``diffcache calibrate`` and ``sample --schedule`` as other programs see them."""

from __future__ import annotations

import re

import pytest

from diffcache.cli_calibrate import _mark
from diffcache.cli_options import Asked
from diffcache.learn import read_calibration

from .test_cli import forker, run  # noqa: F401 - fixtures

WAN = ("--model", "tiny-wan", "--steps", "8")


@pytest.fixture
def schedule(run, tmp_path):  # noqa: F811
    """A schedule file of tiny-wan for 8 steps."""
    answer = run("calibrate", *WAN, "--method", "magcache", "--out", "s.safetensors")
    assert (answer.code, answer.err) == (0, "")
    return tmp_path / "s.safetensors"


@pytest.mark.parametrize("method", ["magcache", "teacache"])
def test_a_model_is_calibrated(run, method, tmp_path):  # noqa: F811
    answer = run("calibrate", *WAN, "--method", method, "--out", "new/s.safetensors", "--seeds", "0,1")
    assert (answer.code, answer.err) == (0, "")
    assert "dense run 2/2: step 8 of 8" in answer.out
    assert re.search(r"written to +new/s.safetensors\n", answer.out)
    assert ("ratios" if method == "magcache" else "R²") in answer.out
    found = read_calibration(tmp_path / "new" / "s.safetensors")
    assert (found.method, found.steps, found.runs) == (method, 8, 2)
    assert found.sampler == "FlowMatchEulerDiscreteScheduler"


def test_the_command_that_it_names_works(run):  # noqa: F811
    answer = run("calibrate", *WAN, "--method", "magcache", "--prompt", "turns left", "--out", "s.safetensors")
    command = re.search(r"use it: diffcache (.+)", answer.out).group(1)
    words = [word.strip("'") for word in re.findall(r"'[^']*'|\S+", command)]
    answer = run(*words, "--repeats", "1")
    assert (answer.code, answer.err) == (0, "")
    assert re.search(r"cond +F[Fc]{7}  \d of 8 computed", answer.out)


def test_one_seed_gives_one_file(run, tmp_path):  # noqa: F811
    for name in "ab":
        assert run("calibrate", *WAN, "--method", "teacache", "--out", f"{name}.safetensors").code == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_table_is_learned_and_used(run, tmp_path):  # noqa: F811
    dit = ("--model", "tiny-dit", "--steps", "6")
    settings = ("--seeds", "0,1,2", "--set", "evaluations=1", "--set", "probes=0", "--set", "iterations=0")
    answer = run("calibrate", *dit, "--method", "diffsparse", *settings, "--out", "s.safetensors")
    assert (answer.code, answer.err) == (0, "")
    assert re.search(r"steps +3 full, 0 partial, 3 idle\n +work +50.0% of dense", answer.out)
    assert not (tmp_path / "s.partial").exists()
    answer = run("sample", *dit, "--method", "diffsparse", "--schedule", "s.safetensors")
    assert (answer.code, answer.err) == (0, "")
    assert "3 of 6 computed" in answer.out


def test_the_quick_mode_is_a_part_of_the_work_and_settings_go_before_it(run, tmp_path):  # noqa: F811
    dit = ("--model", "tiny-dit", "--steps", "4", "--quick", "--out", "s.safetensors")
    answer = run("calibrate", *dit, "--method", "diffsparse", "--set", "probes=1")
    assert (answer.code, answer.err) == (0, "")
    assert "learning" not in answer.out
    found = read_calibration(tmp_path / "s.safetensors")
    (expert,) = found.experts.values()
    assert found.runs == 3
    assert "one-shot" in expert.facts["losses"]
    answer = run(
        "calibrate", *dit, "--method", "auto", "--seeds", "1,2", "--set", "speedups=[1.5]", "--set", "probes=0"
    )
    assert (answer.code, answer.err) == (0, "")
    assert "placement" not in answer.out
    assert "round 2/2, run 2/2" in answer.out
    answer = run("calibrate", *WAN, "--quick", "--method", "magcache", "--out", "m.safetensors")
    assert (answer.code, answer.err) == (0, "")
    assert "magcache: --quick changes nothing, its calibration is a few plain runs (as many as --seeds)" in answer.out
    assert not list(tmp_path.glob("*.partial"))


def test_quick_and_full_calibrations_that_were_interrupted_do_not_share_a_file():
    assert _mark(Asked(), [0], True) != _mark(Asked(), [0], False) != _mark(Asked(), [1], False)


def test_heads_of_a_language_model_are_calibrated(run, tmp_path):  # noqa: F811
    small = ("--set", "gen_length=16", "--set", "block_length=8", "--seeds", "0,200", "--steps", "3")
    answer = run("calibrate", "--model", "tiny-llada", "--method", "flashblock", *small, "--out", "h.safetensors")
    assert (answer.code, answer.err) == (0, "")
    assert "over dual, blocks of 8" in answer.out
    assert "--method flashblock:dual --set heads=h.safetensors" in answer.out
    found = read_calibration(tmp_path / "h.safetensors")
    assert (found.steps, found.runs) == (3, 2)
    for wrong, text in ((("--model", "tiny-wan"), "flashblock is for language models, and tiny-wan is none"),
                        (("--model", "tiny-llada", "--clip", "1"), "clip: 1 cannot be used, flashblock takes prompt"),
                        (("--model", "tiny-llada", "--seeds", "9999"), "seeds: 9999 is out of range"),
                        (("--model", "tiny-llada", "--budget", "2x"), "budget: '2x' cannot be used")):  # fmt: skip
        answer = run("calibrate", "--method", "flashblock", *wrong)
        assert (answer.code, answer.err.count("\n")) == (2, 1)
        assert text in answer.err


def test_a_budget_that_cannot_be_met_is_told_its_range(run):  # noqa: F811
    dit = ("--model", "tiny-dit", "--steps", "4", "--method", "diffsparse", "--seeds", "0,1,2")
    answer = run("calibrate", *dit, "--set", "budget=0.2")
    assert answer.code == 2
    assert "budget: 0.2 is infeasible, must be in [0.5, 1] of the dense work" in answer.err
    answer = run("calibrate", *dit, "--budget", "fast")
    assert "budget: 'fast' is not right, must be a share (0.5), a speed-up (2x) or a time (350ms)" in answer.line
    answer = run("calibrate", *dit[:-1], "0,1")
    assert answer.code == 2
    assert "seeds: 2 given, must be at least 3" in answer.err


def test_help_teaches(run):  # noqa: F811
    answer = run("calibrate", "--help")
    assert answer.code == 0
    for text in ("Examples", "--seeds", "--steps", "--out", "refused"):
        assert text in answer.out
    assert "calibrate" in run("--help").out
    assert "--schedule" in run("sample", "--help").out


def test_a_file_for_something_else_is_refused_with_one_line(run, schedule, tmp_path):  # noqa: F811
    cases = {
        "steps: made for 8, but here it is 6": ("--model", "tiny-wan", "--steps", "6", "--method", "magcache"),
        "method: made for magcache, but here it is teacache": (*WAN, "--method", "teacache"),
        "model: made for WanTransformer3DModel, but here it is CogVideoX": ("--steps", "8", "--method", "magcache"),
        "schedule: worldcache takes no schedule file; methods that do: auto": (
            *WAN,
            "--method",
            "worldcache",
        ),
    }
    for wanted, arguments in cases.items():
        answer = run("sample", *arguments, "--schedule", str(schedule), "--out", "a.png")
        assert answer.code == 2
        assert wanted in answer.line
        assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("method", ["magcache", "teacache"])
def test_without_a_schedule_the_command_is_named(run, method):  # noqa: F811
    answer = run("sample", *WAN, "--method", method)
    assert answer.code == 2
    assert f"diffcache calibrate --model tiny-wan --steps 8 --method {method} --out FILE.safetensors" in answer.line


BAD = {
    "settings": (
        ["--method", "auto:speedup=6"],
        "method: 'auto:speedup=6' has settings of the method, must be the name",
    ),
    "method": (["--method", "fora"], "method: 'fora' takes no calibration; those that do: magcache, teacache, auto"),
    "no method": ([], "Missing option '--method'"),
    "model": (["--method", "magcache", "--model", "tiny-wam"], "unknown model 'tiny-wam': did you mean 'tiny-wan'?"),
    "steps": (["--method", "magcache", "--steps", "0"], "steps: 0 is out of range"),
    "few steps": (["--method", "teacache", "--model", "tiny-wan", "--steps", "2"], "steps: too few for a fit"),
    "seeds": (["--method", "magcache", "--seeds", "0;1"], "seeds: '0;1' is not a list of seeds"),
    "no seeds": (["--method", "magcache", "--seeds", ""], "seeds: '' is not a list of seeds"),
    "negative seed": (["--method", "magcache", "--seeds", "0,-1"], "seeds: '0,-1' is not a list of seeds"),
    "one seed twice": (["--method", "magcache", "--seeds", "3,3"], "seeds: '3,3' names a seed twice"),
    "degree": (["--method", "teacache", "--degree", "0"], "degree: 0 is out of range"),
    "high degree": (
        ["--method", "teacache", "--set", "degree=99"],
        "degree: 99 is out of range, must be a whole number",
    ),
    "suffix": (["--method", "magcache", "--out", "a.pt"], "out: 'a.pt' has the suffix '.pt', must end in .safetensors"),
    "no folder": (["--method", "magcache", "--out", ".stdout/a.safetensors"], "cannot be written"),
    "prompt of a world": (["--method", "magcache", "--prompt", "a cat"], "prompt: 'a cat' cannot be used"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_arguments_answer_with_one_line_and_exit_2(run, case, tmp_path):  # noqa: F811
    arguments, expected = BAD[case]
    answer = run("calibrate", *arguments)
    assert answer.code == 2
    assert expected in answer.line
    assert not list(tmp_path.glob("**/*.safetensors"))


def test_a_hub_model_without_network_fails_with_1(run):  # noqa: F811
    answer = run("calibrate", "--method", "magcache", "--model", "wan2.1", "--prompt", "a cat")
    assert answer.code == 1
    assert "try --model tiny-wan" in answer.line
