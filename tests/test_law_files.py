"""Law 9: configurations are YAML or JSON, never pickle; what cannot be read or does not fit is refused in one line."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

import diffcache
from diffcache import ConfigError, ScheduleFileError, accelerate_model, list_methods
from diffcache.methods import load_config, make_config

from .models import FAMILIES

EXAMPLES = [
    ("worldcache", {}),
    ("worldcache", dict(faithful=True, modalities=(16, 16, 24), stable=0.2, chaotic=0.8)),
    ("worldcache", dict(threshold=math.inf, share=math.inf, axis="sigma", computed=12)),
    ("interval", dict(interval=4, predictor="taylor", order=3, site="body")),
    ("steps", dict(steps=(0, 3, 9))),
    ("powerlaw", dict(computed=0.25, alpha=1.7, max_skip=3)),
    ("fora", dict(interval=4)),
    ("taylorseer", dict(order=2, site="block")),
    ("hicache", dict(sigma=0.6)),
    ("pab", dict(temporal=None, low=50)),
    ("fbcache", dict(first=2, last=1, threshold=0.1)),
    ("teacache", dict(polynomial=(1.0, 2.0, 0.0))),
    ("magcache", dict(ratios=(1.0, 1.1, 0.9))),
    ("easycache", dict(threshold=0.1)),
    ("toca", dict(keep=0.4, depth=-0.2, score="random")),
    ("duca", dict(interval=5)),
    ("diffsparse", dict(max_skip=4)),
    ("worldcache-partial", dict(keep=0.1, score="turning", computed=10)),
    ("auto", dict(speedup=2.5, guard=math.inf)),
    ("exact", {}),
    ("vanilla", {}),
    ("freecache", dict(settle=False)),
    ("fast-dllm", dict(cache="prefix", every=4)),
    ("elastic", dict(threshold=0.8, drift="key")),
    ("window", dict(active=8)),
    ("flashblock", dict(dirty=3)),
    ("dkv", dict(refresh=4)),
    ("dllm-cache", dict(ratio=0.1)),
    ("sparse-dllm", dict(keep=0.7, pool=1)),
    ("d2cache", dict(masks=16)),
    ("none", {}),
]


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json"])
@pytest.mark.parametrize(("method", "settings"), EXAMPLES)
def test_round_trip(method, settings, suffix, tmp_path):
    config = make_config(method, **settings)
    path = tmp_path / f"config{suffix}"
    config.save(path)
    assert load_config(path) == config
    assert make_config(str(path)) == config
    assert make_config(path) == config


def test_every_method_is_in_the_examples():
    assert {method for method, _ in EXAMPLES} == set(list_methods())


def test_overrides_win_over_the_file(tmp_path):
    make_config("interval", interval=4, warmup=5).save(tmp_path / "c.yaml")
    assert make_config(tmp_path / "c.yaml", interval=2) == make_config("interval", interval=2, warmup=5)


def test_a_path_is_a_method(tmp_path):
    make_config("interval", interval=4).save(tmp_path / "c.json")
    model = accelerate_model(FAMILIES["wan"].build(0), str(tmp_path / "c.json"))
    assert model.diffcache.config == make_config("interval", interval=4)


UNREADABLE = {
    "missing.yaml": None,
    "broken.yaml": b"method: [interval\n",
    "tabs.yaml": b"\tmethod: interval\n",
    "broken.json": b"{'method': 1}",
    "binary.yaml": b"\x80\x04\x95\x00\xff\xfe",
    "binary.json": b"\x80\x04\x95\x00\xff\xfe",
    "empty.yaml": b"",
    "list.json": b"[1, 2]",
    "foreign.yaml": b"model: wan\nsteps: 50\n",
    "tag.yaml": b"!!python/object/apply:os.getcwd []\n",
    "tag-inside.yaml": b"method: !!python/object/apply:os.getcwd []\n",
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_or_foreign_file_is_refused_by_name(name, tmp_path):
    path = tmp_path / name
    if UNREADABLE[name] is not None:
        path.write_bytes(UNREADABLE[name])
    with pytest.raises(ScheduleFileError, match=re.escape(name)) as refused:
        make_config(path)
    assert "\n" not in str(refused.value)


def test_a_folder_is_refused(tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ScheduleFileError, match=r"folder\.yaml"):
        make_config(tmp_path / "folder.yaml")


WRONG = {
    "method: [interval]\n": "interval",
    "method: {a: b}\n": "method",
    "method: null\n": "None",
    "method: wordcache\n": "did you mean 'worldcache'",
    "method: interval\nintervall: 3\n": "did you mean 'interval'",
    "method: interval\n1: 3\n": "1",
    "method: interval\ninterval: three\n": "interval: 'three' is out of range",
    "method: interval\ninterval: 0\n": "interval: 0 is out of range",
    "method: interval\nwarmup: null\n": "warmup",
    "method: worldcache\nthreshold: .nan\n": "threshold: nan is out of range",
    "method: worldcache\nmodalities: 3\n": "modalities",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_value_in_a_file_is_named(text, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises((ConfigError, ScheduleFileError), match=re.escape(WRONG[text])):
        make_config(tmp_path / "c.yaml")


@pytest.mark.parametrize("suffix", [".pt", ".pkl", "", ".txt"])
def test_saving_to_another_kind_of_file_is_refused(suffix, tmp_path):
    with pytest.raises(ScheduleFileError, match="yaml"):
        make_config("none").save(tmp_path / f"c{suffix}")
    assert not list(tmp_path.iterdir())


def test_no_file_of_the_package_unpickles():
    """No pickle, no torch.load, no unsafe YAML loader, no numpy object arrays, no eval."""
    forbidden = re.compile(
        r"\b(import pickle|pickle\.|torch\.load\(|torch\.save\(|yaml\.(unsafe_)?load\(|allow_pickle=True|joblib|dill\b)"
        r"|(?<![\w.])(eval|exec)\("
    )
    root = Path(diffcache.__file__).parent
    found = [
        f"{path.relative_to(root)}:{n}"
        for path in root.rglob("*.py")
        for n, line in enumerate(path.read_text().splitlines(), 1)
        if forbidden.search(line)
    ]
    assert not found
