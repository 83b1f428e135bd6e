"""Memory as a setting: how values rest, the limit, and the estimate before the run."""

from __future__ import annotations

import warnings

import pytest
import torch

from diffcache import (
    ConfigError,
    NothingSkippedWarning,
    UnsupportedModelError,
    accelerate_model,
    accelerate_pipeline,
    estimate_memory,
    list_methods,
    restore,
    supports,
)
from diffcache.hooks.outputs import flatten
from diffcache.methods import load_config, make_config
from diffcache.predictors import History, Rest
from diffcache.predictors.resting import DTYPES
from diffcache.sizes import read_size, size_text
from diffcache.zoo import load_pipeline

from .cases import SKIPPING, Case
from .denoisers import DENOISERS
from .denoisers.running import METHODS, letters, method_on, model_of, run, run_constant
from .models import FAMILIES, PIPELINES, sample, walk_steps
from .reads import Reads, ignore_inside, watched

CASES: dict[str, Case] = {
    **SKIPPING,
    "easycache": ("easycache", dict(threshold=1e9, max_skip=2, warmup=2)),
    "worldcache-token": ("worldcache", dict(share=1.0, threshold=1.0)),
}
#: method -> a case of every site and signal
SITES = {
    "output": CASES["worldcache"],
    "body": CASES["powerlaw-body"],
    "block": CASES["interval-block"],
    "module": CASES["taylorseer"],
    "first": CASES["fbcache-body"],
    "modulated": CASES["teacache-body"],
    "rate": CASES["easycache"],
}
CLASSES = ("DiTTransformer2DModel", "PixArtTransformer2DModel", "FluxTransformer2DModel", "CogVideoXTransformer3DModel")


def held(model):
    return sum(segment.cached_bytes for segment in model.diffcache.stats().segments)


# -- the fields --------------------------------------------------------------------------------------------------------


#: partial steps write into what they cache
AS_IT_IS = ("toca", "duca", "worldcache-partial", "diffsparse")
BY_TOKEN = [way for way, how in METHODS.items() if how.method in AS_IT_IS]


@pytest.mark.parametrize("name", AS_IT_IS)
def test_what_is_renewed_token_by_token_rests_as_it_is(name):
    assert make_config(name, memory="1.5GiB").memory == "1.5GiB"
    with pytest.raises(ConfigError, match="cache_dtype: 'float16' is out of range, must be unset"):
        make_config(name, cache_dtype="float16")
    with pytest.raises(ConfigError, match="offload: True is out of range, must be unset"):
        make_config(name, offload=True)


@pytest.mark.parametrize("name", [name for name in list_methods("denoiser") if name not in AS_IT_IS])
def test_every_method_has_the_fields_and_files_keep_them(name, tmp_path):
    config = make_config(name, memory="1.5GiB", cache_dtype="bfloat16", offload=True)
    for suffix in ("yaml", "json"):
        config.save(tmp_path / f"a.{suffix}")
        assert load_config(tmp_path / f"a.{suffix}") == config
    plain = make_config(name)
    assert (plain.memory, plain.cache_dtype, plain.offload) == (None, None, False)
    assert make_config(name, cache_dtype=torch.float16).cache_dtype == "float16"


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("memory", "much", "memory: 'much' is not a size, must be a number of bytes or like '200MB'"),
        ("memory", "12 apples", "memory: '12 apples' is not a size"),
        ("memory", 0, "memory: 0 is not a size"),
        ("memory", -5, "memory: -5 is not a size"),
        ("memory", True, "memory: True is not a size"),
        ("cache_dtype", "float8_e4m3fn", "cache_dtype: unknown value 'float8_e4m3fn'"),
        ("cache_dtype", torch.int8, "cache_dtype: unknown value 'int8'"),
        ("offload", "cpu", "offload: 'cpu' is out of range, must be True or False"),
    ],
)
def test_wrong_values_are_refused_in_one_line(field, value, expected):
    with pytest.raises(ConfigError) as refused:
        make_config("worldcache", **{field: value})
    assert str(refused.value).startswith(expected)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("count", [1, 999, 1000, 184_321, 31_000_001, 2**31, 10**13 + 1])
def test_a_size_that_was_told_is_enough_when_asked_for(count):
    assert count <= read_size(size_text(count)) <= 1.06 * count + 1


# -- how values rest ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", DTYPES)
def test_memory_shrinks_with_the_dtype_and_results_keep_theirs(case, name):
    method, settings = CASES[case]
    model = FAMILIES["wan"].build(0)
    accelerate_model(model, method, **settings)
    plain, full = sample("wan", model, batch=2), held(model)
    accelerate_model(model, method, **settings, cache_dtype=name, offload=True)
    other, narrow = sample("wan", model, batch=2), held(model)
    assert all(a.dtype == b.dtype for a, b in zip(plain.outputs, other.outputs, strict=True))
    if name == "float32":  # as wide as what it holds
        assert other.equals(plain)
        assert narrow == full
        return
    assert 0.5 * full <= narrow < 0.6 * full  # a fit's scalars stay as they are
    distance = max(float((a - b).norm() / a.norm()) for a, b in zip(plain.outputs, other.outputs, strict=True))
    assert 0 < distance < 0.1


def test_a_value_is_never_widened():
    model = FAMILIES["wan"].build(0).to(torch.bfloat16)
    accelerate_model(model, "interval")
    plain, full = sample("wan", model, dtype=torch.bfloat16), held(model)
    for name in DTYPES:
        accelerate_model(model, "interval", cache_dtype=name)
        assert sample("wan", model, dtype=torch.bfloat16).equals(plain)
        assert held(model) == full


@pytest.mark.parametrize("way", [way for way in METHODS if way not in BY_TOKEN])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", CLASSES)
def test_constant_input_gives_the_dense_output_up_to_the_dtype(name, dtype, way):
    still, rounding = METHODS[way].still, torch.finfo(DTYPES[dtype]).eps
    with method_on(name, way, cache_dtype=dtype, offload=True) as model:
        outputs = run_constant(name, still)[still:]
        assert "c" in letters(model)
    for output in outputs:
        for part, truth in zip(output, outputs[0], strict=True):
            # the residual or result of each part is rounded, and they add up
            assert float((part - truth).norm() / truth.norm()) < 4 * rounding


@pytest.mark.parametrize("case", SITES)
def test_never_skipping_is_bit_exact_whatever_the_rest(case):
    method, settings = SITES[case]
    never = dict(max_skip=0, memory=1, exact=False)
    model = FAMILIES["wan"].build(0)
    bare = sample("wan", model)
    accelerate_model(model, method, **{**settings, **never}, cache_dtype="bfloat16", offload=True)
    assert sample("wan", model).equals(bare)


@pytest.mark.parametrize("site", ["block", "module"])
def test_units_keep_the_modules_own_tensors(site):
    """With nothing set no value is copied."""
    model = accelerate_model(FAMILIES["wan"].build(0), "interval", site=site, offload=True)
    ((_, hook),) = model.diffcache.hooks.values()
    made = set()
    for module in (unit.module for unit in hook.site.units):
        module.register_forward_hook(lambda m, a, result: made.update(t.data_ptr() for t in flatten(result)[0]))
    for step in walk_steps("wan", model, 6):
        if step == 1:
            kept = [t.data_ptr() for b in hook.segment.branches.values() for t in b.cache.held()]
            assert kept
            assert site == "block" or set(kept) <= made  # of a block the difference is kept, which is new
            break


def test_what_does_not_fit_a_narrower_dtype_is_computed():
    """A value beyond float16's range: every prediction from it is refused, and counted."""
    for method, settings in (SITES["output"], SITES["module"]):
        model = FAMILIES["wan"].build(0)
        bare = sample("wan", model, cfg="none")
        with torch.no_grad():
            model.proj_out.weight *= 1e7
            model.blocks[0].ffn.net[2].weight *= 1e7
        huge = sample("wan", model, cfg="none")
        assert not huge.equals(bare)
        accelerate_model(model, method, **settings, cache_dtype="float16")
        run_ = sample("wan", model, cfg="none")
        assert all(output.isfinite().all() for output in run_.outputs)
        assert model.diffcache.stats().segments[0].fallbacks
        assert run_.equals(huge)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="values of a CPU model rest there already")
def test_offloaded_values_lie_in_pinned_memory():
    history = History(2, Rest(torch.float16, offload=True))
    value = torch.randn(4, 8, device="cuda")
    history.push(value, 0.0)
    (rested,) = history.values
    assert rested.is_pinned()
    assert rested.dtype == torch.float16
    (awake,) = history.newest()
    assert torch.equal(awake, value.half())


# -- the limit ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SITES)
def test_less_than_is_needed_is_refused_with_the_number(case):
    method, settings = SITES[case]
    settings = {**settings, "exact": False}
    model = accelerate_model(FAMILIES["wan"].build(0), method, **settings)
    sample("wan", model)
    need = held(model)
    restore(model)
    bare = sample("wan", model)
    accelerate_model(model, method, **settings, memory=need - 1)
    ((_, hook),) = model.diffcache.hooks.values()
    calls = []
    with pytest.raises(ConfigError) as refused:
        sample("wan", model, before=calls.append)
    told = str(refused.value)
    assert told.startswith(f"memory: {need - 1} is less than {method} needs here, {size_text(need)} for 2 branches")
    assert "cache_dtype=float16" in told
    assert "\n" not in told
    assert calls in ([0], [0, 1])  # as early as the second branch was seen
    assert hook.segment is None  # nothing is held
    accelerate_model(model, method, **settings, memory=size_text(need))
    sample("wan", model)
    assert held(model) == need
    narrow = accelerate_model(model, method, **settings, memory=need - 1, cache_dtype="float16")
    sample("wan", narrow)
    assert held(narrow) < need
    restore(model)
    assert sample("wan", model).equals(bare)


def test_one_branch_that_is_too_much_is_refused_at_once():
    model = accelerate_model(FAMILIES["wan"].build(0), "interval", memory="100 B", exact=False)
    outputs = []
    model.register_forward_hook(lambda *_: outputs.append(1))
    with pytest.raises(ConfigError, match="for 1 branch: ask for that much, or cache_dtype=float16"):
        sample("wan", model)
    assert not outputs
    assert str(model.diffcache.stats()) == "interval: no trajectory yet"


def test_exact_savings_count_as_well():
    model = accelerate_model(FAMILIES["wan"].build(0), "exact")
    sample("wan", model)
    saved = sum(segment.exact_bytes for segment in model.diffcache.stats().segments)
    assert saved > 0
    accelerate_model(model, "exact", memory=saved)
    sample("wan", model)
    accelerate_model(model, "exact", memory=saved - 1)
    with pytest.raises(ConfigError, match=r"less than exact needs here, .* of it exact savings: ask for that much$"):
        sample("wan", model)


@pytest.mark.parametrize("dtype", [None, "float16"])
@pytest.mark.parametrize("case", SITES)
def test_inference_mode_changes_nothing(case, dtype):
    method, settings = SITES[case]
    model = accelerate_model(FAMILIES["wan"].build(0), method, **settings, cache_dtype=dtype)
    plain = sample("wan", model)
    with torch.inference_mode():
        assert sample("wan", model).equals(plain)


# -- the estimate ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [way for way in METHODS if way not in BY_TOKEN])
@pytest.mark.parametrize("name", [*CLASSES, "WanTransformer3DModel"])
def test_a_bare_denoiser_holds_what_was_estimated(name, way):
    settings = {**METHODS[way].settings, "cache_dtype": "float16"}
    call = DENOISERS[name].trajectory(0, 1)(1.0)
    model = model_of(name)
    attributes = set(model.__dict__)
    estimate = estimate_memory(model, make_config(METHODS[way].method, **settings), **call)
    assert set(model.__dict__) == attributes
    with method_on(name, way, cache_dtype="float16") as model:
        run(name)
        assert "c" in letters(model)
        assert estimate.cached_bytes == held(model) > 0
    assert estimate.denoiser_bytes == sum(p.numel() * p.element_size() for p in model.parameters())


def test_inputs_without_memory_will_do():
    call = DENOISERS["WanTransformer3DModel"].trajectory(0, 1)(1.0)
    empty = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in call.items()}
    model = model_of("WanTransformer3DModel")
    estimate = estimate_memory(model, "fora", **empty)
    assert estimate == estimate_memory(model, "fora", **call)
    held, weights = size_text(estimate.cached_bytes), size_text(estimate.denoiser_bytes)
    assert (
        str(estimate) == f"fora: {held} cached in 1 branch, {held} of it on the denoiser's device (weights: {weights})"
    )


METHODS_OF_PIPELINES = {
    "worldcache": dict(threshold=1.0),
    "taylorseer": dict(),
    "powerlaw": dict(site="body"),
    "fbcache": dict(threshold=10.0),
    "easycache": dict(threshold=1e9, max_skip=2),
    "toca": dict(),
}


CALLS = {
    "tiny-dit": dict(class_labels=[3]),
    "tiny-wan": dict(prompt="turns left", height=48, width=64, num_frames=9, max_sequence_length=16),
}
#: one method a site is enough on a film, whose calls are long
ON_FILMS = ("worldcache", "fbcache", "toca")


@pytest.mark.parametrize(
    ("name", "call", "method"),
    [
        pytest.param(
            name, call, method, marks=pytest.mark.slow if name == "tiny-wan" and method not in ON_FILMS else ()
        )
        for name, call in CALLS.items()
        for method in METHODS_OF_PIPELINES
    ],
)
def test_a_pipeline_holds_what_was_estimated(name, call, method):
    config = make_config(method, **METHODS_OF_PIPELINES[method])
    pipe = load_pipeline(name)
    pipe.set_progress_bar_config(disable=True)
    generator, states = torch.Generator().manual_seed(4), []
    call = {**call, "num_inference_steps": 12, "generator": generator}
    states = [torch.get_rng_state(), generator.get_state()]
    estimate = estimate_memory(pipe, config, **call)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert torch.equal(generator.get_state(), states[1])
    assert "forward" not in pipe.transformer.__dict__
    accelerate_pipeline(pipe, config)
    pipe(**call)
    segments = pipe.diffcache.stats().segments
    assert [b.cached_bytes for b in estimate.branches] == [s.cached_bytes for s in segments]
    assert estimate.cached_bytes == sum(s.cached_bytes for s in segments) > 0
    assert estimate_memory(pipe, config, **call) == estimate  # of an accelerated one, too
    pipe(**call)
    assert [s.cached_bytes for s in pipe.diffcache.stats().segments] == [s.cached_bytes for s in segments]


class Overheard:
    """A pipeline, and the arguments of its last call."""

    def __init__(self, pipe):
        self.pipe = pipe

    def __getattr__(self, name):
        return getattr(self.pipe, name)

    def __call__(self, **call):
        self.called_with = call
        return self.pipe(**call)


@pytest.mark.parametrize("method", ["worldcache", "fora"])
@pytest.mark.parametrize("kind", PIPELINES)
def test_pipelines_of_all_kinds_hold_what_was_estimated(kind, method):
    """Separate and batched guidance, two experts; of these the larger one counts."""
    build, run_pipe = PIPELINES[kind]
    pipe = Overheard(accelerate_pipeline(build(), method))
    run_pipe(pipe, 16)
    segments = pipe.diffcache.stats().segments
    estimate = estimate_memory(build(), pipe.diffcache.config, **pipe.called_with)
    assert [(b.expert, b.cached_bytes) for b in estimate.branches] == [(s.expert, s.cached_bytes) for s in segments]
    experts = {s.expert for s in segments}
    assert estimate.cached_bytes == max(sum(s.cached_bytes for s in segments if s.expert == e) for e in experts)


#: settings that compute every step, whatever the model does
NEVER = (
    "taylorseer:max_skip=0",
    "taylorseer:interval=1",
    "interval:interval=1",
    "pab:spatial=1,temporal=1,cross=1,low=0,high=1001",
    "teacache:threshold=0,polynomial=[1.0,0.0]",
    "easycache:threshold=0",
    "worldcache:threshold=0",
    "worldcache:faithful=true,threshold=0",
)


def test_what_never_skips_needs_nothing():
    pipe = load_pipeline("tiny-dit")
    for method in ("none", "exact", *NEVER):
        assert estimate_memory(pipe, method, class_labels=[1]).cached_bytes == 0


@pytest.mark.parametrize("method", NEVER)
def test_what_never_skips_stores_nothing_and_hears_nothing(method):
    reads = Reads()
    model = accelerate_model(ignore_inside(FAMILIES["wan"].build(0), reads), method)
    with warnings.catch_warnings(), watched(reads):
        warnings.simplefilter("ignore", NothingSkippedWarning)  # said where it was not asked for
        sample("wan", model)
    assert reads.names in ([], ["equal"])  # that of two conditionings which are told apart
    for segment in model.diffcache.stats().segments:
        assert set(segment.decisions) == {"F"}
        assert segment.cached_bytes == 0


def test_no_estimate_is_one_line():
    pipe = load_pipeline("tiny-dit")
    with pytest.raises(ConfigError, match="unknown method"):
        estimate_memory(pipe, "wordcache")
    with pytest.raises(UnsupportedModelError):
        estimate_memory(torch.nn.Linear(2, 2), "worldcache")


# -- what supports answers ---------------------------------------------------------------------------------------------


def test_a_preset_that_needs_more_blocks_is_refused_not_raised():
    answer = supports(FAMILIES["dit"].build(0), "fbcache:dbcache")
    assert answer.status == "refused"
    assert "must be < 2, the number of blocks" in answer.reason
    with pytest.raises(ConfigError):
        supports(FAMILIES["dit"].build(0), "fbcache:first=0")
