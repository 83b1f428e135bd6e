"""The report: what it measures, what it catches, how it goes on, and what its page holds."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from diffcache import ConfigError, accelerated, report
from diffcache.hooks.recipe import Recipe
from diffcache.hooks.sites import OutputSite
from diffcache.methods import IntervalConfig, MethodConfig
from diffcache.predictors import Taylor
from diffcache.report.data import DATA, Report, load_report
from diffcache.report.measuring import Bench
from diffcache.report.peers import PEERS, complete, peer_on
from diffcache.report.summary import summarise
from diffcache.schedules import Interval
from diffcache.zoo import load_pipeline

MODEL = "tiny-dit"
STEPS = 6


@dataclass(frozen=True, kw_only=True)
class Planted(IntervalConfig):
    """Interval 2, with a fault that can be planted."""

    method: ClassVar[str] = "planted"

    interval: int = 2
    warmup: int = 1
    noise: float = 0.0
    sleep: float = 0.0
    fails: bool = False

    def recipe(self) -> Recipe:
        return Recipe(self.method, self, "output", lambda: _Slow(self), Taylor(0))


class _Slow(Interval):
    def __init__(self, config: Planted) -> None:
        self.config = config
        super().__init__(config.interval, config.warmup, config.cooldown, config.max_skip)

    def wants_compute(self, step: int) -> bool:
        time.sleep(self.config.sleep)
        if self.config.fails and step == 3:
            raise RuntimeError("the plugin's own fault")
        return super().wants_compute(step)


def measured(out: Path, *methods: str | MethodConfig, **options) -> Report:
    return report.run(MODEL, list(methods), **{"steps": STEPS, "seeds": 2, "out": out, **options})


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> tuple[Report, Path]:
    out = tmp_path_factory.mktemp("healthy")
    methods = ("none", Planted(), "diffusers:mag", "diffusers:first-block", "cache-dit:dbcache")
    return measured(out, *methods, seeds=3), out


def test_report_has_every_timing_and_comes_back_as_it_was_written(healthy):
    found, out = healthy
    assert load_report(out) == load_report(str(out / "report.json")) == found
    for row in found.rows:
        assert row.failure or [s.seed for s in row.samples] == [0, 1, 2]
        for sample in row.samples:
            assert len(sample.timing.calls) == row.steps
            assert 0 < sample.timing.denoiser < sample.timing.seconds
            before, after = sample.dense
            assert after == before + 1
    assert all(len(d.timings) == 3 for d in found.dense)  # before, between and after


def test_control_is_always_there_and_never_skipping_hooks_change_nothing(healthy):
    found, _ = healthy
    assert [r.steps for r in found.rows if r.kind == "fewer-steps"] == [4, 3, 2]
    assert all(s.metrics["dense"]["psnr"] == float("inf") for s in found.row("none").samples)
    assert found.row("none").work_share == pytest.approx(1)
    for steps in (4, 3, 2):
        assert found.row(f"fewer-steps:{steps}").work_share == pytest.approx(steps / STEPS)


def test_dense_repeats_to_the_bit_between_peers(healthy):
    found, _ = healthy
    assert all(d.repeats for d in found.dense)


def test_work_is_counted_whoever_skips(healthy):
    found, _ = healthy
    planted = found.row("planted")
    computed = planted.samples[0].trajectories[0].segments[0].computed
    assert computed < STEPS
    assert planted.work_share == pytest.approx(computed / STEPS)
    assert 0 < found.row("diffusers:mag").work_share <= 1


def test_failing_peer_is_a_row_with_its_reason(healthy):
    found, out = healthy
    failed = found.row("diffusers:first-block")
    assert "cache context" in failed.failure
    assert "cache context" in (out / "report.html").read_text()


def test_report_holds_no_paths_and_no_host(healthy):
    import platform

    text = (healthy[1] / DATA).read_text()
    assert str(Path.home()) not in text
    assert str(Path(report.__file__).parents[2]) not in text
    assert f'"{platform.node()}"' not in text


def test_page_refers_to_nothing_outside(healthy):
    html = (healthy[1] / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", html)
    assert not re.search(r"@import|url\((?!#)", html)
    assert "http://" not in html
    assert "https://" not in html
    used, known = set(re.findall(r'href="#([^"]+)"', html)), set(re.findall(r'\bid="([^"]+)"', html))
    assert used <= known
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(known)  # none twice


def test_page_shows_every_row(healthy):
    found, out = healthy
    html = (out / "report.html").read_text()
    assert all(row.name in html for row in found.rows)
    assert found.command in html.replace("&#39;", "'").replace("&#34;", '"')


# -- planted regressions -----------------------------------------------------------------------------------------------


def test_noise_on_one_step_is_caught_by_the_figures(healthy, tmp_path, monkeypatch):
    before, _ = healthy
    predict = OutputSite.predict

    def noisy(self, run, cache, moment, kinds):
        result = predict(self, run, cache, moment, kinds)
        if getattr(self.recipe.config, "noise", 0) and moment.step == 3:
            result[0].add_(torch.randn(result[0].shape, generator=torch.Generator().manual_seed(0)))
        return result

    monkeypatch.setattr(OutputSite, "predict", noisy)
    now = measured(tmp_path, Planted(noise=1.0), seeds=3)
    now.row("planted:noise=1").name = "planted"
    assert [loss.what for loss in report.losses(now, before) if loss.row == "planted"][-1:] == ["PSNR (dB)"]
    (line,) = [line for line in summarise(now).lines if line.name == "planted"]
    assert any("fewer steps are" in note for note in line.notes)
    assert summarise(now).times[0].winner is not line


def test_sleep_in_a_hook_is_caught_by_the_figures(healthy, tmp_path):
    before, _ = healthy
    now = measured(tmp_path, Planted(sleep=0.1), seeds=3)
    now.row("planted:sleep=0.1").name = "planted"
    whats = [loss.what for loss in report.losses(now, before) if loss.row == "planted"]
    assert whats == ["denoiser speed-up", "pipeline speed-up"]
    (line,) = [line for line in summarise(now).lines if line.name == "planted"]
    assert line.notes
    parts = {part.name: part.share for part in line.parts}
    assert parts["decide"] > parts["compute"]


def test_failing_method_is_a_row_and_the_rest_goes_on(tmp_path):
    found = measured(tmp_path, Planted(fails=True), "interval:interval=2", seeds=1)
    assert "the plugin's own fault" in found.row("planted:fails=true").failure
    assert found.row("interval:interval=2").samples
    assert report.losses(found, found) == []


@pytest.mark.parametrize(
    ("model", "known"),
    [
        ("tiny-dit", "diffsparse.safetensors: steps: made for 50, but here it is 5"),
        pytest.param(
            "tiny-world",
            "diffsparse needs the model's learned table: run `diffcache calibrate --model MODEL",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_method_that_needs_several_runs_takes_the_shipped_file_or_names_the_command(model, known, tmp_path):
    found = report.run(model, methods="diffsparse", steps=5, seeds=1, out=tmp_path)
    assert re.search(known, found.row("diffsparse").failure)


def test_method_that_stops_running_is_a_loss(healthy):
    before, out = healthy
    now = load_report(out)
    now.row("planted").failure = "RuntimeError: gone"
    assert [str(loss) for loss in report.losses(now, before)] == ["planted: does not run any more: RuntimeError: gone"]
    assert report.losses(before, before) == []


# -- going on ----------------------------------------------------------------------------------------------------------


def test_interrupted_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    whole = Bench._measure_row

    def killed(self, row, ready, against, seed, *rest):
        whole(self, row, ready, against, seed, *rest)
        if seed == 1:
            raise KeyboardInterrupt  # one row has run on this seed, the others have not

    monkeypatch.setattr(Bench, "_measure_row", killed)
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, "interval:interval=2")
    kept = load_report(tmp_path)
    assert kept.seeds == [0]
    assert "1 of 2 seeds" in (tmp_path / "report.html").read_text()
    monkeypatch.setattr(Bench, "_measure_row", whole)
    with pytest.raises(ConfigError, match="resume"):
        measured(tmp_path, "interval:interval=2")
    with pytest.raises(ConfigError, match="steps differs"):
        measured(tmp_path, "interval:interval=2", steps=STEPS + 1, resume=True)
    found = measured(tmp_path, "interval:interval=2", resume=True)
    assert found.seeds == [0, 1]
    assert found.dense[0] == kept.dense[0]
    assert found.row("interval:interval=2").samples[0] == kept.row("interval:interval=2").samples[0]
    assert (tmp_path / "report.html").exists()


def test_other_schemas_and_damaged_files_answer_in_one_line(healthy, tmp_path):
    data = json.loads((healthy[1] / DATA).read_text())
    path = tmp_path / DATA
    for content, words in (
        (json.dumps({**data, "schema": 0}), "has schema 0, must be 1"),
        ("{", "damaged"),
        (json.dumps({"schema": 1}), "damaged"),
        ("[]", "schema None"),
    ):
        path.write_text(content)
        with pytest.raises(ConfigError, match=words) as caught:
            load_report(path, "baseline")
        assert "\n" not in str(caught.value)


# -- peers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["tiny-dit", "tiny-wan"])
def test_peers_leave_nothing_behind(model):
    pipe = load_pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    arguments = {"class_labels": [1]} if model == "tiny-dit" else {"prompt": "turns left", "height": 48, "width": 64}
    arguments |= {} if model == "tiny-dit" else {"num_frames": 5, "max_sequence_length": 16}

    def generate():
        noise = torch.Generator().manual_seed(0)
        return pipe(**arguments, num_inference_steps=4, generator=noise, output_type="np")[0]

    dense, cls, modules = generate(), type(pipe), dict(pipe.transformer.named_modules())
    before = {name: set(vars(module)) for name, module in modules.items()}
    methods = set(vars(cls))
    for peer in PEERS:
        try:
            settings = complete(pipe, peer, {}, 4, generate)
            with peer_on(pipe, peer, settings):
                generate()
        except (ValueError, AttributeError, IndexError):
            pass  # many cannot do these models; what counts is what they leave
        assert type(pipe) is cls
        assert set(vars(cls)) == methods, peer
        assert {name: set(vars(module)) for name, module in pipe.transformer.named_modules()} == before, peer
        assert (generate() == dense).all(), peer
    with accelerated(pipe, "interval", interval=2, warmup=1):
        generate()
    assert (generate() == dense).all()


def test_per_token_methods_have_a_token_map_and_others_none(tmp_path):
    by_token = ("toca:warmup=2,interval=4", "worldcache-partial:warmup=2,computed=4")
    found = measured(
        tmp_path, "worldcache:warmup=2,share=0", "interval:interval=2,warmup=1", *by_token, seeds=1, steps=12
    )
    assert [found.row(name).tokens for name in by_token] == ["ages"] * 2
    row = found.row("worldcache:warmup=2,share=0")
    assert row.tokens == "damping"
    assert (tmp_path / "pictures" / "worldcache_warmup-2,share-0-tokens.png").exists()
    assert not found.row("interval:interval=2,warmup=1").tokens
    assert "Token maps" in (tmp_path / "report.html").read_text()


def test_wrong_call_leaves_an_old_report_alone(healthy, tmp_path):
    (tmp_path / DATA).write_bytes((healthy[1] / DATA).read_bytes())
    for wrong in ({"prompt": "no such class"}, {"methods": "nope"}, {"seeds": 0}):
        with pytest.raises(ConfigError):
            report.run(MODEL, **{"methods": "none", "out": tmp_path, "overwrite": True, **wrong})
        assert load_report(tmp_path) == healthy[0]
