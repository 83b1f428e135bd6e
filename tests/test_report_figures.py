"""Intervals, ties, fronts, read-outs and the syntax of rows: on planted numbers, no model runs."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch

from diffcache import ConfigError, cli
from diffcache.media.frames import Clip
from diffcache.methods import make_config
from diffcache.report.baseline import losses
from diffcache.report.data import DenseSeed, Machine, Model, Report, Row, Sample, Settings, Timing, load_report
from diffcache.report.equal import leads
from diffcache.report.markdown import to_markdown
from diffcache.report.metrics import METRICS, gradient_distance, measure, motion_difference
from diffcache.report.page import write_page
from diffcache.report.pictures import BRIGHT, DARK, error_map
from diffcache.report.plan import CONTROL, KNOBS, make_plan, split_methods
from diffcache.report.statistics import EQUAL, compare, interval, quantile
from diffcache.report.summary import summarise

# -- statistics --------------------------------------------------------------------------------------------------------


def test_interval_is_that_of_a_textbook():
    found = interval([10.0, 12.0, 14.0, 16.0])
    assert found.mean == 13
    assert found.half == pytest.approx(3.182 * statistics.stdev([10, 12, 14, 16]) / 2)


@pytest.mark.parametrize(("freedom", "known"), [(1, 12.706), (4, 2.776), (30, 2.042), (40, 2.021), (120, 1.980)])
def test_quantiles_are_those_of_the_table(freedom, known):
    assert quantile(freedom) == pytest.approx(known, abs=1e-3)


def test_interval_covers_the_mean_95_times_in_100():
    draws = np.random.default_rng(0).normal(3.0, 2.0, (4000, 8))
    hits = [abs(found.mean - 3.0) <= found.half for found in (interval(list(row)) for row in draws)]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.015)


def test_differences_are_paired_by_seed_and_ties_are_called_so():
    seeds = range(8)
    hard = {s: 10.0 * s for s in seeds}  # seeds differ far more than methods
    better = {s: 10.0 * s + 1 + 0.1 * (s % 2) for s in seeds}
    noisy = {s: 10.0 * s + (1 if s % 2 else -1) for s in seeds}
    assert compare(better, hard).verdict == "more"
    assert compare(hard, better).verdict == "less"
    assert compare(noisy, hard).verdict == "tie"
    assert compare(hard, hard).verdict == "tie"
    assert compare({0: 1.0}, {0: 2.0}).verdict == "one seed"
    assert compare({0: 1.0, 1: 2.0, 2: 9.0}, {1: 2.0, 2: 9.0, 3: 0.0}).over.count == 2


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_distances_are_nought_for_equals_and_grow_with_the_error():
    a = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(a.shape, generator=torch.Generator().manual_seed(1))
    for distance in (gradient_distance, motion_difference):
        values = [distance(a + size * noise, a) for size in (0.0, 0.01, 0.1, 1.0)]
        assert values[0] == 0
        assert values == sorted(set(values))
    assert gradient_distance(a, torch.zeros_like(a)) == pytest.approx(1)
    assert gradient_distance(a, a.flip(-1)) <= 1


def test_ms_ssim_is_there_where_the_size_allows_it():
    for side, there in ((64, False), (192, True)):
        frames = np.random.default_rng(0).random((1, side, side, 3), dtype=np.float32)
        found = measure(Clip(frames), Clip(frames))
        assert ("ms_ssim" in found) is there
        assert found["psnr"] == math.inf
        assert set(found) <= set(METRICS)


def test_no_metric_takes_the_name_of_a_network_that_it_is_not():
    own = ("gradient", "efficientnet")
    assert not any(word in METRICS[key].label for key in own for word in ("LPIPS", "FID", "perceptual"))


def test_error_maps_share_one_scale():
    dense = np.zeros((1, 2, 2, 3), np.float32)
    errors = [error_map(dense + size, dense).max() for size in (DARK / 2, DARK * 10, BRIGHT, 1.0)]
    assert errors[0] == 0
    assert 0 < errors[1] < 1
    assert errors[2:] == pytest.approx([1, 1])


# -- rows --------------------------------------------------------------------------------------------------------------


def test_lists_are_sweeps_except_where_the_field_is_a_list():
    names = [s.name for s in make_plan("worldcache:computed=[8,12],max_skip=6,steps:steps=[0,3]", 50)]
    assert names[:2] == ["worldcache:computed=8,max_skip=6", "worldcache:computed=12,max_skip=6"]
    assert len([n for n in names if n.startswith("steps")]) == 1


def test_control_has_a_quarter_to_three_quarters_of_the_steps():
    assert [s.steps for s in make_plan("none", 48) if s.kind == CONTROL] == [36, 24, 16, 12]
    assert [s.steps for s in make_plan("none", 2) if s.kind == CONTROL] == [1]


def test_every_natural_knob_sweeps_and_its_values_are_allowed():
    for family, (knob, values) in KNOBS.items():
        if not family.startswith("cache-dit"):
            specs = [s for s in make_plan(family, 50, sweep=True) if s.kind != CONTROL]
            assert [s.settings[knob] for s in specs] == list(values)
    one = [s for s in make_plan("interval:interval=5", 50, sweep=True) if s.kind != CONTROL]
    assert len(one) == 1  # a knob that was set is not swept


def test_names_and_settings_stay_together():
    assert split_methods(" none , worldcache:aether,max_skip=4 ") == ["none", "worldcache:aether,max_skip=4"]
    spec = make_plan([make_config("interval", interval=4)], 50)[0]
    assert (spec.name, spec.family) == ("interval:interval=4", "interval")


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ("wordcache", "did you mean 'worldcache'"),
        ("diffusers:frist-block", "did you mean 'diffusers:first-block'"),
        ("diffusers:first-block:thresold=1", "did you mean 'threshold'"),
        ("worldcache:computed=[8,12],max_skip=[1,2]", "must be one field"),
        ("worldcache:computed=[]", "must be values"),
        ("fewer-steps:steps=99", "must be a whole number from 1 to 50"),
        ("", "none given"),
    ],
)
def test_wrong_rows_answer_in_one_line(methods, words):
    with pytest.raises(ConfigError, match=words) as caught:
        make_plan(methods, 50)
    assert "\n" not in str(caught.value)


def test_peer_that_is_not_installed_is_named_with_the_remedy(monkeypatch):
    from diffcache.report import peers

    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"not installed: pip install 'diffcache\[peers\]'"):
        make_plan("cache-dit:dbcache", 50)
    rows = {s.name: s.missing for s in make_plan(None, 50)}
    assert "not installed" in rows["cache-dit:dbcache"]  # of the default set a row says so, and the rest goes on
    assert rows["none"] is None


# -- read-outs ---------------------------------------------------------------------------------------------------------


def planted(rows: dict[str, tuple[float, list[float]]], seeds: int = 4) -> Report:
    """A report of rows with a speed-up and one PSNR a seed; dense takes 1.1 s, 1 s of it in the denoiser."""
    settings = Settings("planted", list(rows), 50, seeds, [], {})
    machine = Machine("Linux", "none", 2, 2, None, {"diffcache": "0"})
    found = Report(settings, machine, Model("planted", "P", "S", {"t": "T"}, 10**6, "cpu", "float32"), "command")
    found.size = [1, 8, 8]
    found.dense = [DenseSeed(s, "", [Timing(1.1, [0.5, 0.5])] * 2, True) for s in range(seeds)]
    for name, (speed, values) in rows.items():
        kind = CONTROL if name.startswith(CONTROL) else "method"
        row = Row(name, name.partition(":")[0], kind, {}, 50, work=[0.5] * 2, work_share=min(1 / speed, 1.0))
        for seed, psnr in zip(range(seeds), values, strict=False):
            timing = Timing(0.1 + 1 / speed, [0.5 / speed] * 2)
            metrics = {"dense": {"psnr": psnr, "ssim": 0.9, "gradient": 0.1}}
            row.samples.append(Sample(seed, timing, [0, 1], metrics, {"dense": [psnr]}))
        found.rows.append(row)
    return found


CURVE = {"fewer-steps:25": (2.0, [30.0, 31, 32, 33]), "fewer-steps:12": (4.0, [20.0, 21, 22, 23])}


def test_best_at_equal_time_fastest_at_equal_quality_and_the_margin_over_the_control():
    found = summarise(planted({"a": (2.1, [50.0, 51, 52, 53]), "b": (3.0, [34.0, 36, 38, 40]), **CURVE}))
    assert [r.winner.name for r in found.times] == ["a", "a", "b", "fewer-steps:12"]
    assert [r.winner.name if r.winner else None for r in found.qualities] == ["b", "b", "a", "a"]
    a = next(line for line in found.lines if line.name == "a")
    assert a.margin.over.mean == pytest.approx(20 + 10 * 0.1 / 2)  # the control at 2.1x lies on a line from 2 to 4
    assert a.margin.verdict == "more"
    assert found.verdict[0].startswith("At about 2x, a is best: 51.5 dB, 20.5 dB above fewer steps")
    assert not found.warnings
    assert all(line.achieved == pytest.approx(1) for line in found.lines)


def test_families_are_read_between_their_rows_at_equal_time_and_equal_quality():
    report = planted(
        {
            "a:x=1": (2.0, [50.0, 52, 54, 56]),
            "a:x=2": (3.5, [41.0, 43, 45, 47]),
            "a:x=3": (3.0, [10.0] * 4),  # beaten by a row of its own family
            "b": (2.5, [40.0, 41, 42, 43]),
            **CURVE,
        }
    )
    found = summarise(report)
    a, b, control = found.standings
    assert [s.family for s in found.standings] == ["a", "b", "fewer-steps"]
    assert [o.mean if o else None for o in a.at_time] == [pytest.approx(53), pytest.approx(53), pytest.approx(47), None]
    assert a.at_quality == (3.5, 3.5, 3.5, pytest.approx(2.5))
    assert [o is not None for o in b.at_time] == [True, True, False, False]
    assert control.at_time[2].mean == pytest.approx(26.5)
    at_two, at_three = leads(found.lines, (2.5, 3.0))
    assert (at_two.best, at_two.second) == ("a", "b")
    assert (at_three.best, at_three.second, at_three.over.verdict) == ("a", "fewer-steps", "more")
    assert at_three.over.over.mean == pytest.approx(20.5)
    text = to_markdown(report, found, found.lines)
    assert "| a | 53.0 ± 4.1 | 53.0 ± 4.1 | 47.0 ± 4.1 | - |" in text
    assert "| 3x | a | fewer-steps | +20.5 ± " in text
    assert "| a:x=3 | 3.00x | 2.54x | 33% | 10.0 | 10.0 | 0 of 4 |" in text


def test_the_next_best_is_of_another_method():
    rows = {"a:x=1": (2.0, [50.0, 52, 54, 56]), "a:x=2": (3.5, [41.0, 43, 45, 47]), "a:goal=30": (3.5, [30.0] * 4)}
    report = planted({**rows, **CURVE})
    report.row("a:goal=30").family = "a:goal=30"
    found = summarise(report)
    assert {s.family for s in found.standings} == {"a", "a:goal=30", "fewer-steps"}
    (lead,) = leads(found.lines, (3.0,))
    assert (lead.best, lead.second) == ("a", "fewer-steps")


def test_control_that_wins_is_said_to_win():
    found = summarise(planted({"a": (2.0, [20.0, 21, 22, 23]), **CURVE}))
    assert "nothing beats fewer steps" in found.verdict[0]
    assert any("fewer steps are 10.0 dB better" in note for note in found.lines[0].notes)


def test_row_that_skips_nothing_wins_nothing():
    report = planted({"a": (1.6, [math.inf] * 4), **CURVE})
    report.row("a").work_share = 1.0
    found = summarise(report)
    assert all(r.winner is None or r.winner.name != "a" for r in (*found.times, *found.qualities))
    assert "skipped nothing" in found.lines[0].notes[0]
    assert found.lines[0].psnr == EQUAL


def test_ties_are_named():
    found = summarise(planted({"a": (2.0, [50.0, 51, 52, 53]), "b": (2.0, [50.5, 50.4, 52.4, 52.6]), **CURVE}))
    assert found.times[1].ties == ["b"]
    assert "It ties with b." in found.verdict[0]


def test_noisy_machine_is_said_to_be_noisy():
    report = planted({"a": (2.0, [50.0] * 4), **CURVE})
    assert not summarise(report).warnings
    report.dense[1].timings[1] = Timing(1.4, [0.6, 0.6])
    assert any("noisy" in text for text in summarise(report).warnings)


def test_losses_are_those_beyond_the_tolerance():
    before = planted({"a": (2.0, [50.0, 51, 52, 53]), **CURVE})
    slower = planted({"a": (1.8, [50.0, 51, 52, 53]), **CURVE})
    worse = planted({"a": (2.0, [46.0, 47, 48, 49]), **CURVE})
    assert [loss.what for loss in losses(slower, before)] == ["denoiser speed-up", "pipeline speed-up"]
    assert not losses(slower, before, 0.2)
    assert [loss.what for loss in losses(worse, before)] == ["PSNR (dB)"]
    assert not losses(before, worse)  # better is no loss


def test_page_of_rows_that_all_failed_is_still_a_page(tmp_path):
    report = planted({"a": (2.0, [50.0] * 4)})
    report.rows[0].samples, report.rows[0].failure = [], "RuntimeError: <b>no</b>"
    html = write_page(report, tmp_path).read_text()
    assert "RuntimeError: &lt;b&gt;no&lt;/b&gt;" in html
    report.save(tmp_path)
    assert load_report(tmp_path) == report


# -- command line ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "nope"], "unknown method 'nope'"),
        (["--methods", "diffusers:nope"], "unknown peer 'diffusers:nope'"),
        (["--out", "{tmp}/file/below"], "cannot be written"),
        (["--baseline", "{tmp}/none"], "baseline: "),
        (["--prompts", "{tmp}/none"], "prompts: "),
        (["--seeds", "0"], "seeds: 0 is out of range"),
        (["--steps", "0"], "steps: 0 is out of range"),
        (["--steps", "1"], "steps: 1 is out of range"),
        (["--tolerance", "2"], "tolerance: 2"),
        (["--resume", "--overwrite"], "resume: cannot go with overwrite"),
        (["--prompt", "nothing"], "unknown class 'nothing'"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(arguments, words, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    given = [a.replace("{tmp}", str(tmp_path)) for a in arguments]
    given += [] if "--out" in given else ["--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", "--model", "tiny-dit", *given])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert words in error
    assert len(error.splitlines()) == 1


def test_command_measures_and_a_lost_method_exits_1(tmp_path, capsys):
    out = tmp_path / "out"
    words = [
        "report",
        "--model",
        "tiny-dit",
        "--methods",
        "interval:interval=2,warmup=1",
        "--steps",
        "4",
        "--seeds",
        "1",
    ]
    with pytest.raises(SystemExit) as stop:
        cli.main([*words, "--out", str(out)])
    assert stop.value.code == 0
    assert (out / "report.html").exists()
    better = load_report(out)
    for row in better.rows:
        for sample in row.samples:
            sample.metrics["dense"]["psnr"] += 20
    (tmp_path / "before").mkdir()
    better.save(tmp_path / "before")
    again = [*words, "--out", str(out), "--resume", "--baseline", str(tmp_path / "before" / "report.json")]
    with pytest.raises(SystemExit) as stop:
        cli.main(again)
    assert stop.value.code == 1
    assert "worse than the baseline: interval:interval=2,warmup=1: PSNR (dB) fell" in capsys.readouterr().out
