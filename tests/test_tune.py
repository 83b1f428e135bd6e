"""``diffcache tune`` as other programs see it."""

from __future__ import annotations

import pytest

from diffcache.methods import load_config

from .test_cli import forker, run  # noqa: F401 - fixtures

SMALL = ("--model", "tiny-dit", "--steps", "8", "--seeds", "1", "--verify", "2")


def test_a_setting_is_found_verified_and_written_as_a_method(run, tmp_path):  # noqa: F811
    answer = run("tune", *SMALL, "--method", "powerlaw:alpha=1.2", "--target", "psnr>=12", "--out", "new/found.yaml")
    assert (answer.code, answer.err) == (0, "")
    found = load_config(tmp_path / "new" / "found.yaml")
    assert (found.method, found.alpha) == ("powerlaw", 1.2)
    assert found.computed < 0.91
    assert "verified" in answer.out
    assert "use it: diffcache sample --model tiny-dit --method new/found.yaml" in answer.out


BAD = {
    "target": (["--target", "psnr=30"], "target: 'psnr=30' is not right, must be psnr>=NUMBER or speedup>=NUMBER"),
    "slower": (["--target", "speedup>=0.5"], "target: speedup>=0.5 is out of range, must be above 1"),
    "no target": ([], "Missing option '--target'"),
    "method": (["--target", "psnr>=30", "--method", "none"], "method: 'none' has no knob to tune; those that have:"),
    "seeds": (["--target", "psnr>=30", "--verify", "1,2"], "verify: '1,2' holds seeds of the search"),
    "reach": (["--target", "psnr>=140", "--method", "powerlaw"], "target: psnr>=140 is out of reach of powerlaw"),
    "uncalibrated": (["--target", "psnr>=30"], "method: auto has no calibration for 8 steps of this model, must have"),
    "suffix": (["--target", "psnr>=30", "--out", "a.txt"], "out: 'a.txt' has the suffix '.txt', must end in .yaml"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_arguments_answer_with_one_line_and_exit_2(run, case):  # noqa: F811
    arguments, expected = BAD[case]
    answer = run("tune", *SMALL, *arguments)
    assert answer.code == 2
    assert expected in answer.line
