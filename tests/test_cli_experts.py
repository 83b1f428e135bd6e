"""The command line with a pipeline of two experts that lies in a folder."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image

from diffcache.learn import read_calibration

from .models import wan, wan_whole
from .test_cli import forker, run  # noqa: F401 - fixtures

SIZE = ("--model", "two", "--prompt", "turns left", "--height", "32", "--width", "32", "--frames", "5", "--steps", "12")
ROWS = ("transformer cond", "transformer uncond", "transformer_2 cond", "transformer_2 uncond")


@pytest.fixture
def folder(tmp_path):
    wan_whole(transformer=wan(0), transformer_2=wan(1), boundary_ratio=0.6).save_pretrained(tmp_path / "two")
    return tmp_path


def rows(out: str) -> list[str]:
    return [re.search(rf"  {row} +([Fpc]+)  ", out).group(1) for row in ROWS]


def test_two_experts_are_sampled_calibrated_and_told(run, folder):  # noqa: F811
    answer = run("sample", *SIZE, "--method", "worldcache", "--compare", "--repeats", "1")
    assert (answer.code, answer.err) == (0, "")
    high, _, low, _ = found = rows(answer.out)
    assert len(high + low) == 12
    assert all(row.startswith("F") and "c" in row for row in found)
    with Image.open(folder / "out" / "two.png") as image:
        assert image.width >= 320

    options = (
        "--seeds",
        "0,1",
        "--set",
        "speedups=[1.5]",
        "--set",
        "probes=1",
        "--set",
        "rounds=0",
        "--quick",
        "--out",
        "a.safetensors",
    )
    answer = run("calibrate", *SIZE, "--method", "auto", *options)
    assert (answer.code, answer.err) == (0, "")
    known = read_calibration(folder / "a.safetensors")
    assert [(name, expert.steps) for name, expert in known.experts.items()] == [
        ("transformer", len(high)),
        ("transformer_2", len(low)),
    ]
    command = re.search(r"use it: diffcache (.+)", answer.out).group(1)
    words = [word.strip("'") for word in re.findall(r"'[^']*'|\S+", command)]
    answer = run(*words, "--set", "speedup=1.2", "--set", "guard=.inf", "--repeats", "1")
    assert (answer.code, answer.err) == (0, "")
    taken = rows(answer.out)

    settings = ("--method", "auto:speedup=1.2", "--set", "schedule=a.safetensors", "--json")
    told = json.loads(run("info", "two", *SIZE[2:], *settings).out)["table"]["decisions"]
    assert [told["transformer"]] * 2 + [told["transformer_2"]] * 2 == taken
