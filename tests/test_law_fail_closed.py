"""Law 5: whatever goes wrong is computed in full and counted with its reason; the next generation is clean."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from diffcache import NothingSkippedWarning, accelerate_model, accelerate_pipeline, denoising

from .cases import PLACED, SKIPPING
from .models import FAMILIES, decisions, run_wan, sample, wan_pipeline


def reasons(owner):
    return [f.reason for s in owner.diffcache.stats().segments for f in s.fallbacks]


class Poisoned:
    """Puts ``value`` into the last block's output at the calls of the model listed in ``at``, until removed."""

    def __init__(self, model, at, value):
        self.call, self.at, self.value = -1, at, value
        # The model's own calls count: its first computed step may run the blocks once more to prove a body.
        self.handles = [model.register_forward_pre_hook(self.begin), model.blocks[-1].register_forward_hook(self.spoil)]

    def begin(self, module, args):
        self.call += 1

    def spoil(self, module, args, output):
        if self.call not in self.at:
            return None
        output = output.clone()
        output[0, 0, 0] = self.value
        return output

    def remove(self):
        for handle in self.handles:
            handle.remove()


def run_fixed(model, steps=12, conditioning=None, on_step=None):
    """One branch on inputs that do not depend on outputs, so that a bad output does not spoil what comes later."""
    kind = FAMILIES["wan"]
    conditioning = conditioning or kind.conditioning(1, 1)
    outputs = []
    with torch.no_grad(), denoising(model, steps):
        for step in range(steps):
            if on_step is not None:
                on_step(step)
            level = 1.0 - step / steps
            x = kind.latents(0, 1, 2) * level
            outputs.append(
                model(hidden_states=x, timestep=kind.time(level)[None], **conditioning, return_dict=False)[0].clone()
            )
    return outputs


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("case", SKIPPING)
def test_no_prediction_comes_from_a_history_that_is_not_finite(case, value):
    name, settings = SKIPPING[case]
    model = FAMILIES["wan"].build(0)
    bare = run_fixed(model)
    accelerate_model(model, name, **{**settings, "warmup": 3})
    handle = Poisoned(model, {2}, value)  # the last warm-up step: predictions would follow
    outputs = run_fixed(model)
    handle.remove()
    assert not outputs[2].isfinite().all()
    assert all(o.isfinite().all() for i, o in enumerate(outputs) if i != 2)
    assert torch.equal(outputs[3], bare[3])
    assert set(reasons(model)) == {"prediction not finite"}


@pytest.mark.parametrize("case", PLACED)
def test_predictions_come_back_once_the_history_is_finite_again(case):
    name, settings = PLACED[case]
    model = accelerate_model(FAMILIES["wan"].build(0), name, **{**settings, "warmup": 3})
    handle = Poisoned(model, {0}, math.nan)
    run_fixed(model, 24)
    handle.remove()
    assert "c" in decisions(model)[0], decisions(model)


class Burst(torch.nn.Module):
    """A denoiser whose output follows a given curve: what a history looks like is in the test's hands."""

    def __init__(self, curve):
        super().__init__()
        self.curve = curve
        self.blocks = torch.nn.ModuleList([torch.nn.MultiheadAttention(4, 1)])

    def forward(self, hidden_states, timestep):
        return self.curve(timestep).expand_as(hidden_states) * hidden_states


def run_curve(model, steps):
    x = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), denoising(model, steps):
        return [model(hidden_states=x, timestep=torch.tensor(float(s))) for s in range(steps)]


def test_an_exploding_prediction_is_computed_instead_and_counted():
    """Growth by 3 a step up to step 4, then still: order 2 overshoots far beyond any variance seen."""
    model = accelerate_model(
        Burst(lambda t: torch.tensor(3.0) ** t.clamp(max=4)),
        "interval",
        predictor="taylor",
        order=2,
        interval=6,
        warmup=5,
    )
    dense = run_curve(Burst(lambda t: torch.tensor(3.0) ** t.clamp(max=4)), 12)
    outputs = run_curve(model, 12)
    assert torch.equal(outputs[6], dense[6])
    assert any("variance" in reason for reason in reasons(model))
    largest = max(o.abs().max() for o in dense)
    assert all(o.abs().max() <= 2 * largest for o in outputs)


def test_a_vanishing_prediction_is_computed_instead_and_counted():
    """A straight line to zero: linear extrapolation reaches zero variance while the model levels off."""
    curve = lambda t: (1.0 - 0.3 * t).clamp(min=0.3)  # noqa: E731
    model = accelerate_model(Burst(curve), "interval", predictor="linear", interval=6, warmup=3)
    outputs = run_curve(model, 12)
    assert any("variance" in reason for reason in reasons(model))
    smallest = run_curve(Burst(curve), 12)[-1].std()
    assert all(o.std() > 0.25 * smallest for o in outputs)


def test_a_fallback_is_a_computed_step_of_the_decision_string():
    model = accelerate_model(FAMILIES["wan"].build(0), "interval", interval=4, warmup=3)
    handle = Poisoned(model, {2}, math.nan)
    run_fixed(model)
    handle.remove()
    (segment,) = model.diffcache.stats().segments
    assert segment.fallbacks
    assert all(segment.decisions[f.step] == "F" for f in segment.fallbacks)


# -- exceptions --------------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


@pytest.mark.parametrize("site", ["output", "body"])
@pytest.mark.parametrize("at", [0, 4, 6, 9])
def test_an_exception_in_the_model_leaves_the_next_generation_clean(at, site):
    model = accelerate_model(FAMILIES["wan"].build(0), "interval", interval=3, site=site, predictor="linear")
    wanted = sample("wan", model, seed=1)
    calls = iter(range(10_000))

    def fail(module, args):
        if next(calls) >= at:
            raise Stop

    # the embedding runs at every call of site body, also at predicted steps
    handle = model.condition_embedder.register_forward_pre_hook(fail)
    with pytest.raises(Stop):
        sample("wan", model, seed=2)
    handle.remove()
    assert sample("wan", model, seed=1).equals(wanted)


@pytest.mark.parametrize("at", [0, 2, 3, 4, 7])
def test_an_exception_in_a_callback_leaves_the_next_generation_clean(at):
    pipe = accelerate_pipeline(wan_pipeline(), "worldcache", threshold=1.0)
    wanted = run_wan(pipe, 12, seed=1)
    letters = decisions(pipe)

    def fail(pipe, step, t, kwargs):
        if step == at:
            raise Stop
        return kwargs

    with pytest.raises(Stop):
        run_wan(pipe, 12, seed=2, callback_on_step_end=fail)
    assert torch.equal(run_wan(pipe, 12, seed=1), wanted)
    assert decisions(pipe) == letters


def test_after_an_exception_the_rest_of_the_trajectory_is_computed():
    model = FAMILIES["wan"].build(0)
    bare = run_fixed(model)
    accelerate_model(model, "interval", interval=3)
    kind = FAMILIES["wan"]
    outputs = []
    with torch.no_grad(), denoising(model, 12):
        for step in range(12):
            x = kind.latents(0, 1, 2) * (1.0 - step / 12)
            call = dict(hidden_states=x, timestep=kind.time(1.0 - step / 12)[None], **kind.conditioning(1, 1))
            if step == 2:
                handle = model.blocks[0].register_forward_pre_hook(lambda m, a: (_ for _ in ()).throw(Stop()))
                with pytest.raises(Stop):
                    model(**call)
                handle.remove()
            outputs.append(model(**call).sample)
    assert all(torch.equal(a, b) for a, b in zip(outputs[2:], bare[2:], strict=True))


# -- the model changes -------------------------------------------------------------------------------------------------


def test_a_generation_that_was_broken_off_is_not_reported_as_idle():
    pipe = accelerate_pipeline(wan_pipeline(), "worldcache")

    def fail(pipe, step, t, kwargs):
        if step == 1:
            raise RuntimeError("stop")
        return {}

    with warnings.catch_warnings():
        warnings.simplefilter("error", NothingSkippedWarning)
        with pytest.raises(RuntimeError, match="stop"):
            run_wan(pipe, 12, callback_on_step_end=fail)
        run_wan(pipe, 12)
    assert "c" in decisions(pipe)[0]


@pytest.mark.parametrize("site", ["output", "body"])
def test_weights_changed_in_place_in_mid_trajectory_are_noticed(site):
    model = accelerate_model(FAMILIES["wan"].build(0), "interval", interval=4, site=site)

    def change(step):
        if step == 5:
            model.blocks[0].ffn.net[0].proj.weight.mul_(1.5)

    outputs = run_fixed(model, on_step=change)
    changed = run_fixed(accelerate_model(model, "none"))
    assert torch.equal(outputs[5], changed[5])


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("fbcache", dict(threshold=1e9)),
        ("teacache", dict(threshold=1e9, polynomial=(1.0, 0.0))),
        ("easycache", dict(threshold=1e9, warmup=2)),
        ("interval", dict(interval=4)),
    ],
)
@pytest.mark.parametrize("changed", ["at a computed step", "at a predicted step"])
def test_nothing_is_predicted_from_other_weights(method, settings, changed):
    """However little a signal shows of a change: nothing predicted mixes the old weights with the new."""
    model = accelerate_model(FAMILIES["wan"].build(0), method, max_skip=3, **settings)
    run_fixed(model)
    letters = decisions(model)[0]
    at = letters.index("F", letters.index("c")) if changed == "at a computed step" else letters.index("cc") + 1
    due = letters.index("c", at)
    outputs = run_fixed(model, on_step=lambda step: model.proj_out.weight.mul_(1.5) if step == at else None)
    assert [f.step for f in model.diffcache.stats().segments[0].fallbacks if "weights" in f.reason] == [due]
    assert torch.equal(outputs[due], run_fixed(accelerate_model(model, "none"))[due])


def test_a_change_of_weights_is_counted_with_its_reason():
    model = accelerate_model(FAMILIES["wan"].build(0), "interval", interval=4)
    run_fixed(model, on_step=lambda s: model.proj_out.weight.mul_(1.5) if s == 5 else None)
    assert next((f.step, "weights" in f.reason) for f in model.diffcache.stats().segments[0].fallbacks) == (5, True)
    assert decisions(model)[0][5] == "F"


def test_weights_loaded_in_mid_trajectory_are_noticed():
    model = accelerate_model(FAMILIES["wan"].build(0), "interval", interval=4)
    other = FAMILIES["wan"].build(1)
    bare = run_fixed(other)
    outputs = run_fixed(model, on_step=lambda s: model.load_state_dict(other.state_dict()) if s == 5 else None)
    assert torch.equal(outputs[5], bare[5])


def test_a_parameter_replaced_by_another_is_noticed():
    """LoRA fusing and quantisation put new parameter objects in place of the old ones."""
    model = accelerate_model(FAMILIES["wan"].build(0), "interval", interval=4)
    old = model.proj_out.weight

    def replace(step):
        if step == 5:
            model.proj_out.weight = torch.nn.Parameter(old.detach() * 2, requires_grad=False)

    run_fixed(model, on_step=replace)
    assert decisions(model)[0][5] == "F"


def test_adapters_added_and_rescaled_in_mid_trajectory_are_noticed():
    peft = pytest.importorskip("peft")
    model = FAMILIES["wan"].build(0)
    accelerate_model(model, "interval", interval=4)

    def adapt(step):
        if step == 4:
            model.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
        if step == 8:
            model.set_adapters("default", 0.5)

    run_fixed(model, 16, on_step=adapt)
    assert decisions(model)[0][4] == "F"
    assert decisions(model)[0][8] == "F"


# -- the call changes --------------------------------------------------------------------------------------------------


def test_an_input_that_wants_a_gradient_is_computed():
    kind = FAMILIES["wan"]
    model = accelerate_model(kind.build(0), "interval", interval=3)
    conditioning = kind.conditioning(1, 1)
    with denoising(model, 9):
        for step in range(9):
            x = kind.latents(0, 1, 2).requires_grad_()
            out = model(hidden_states=x, timestep=kind.time(1 - step / 9)[None], **conditioning).sample
            assert torch.autograd.grad(out.square().sum(), x)[0].abs().sum() > 0
    assert "gradient" in reasons(model)[0]
    assert set(decisions(model)[0]) == {"F"}


def test_gradients_of_another_argument_are_not_lost_either():
    """Prompt optimisation differentiates by the conditioning."""
    kind = FAMILIES["wan"]
    model = accelerate_model(kind.build(0), "interval", interval=3)
    prompt = kind.conditioning(1, 1)["encoder_hidden_states"].requires_grad_()
    with denoising(model, 9):
        for step in range(9):
            out = model(
                hidden_states=kind.latents(0, 1, 2),
                timestep=kind.time(1 - step / 9)[None],
                encoder_hidden_states=prompt,
            ).sample
            assert torch.autograd.grad(out.square().sum(), prompt)[0].abs().sum() > 0


def test_one_branch_called_twice_in_a_step_is_computed_and_counted():
    """Two calls with one timestep and one conditioning: a sampler of higher order, or an unknown guider."""
    kind = FAMILIES["wan"]
    model = kind.build(0)
    conditioning = kind.conditioning(1, 1)

    def loop():
        results = []
        with torch.no_grad(), denoising(model, 9):
            for step in range(9):
                for part in range(2):
                    x = kind.latents(part, 1, 2) * (1 - step / 9)
                    results.append(
                        model(hidden_states=x, timestep=kind.time(1 - step / 9)[None], **conditioning).sample
                    )
        return results

    bare = loop()
    accelerate_model(model, "interval", interval=3)
    outputs = loop()
    assert all(torch.equal(a, b) for a, b in zip(outputs[1::2], bare[1::2], strict=True))
    assert any("twice" in reason for reason in reasons(model))


def test_conditioning_that_changes_in_place_is_a_new_branch():
    kind = FAMILIES["wan"]
    model = kind.build(0)
    prompt = kind.conditioning(1, 1)["encoder_hidden_states"]
    bare = run_fixed(model, conditioning={"encoder_hidden_states": prompt * 1.0})
    accelerate_model(model, "interval", interval=6)

    def change(step):
        if step == 4:
            prompt.mul_(-1.0)

    outputs = run_fixed(model, conditioning={"encoder_hidden_states": prompt}, on_step=change)
    after = run_fixed(accelerate_model(model, "none"), conditioning={"encoder_hidden_states": prompt})
    assert torch.equal(outputs[4], after[4])
    assert not torch.equal(outputs[4], bare[4])


def test_a_prompt_changed_by_a_callback_is_computed_and_counted():
    pipe = wan_pipeline()
    accelerate_pipeline(pipe, "interval", interval=4)

    def change(pipe, step, t, kwargs):
        if step == 4:
            kwargs["prompt_embeds"] = kwargs["prompt_embeds"] * -1.0
        return kwargs

    run_wan(pipe, 12, callback_on_step_end=change, callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"])
    cond = pipe.diffcache.stats().segments[0]
    assert cond.decisions[4:6] == "cF"
    assert "conditioning" in cond.fallbacks[0].reason


# -- branches together -------------------------------------------------------------------------------------------------


def walk_two(model, steps, size_at=lambda step, branch: 2, called=lambda step, branch: True):
    """Two labelled branches; each may change its shape or stay away."""
    kind = FAMILIES["wan"]
    prompts = {"cond": kind.conditioning(1, 1), "uncond": kind.conditioning(7, 1)}
    with torch.no_grad(), denoising(model, steps):
        for step in range(steps):
            level = 1.0 - step / steps
            for label, prompt in prompts.items():
                if not called(step, label):
                    continue
                x = kind.latents(0, 1, size_at(step, label)) * level
                with model.cache_context(label):
                    model(hidden_states=x, timestep=kind.time(level)[None], **prompt)
    return {s.branch: s for s in model.diffcache.stats().segments}


def test_a_new_shape_of_the_first_branch_computes_the_others_too():
    model = accelerate_model(FAMILIES["wan"].build(0), "interval", interval=3)
    found = walk_two(model, 12, size_at=lambda step, branch: 3 if step >= 4 and branch == "cond" else 2)
    assert found["cond"].decisions[4] == found["uncond"].decisions[4] == "F"
    assert [f.step for f in found["cond"].fallbacks if "shape" in f.reason] == [4]
    assert found["cond"].decisions == found["uncond"].decisions
    assert "c" in found["uncond"].decisions[5:]


def test_too_little_history_of_the_first_branch_computes_the_others_too():
    model = accelerate_model(FAMILIES["wan"].build(0), "interval", interval=3, predictor="trend")
    found = walk_two(model, 12, called=lambda step, branch: branch == "uncond" or step >= 4)
    first, second = found["cond"].decisions, found["uncond"].decisions
    assert second[3] == "c"  # alone, it is predicted
    assert first[4:7] == second[4:7] == "FFF"  # three outputs are needed
    assert any("too few" in f.reason for f in found["cond"].fallbacks)
    assert first[4:] == second[4:]
    assert "c" in first


def test_a_nan_that_has_passed_leaves_the_variance_envelope():
    """Afterwards an honest prediction is made again, and a collapse is still an alarm."""
    curve = lambda t: (1.0 - 0.1 * (t - 8)).clamp(min=0.3, max=1.0)  # noqa: E731
    model = accelerate_model(
        Burst(lambda t: curve(t) + (math.nan if float(t) == 1 else 0.0)),
        "steps",
        steps=(0, 1, 2, 3, 4, 5, 8, 9, 10),
        predictor="linear",
        warmup=2,
    )
    outputs = run_curve(model, 24)
    (segment,) = model.diffcache.stats().segments
    assert "cc" in segment.decisions[:9]
    late = [f.reason for f in segment.fallbacks if f.step > 10]
    assert late, segment.decisions
    assert all("variance" in reason and "not finite" not in reason for reason in late)
    assert all(o.isfinite().all() for i, o in enumerate(outputs) if i != 1)
