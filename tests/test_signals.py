"""Methods that listen: fbcache, teacache, easycache, magcache - what they hear, when they decide, what they return."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.cache_utils import CacheMixin

from diffcache import ConfigError, accelerate_model, denoising, restore
from diffcache.schedules import POLYNOMIALS

from .denoisers import DENOISERS
from .denoisers import running as tiny
from .denoisers.running import STEPS, letters, method_on
from .models import FAMILIES, decisions, normal, walk_steps, wan
from .reads import Reads, watched

#: teacache without a calibration: the distance itself
DISTANCE = (1.0, 0.0)

LISTENING = {
    "fbcache": dict(threshold=0.6, max_skip=3),
    "teacache": dict(threshold=1.0, polynomial=DISTANCE),
    "easycache": dict(threshold=1.0, warmup=2),
}


def trajectory(family, steps=12, speed=1.0, batch=1):
    """Inputs that move a little each step, with timesteps."""
    kind = FAMILIES[family]
    a, b = kind.latents(0, batch, 2), kind.latents(1, batch, 2)
    for step in range(steps):
        u = speed * step / steps
        yield a * (1 - u) + b * u, kind.time(1 - step / (2 * steps)).expand(batch)


def run(family, model, batch=1, speed=1.0, steps=12):
    kind, outputs = FAMILIES[family], []
    with torch.no_grad(), denoising(model, steps):
        for x, t in trajectory(family, steps, speed, batch):
            call = dict(hidden_states=x, timestep=t, **kind.conditioning(1, batch), **kind.fixed(2), return_dict=False)
            if isinstance(model, CacheMixin):
                with model.cache_context("cond"):
                    outputs.append(model(**call)[0])
            else:
                outputs.append(model(**call)[0])
    return outputs


def reads_of(family, model, steps=12):
    """Host reads in each step, the model's own among them: a gate listens inside the model."""
    reads, counts = Reads(), []
    with torch.no_grad(), watched(reads):
        for _ in walk_steps(family, model, steps):
            counts.append(reads.count - sum(counts))
    return counts


@pytest.mark.parametrize("method", LISTENING)
@pytest.mark.parametrize("family", ["wan", "flux"])
def test_a_call_is_read_at_most_once(family, method):
    model = FAMILIES[family].build(0)
    assert not any(reads_of(family, model))
    accelerate_model(model, method, **LISTENING[method])
    counts = reads_of(family, model)
    assert "c" in decisions(model)[0]
    branches = len(decisions(model))
    # each branch hears for itself; the first step may compare the branches' conditioning and prove the body
    assert 1 <= max(counts[1:]) <= branches, counts


@pytest.mark.parametrize("method", ["fbcache", "teacache"])
def test_a_still_sample_does_not_hide_one_that_moves(method):
    settings = dict(fbcache=dict(threshold=0.1), teacache=dict(threshold=0.5, polynomial=DISTANCE))[method]
    model, kind = FAMILIES["wan"].build(0), FAMILIES["wan"]
    alone = accelerate_model(model, method, **settings)
    run("wan", alone, speed=1.0)
    moving = decisions(alone)[0]
    assert 2 < moving.count("F") < 12
    restore(model)
    both = accelerate_model(model, method, **settings)
    still, texts = kind.latents(5, 15, 2), kind.conditioning(2, 15)
    texts = {name: torch.cat([text, kind.conditioning(1, 1)[name]]) for name, text in texts.items()}
    with torch.no_grad(), denoising(both, 12):
        for x, t in trajectory("wan"):
            rows = torch.cat([still, x])
            both(hidden_states=rows, timestep=t.expand(16), **texts, return_dict=False)
    assert both.diffcache.stats().segments[0].samples[15] == moving


@pytest.mark.parametrize("method", LISTENING)
def test_an_input_that_is_not_finite_is_computed(method):
    model, kind = FAMILIES["wan"].build(0), FAMILIES["wan"]
    accelerate_model(model, method, **{**LISTENING[method], "threshold": 1e9, "max_skip": 64})
    with torch.no_grad(), denoising(model, 12):
        for step, (x, t) in enumerate(trajectory("wan")):
            x = x * float("nan") if step == 5 else x
            model(hidden_states=x, timestep=t, **kind.conditioning(1, 1), return_dict=False)
    assert decisions(model)[0][4:7] == "cFF"


@pytest.mark.parametrize("waits", [False, True], ids=["read when needed", "read along"])
@pytest.mark.parametrize(
    ("threshold", "letters", "said"),
    [(1e9, "FcccFFcccFcc", [(5, "prediction not finite")]), (0.0, "FFFFFFFFFFFF", [])],
)
def test_an_alarm_counts_where_something_would_be_predicted(threshold, letters, said, waits, monkeypatch):
    """From a device the alarms of a computed step come along with the next signal, the CPU is read when they count."""
    monkeypatch.setattr("diffcache.hooks.listening.waits", lambda value: waits)
    model, calls = FAMILIES["wan"].build(0), []
    run("wan", accelerate_model(model, "fbcache", threshold=threshold, max_skip=3))  # the body is proved

    def break_one(module, args, output):
        calls.append(output)
        return output * float("inf") if len(calls) == 5 else output  # behind the gate: it hears nothing of it

    model.blocks[-1].register_forward_hook(break_one)
    run("wan", model)
    (numbers,) = model.diffcache.stats().segments
    assert (numbers.decisions, [(f.step, f.reason) for f in numbers.fallbacks]) == (letters, said)


@pytest.mark.parametrize("method", ["fbcache", "teacache"])
def test_a_larger_threshold_never_computes_more(method):
    counts = []
    for threshold in (0.0, 0.05, 0.2, 1.0, 10.0):
        model = accelerate_model(FAMILIES["wan"].build(0), method, **{**LISTENING[method], "threshold": threshold})
        run("wan", model)
        counts.append(decisions(model)[0].count("F"))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 12 > counts[-1]


@pytest.mark.parametrize(("first", "last"), [(1, 0), (2, 0), (1, 1), (2, 1), (1, 2)])
def test_first_and_last_blocks_run_at_every_step(first, last):
    model = accelerate_model(wan(0, layers=4), "fbcache", threshold=10.0, first=first, last=last)
    ran = [0] * 4
    for i, block in enumerate(model.blocks):
        block.ffn.net[2].register_forward_pre_hook(lambda m, a, i=i: ran.__setitem__(i, ran[i] + 1))
    run("wan", model)
    proof = 2  # the first step is run, and run once more to prove the body
    always = [12 + proof - 1] * first
    never = [1] * (4 - first - last)
    assert ran == always + never + [12 + proof - 1] * last
    assert model.diffcache.stats().segments[0].block_share == pytest.approx((1 + 11 * (first + last) / 4) / 12)


@pytest.mark.parametrize("last", [0, 1])
def test_with_constant_input_first_and_last_change_nothing(last):
    dense, model = wan(0, layers=4), wan(0, layers=4)
    accelerate_model(model, "fbcache", threshold=10.0, first=2, last=last)
    for found, want in zip(run("wan", model, speed=0.0), run("wan", dense, speed=0.0), strict=True):
        assert (found - want).norm() <= 0.2 * want.norm()  # the timestep moves on


#: classes whose last block reads a text stream that the blocks before it change, a little
TWO_STREAMS = [
    "FluxTransformer2DModel",
    "BriaTransformer2DModel",
    "SD3Transformer2DModel",
    "HunyuanImageTransformer2DModel",
    "HunyuanVideoTransformer3DModel",
]


@pytest.mark.parametrize("name", TWO_STREAMS)
def test_blocks_behind_the_body_get_every_stream(name):
    with method_on(name, "first", last=1) as model:
        dense, *outputs = tiny.run_constant(name)
        assert "c" in letters(model)
    for output in outputs:
        for part, truth in zip(output, dense, strict=True):
            assert (part - truth).norm() <= 1e-6 * truth.norm()


def test_first_and_last_must_leave_a_block():
    with pytest.raises(ConfigError, match=r"first: 8 is out of range, first \+ last must be < 2"):
        accelerate_model(wan(0), "fbcache:dbcache")


def test_teacache_runs_no_matrix_of_a_predicted_step_beyond_the_first_norm():
    model = accelerate_model(wan(0), "teacache", threshold=1e9, polynomial=DISTANCE)
    ran = []
    for name in ("attn1.to_q", "attn2.to_q", "ffn.net.2"):
        model.blocks[0].get_submodule(name).register_forward_pre_hook(lambda m, a: ran.append(1))
    for step, _ in enumerate(walk_steps("wan", model, 8)):
        if decisions(model)[0][step] == "c":
            assert not ran
        ran.clear()
    assert "c" in decisions(model)[0]


def test_a_polynomial_that_was_fitted_to_another_signal_is_refused():
    with pytest.raises(ConfigError, match="published: unknown polynomial"):
        accelerate_model(wan(0), "teacache", published="wan2.1-t2v-14b")
    assert POLYNOMIALS["wan2.1-t2v-14b"].measured == "embedding"


def test_magcache_without_ratios_says_what_it_needs():
    with pytest.raises(ConfigError, match="ratios: magcache needs the model"):
        accelerate_model(wan(0), "magcache")


#: for each output the input that it goes with, and the channel axis and channels that the two share
GOES_WITH = {
    "WanTransformer3DModel": [("hidden_states", 1, 4)],
    "PixArtTransformer2DModel": [("hidden_states", 1, 4)],  # a learned variance behind the noise
    "WanAnimateTransformer3DModel": [("hidden_states", 1, 4)],  # conditions behind the noisy channels
    "Kandinsky6SRTransformer3DModel": [("hidden_states", 4, 4)],
    "LTX2VideoTransformer3DModel": [("hidden_states", 2, 4), ("audio_hidden_states", 2, 4)],
    "Kandinsky6Transformer3DModel": [("hidden_states", 4, 4), ("audio_hidden_states", 2, 4)],
    "QwenImage21Transformer2DModel": [],  # text and picture in one sequence: reused as it is
}


@pytest.mark.parametrize("name", GOES_WITH)
def test_easycache_moves_each_output_with_its_input(name):
    with method_on(name, "rate") as model:
        outputs = tiny.run(name)
        assert letters(model) == "FFccF"
    before, now = (DENOISERS[name].trajectory()(1.0 - step / STEPS) for step in (1, 2))
    for index, (old, new) in enumerate(zip(outputs[1], outputs[2], strict=True)):
        moved = torch.zeros_like(old)
        if index < len(GOES_WITH[name]):
            argument, axis, channels = GOES_WITH[name][index]
            difference = (now[argument] - before[argument]).narrow(axis, 0, channels)
            moved.narrow(axis, 0, channels).copy_(difference)
            assert difference.any()
        torch.testing.assert_close(new, old + moved)


def test_easycache_computes_when_the_sound_moves_and_the_picture_does_not():
    name = "LTX2VideoTransformer3DModel"
    loud = normal(1, 6, 4, seed=9)

    def sounding(step, arguments):
        still = DENOISERS[name].trajectory()(1.0 if step == 0 else 0.5)
        sound = still["audio_hidden_states"] + (loud if step == 3 else 0.0)
        return {**still, "timestep": arguments["timestep"], "audio_hidden_states": sound}

    with method_on(name, "rate", threshold=1e-3) as model:
        tiny.run(name, before=sounding)
        assert letters(model) == "FFcFF"


def test_the_gate_of_fbcache_lies_where_the_streams_of_the_body_come_by():
    """Latte's spatial and temporal blocks take turns: behind the first spatial block the tokens lie another way."""
    with method_on("LatteTransformer3DModel", "first") as model:
        tiny.run("LatteTransformer3DModel")
        (segment,) = model.diffcache.stats().segments
    assert segment.decisions == "FFccF"
    assert segment.block_share == pytest.approx((3 + 2 * 2 / 4) / 5)
