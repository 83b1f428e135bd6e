"""FlashBlock on language models, its mask of heads, and the decoders that edit and that are guided."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from diffcache import ConfigError, ScheduleFileError, UnsupportedModelError
from diffcache.learn import calibrate, describe, write_calibration
from diffcache.llm import Edit, Guided, HeadMask, Threshold, calibrate_heads, declare, generate
from diffcache.llm.decoders import make_decoder
from diffcache.llm.decoders.base import Sight
from diffcache.llm.driver import language_config, prepare
from diffcache.llm.policies.flashblock import FlashBlock
from diffcache.llm.state import SequenceState

from .language import BLOCK_CAUSAL, CHUNKED, COMMON, FULL, MASK, MODELS, llada, prompt, question, sdar
from .reads import Reads, watched

SETTINGS = dict(gen_length=24, decoder="threshold", decoder_settings=dict(threshold=0.4))


@pytest.mark.parametrize("name", CHUNKED)
def test_reused_only_while_nothing_was_decoded_is_exact(name):
    """In a batch, a sequence whose block is full takes it from memory while another one decodes."""
    model = CHUNKED[name]()
    settings = dict(SETTINGS, decoder_settings=dict(threshold=0.2))
    for batch, dirty in ((1, 0), (1, 1), (3, 1)):
        ids = question(name, batch)
        run = generate(model, ids, f"flashblock:dirty={dirty}", **settings)
        assert torch.equal(run.sequences, generate(model, ids, "vanilla", **settings).sequences)
        if name in MODELS or batch == 1:  # what has learned the answers is done with a block everywhere at once
            assert (run.stats.external_saved > 0) == (batch > 1)


class Told(FlashBlock):
    """Notes which sequences are computed."""

    def plan(self, state):
        plan = super().plan(state)
        self.heard.append((state.block_step, plan.external.fresh))
        return plan


@pytest.mark.parametrize("name", BLOCK_CAUSAL)
def test_each_sequence_is_judged_by_its_own_tokens(name):
    """Which one is computed at which step is what its own count of decoded tokens says; None is all of them."""
    model, limit, changed = BLOCK_CAUSAL[name](), 3, []
    loop = begun(model, f"flashblock:dirty={limit}", on_step=lambda s: changed.append((s.decoded_at == s.step).sum(1)))
    loop.policy.__class__, loop.policy.heard = Told, []
    loop.run()
    assert any(0 < len(fresh) < 3 for _, fresh in loop.policy.heard if fresh is not None)
    count, begins = torch.full((3,), limit), 0
    for (step, fresh), decoded in zip(loop.policy.heard, changed, strict=True):
        count = torch.full_like(count, limit) if step == 0 else count
        begins += step == 0
        assert list(range(3) if fresh is None else fresh) == (count >= limit).nonzero()[:, 0].tolist()
        count = torch.where(count >= limit, 0, count) + decoded
    assert begins == len(loop.policy.blocks())


@pytest.mark.parametrize("decoder", ["threshold", "edit"])
def test_the_host_reads_once_a_step(decoder):
    loop, reads = begun(sdar(), "flashblock:dirty=3", decoder=make_decoder(decoder)), Reads()
    with watched(reads):
        stats = loop.run().stats
    assert stats.external_used > 0
    # of a block its last look, which finds it full, and whether all has ended; at the end, the numbers of the whole
    assert reads.count <= stats.steps + 2 * len(loop.policy.blocks()) + 2


def begun(model, method, decoder=None, on_step=None):
    decoder = decoder or make_decoder("threshold", threshold=0.2)
    asked = dict(gen_length=24, block_length=None, steps=None, mask_id=None, eos_id=None, attention_mask=None)
    return prepare(model, prompt(3), language_config(method), decoder, on_step=on_step, **asked)


@pytest.mark.parametrize("name", BLOCK_CAUSAL)
def test_a_larger_limit_reuses_more_and_bytes_do_not_grow_with_the_sequence(name):
    model = BLOCK_CAUSAL[name]()
    runs = [generate(model, prompt(2), f"flashblock:dirty={dirty}", **SETTINGS).stats for dirty in (1, 2, 4, 8)]
    assert [run.external_used for run in runs] == sorted(run.external_used for run in runs)
    assert runs[-1].external_used > runs[0].external_used
    assert 0.0 < runs[-1].external_share < 1.0
    config = model.config
    held = 4 * 3 * 2 * 8 * config.num_attention_heads * (config.head_dim + 1)
    longer = generate(model, prompt(2, 29), "flashblock", **SETTINGS).stats
    assert {run.residual_bytes for run in [*runs, longer]} == {held}


def test_the_one_step_that_reuses_merges_what_was_stored():
    """With every key outside frozen and the queries of a step earlier, the result is near, not equal."""
    model = sdar()
    exact = generate(model, prompt(), "freecache", gen_length=24).sequences
    run = generate(model, prompt(), "flashblock:dirty=8", gen_length=24)
    assert run.stats.external_used > 0
    assert run.sequences.shape == exact.shape
    assert MASK not in run.sequences


@pytest.mark.parametrize("over", ["dual", "prefix", "freecache"])
@pytest.mark.parametrize("name", FULL)
def test_it_composes_with_policies_of_spans(name, over):
    model = FULL[name]()
    below = {"freecache": "freecache"}.get(over, f"fast-dllm:{over}")
    sure = 0.4 if name in MODELS else 1.0  # what has learned decodes a block at once, if it may
    settings = dict(SETTINGS, block_length=8, decoder_settings=dict(threshold=sure))
    exact = generate(model, question(name), below, **settings)
    run = generate(model, question(name), f"flashblock:{over},dirty=1", **settings)
    assert torch.equal(run.sequences, exact.sequences)
    assert run.stats.rows == exact.stats.rows
    reused = generate(model, question(name), f"flashblock:{over},dirty=8", **settings)
    assert reused.stats.external_used > 0


def test_rows_of_another_regime_are_refused():
    with pytest.raises(UnsupportedModelError, match="approximate twice"):
        generate(llada(), prompt(), "flashblock")
    with pytest.raises(UnsupportedModelError, match="needs over=exact"):
        generate(sdar(), prompt(), "flashblock:dual")


# -- heads -------------------------------------------------------------------------------------------------------------


def test_heads_that_all_compute_are_exact_and_heads_that_none_do_are_the_plain_rule(tmp_path):
    model = sdar()
    shape = model.config.num_hidden_layers, 4, model.config.num_attention_heads
    for value in (True, False):
        HeadMask(torch.full(shape, value), type(model).__name__).save(tmp_path / f"{value}.safetensors")
    run = generate(model, prompt(2), "flashblock:dirty=8", heads=str(tmp_path / "True.safetensors"), **SETTINGS)
    assert run.stats.external_used > 0
    assert torch.equal(run.sequences, generate(model, prompt(2), "vanilla", **SETTINGS).sequences)
    run = generate(model, prompt(2), "flashblock:dirty=8", heads=str(tmp_path / "False.safetensors"), **SETTINGS)
    assert torch.equal(run.sequences, generate(model, prompt(2), "flashblock:dirty=8", **SETTINGS).sequences)


def test_a_calibration_is_a_schedule_file_like_any_other(tmp_path):
    """The calibrator measures what the function measures, and the policy reads what it wrote."""
    model, calls = sdar(), [{"input_ids": prompt(2)}, {"input_ids": prompt(1, 9)}]
    seen = []
    asked = dict(gen_length=16, steps=4, threshold=0.4, similarity=0.9, shift=0.5)
    found = calibrate(model, "flashblock", calls, progress=lambda *told: seen.append(told), **asked)
    assert (found.method, found.steps, found.runs) == ("flashblock", 4, 2)
    asked["decoder"] = Threshold(threshold=asked.pop("threshold"))
    mask = calibrate_heads(model, [call["input_ids"] for call in calls], **asked)
    assert torch.equal(mask.recompute, found.expert("model").numbers["recompute"].bool())
    assert 0.0 < mask.share < 1.0
    assert ("heads that compute", f"{mask.share:.1%} behind the first step") in describe(found)
    write_calibration(found, tmp_path / "heads.safetensors")
    run = generate(model, prompt(2), "flashblock", heads=tmp_path / "heads.safetensors", **SETTINGS)
    assert 0.0 < run.stats.external_saved < 1.0
    assert seen[0] == ("generation 1/2", 0, 16)
    assert seen[-1] == ("generation 2/2", 16, 16)
    with pytest.raises(ConfigError, match="calls: of a language model"):
        calibrate(model, "flashblock", [lambda pipe: None])


@pytest.mark.parametrize("name", MODELS)
def test_calibration_asks_for_more_where_limits_are_tighter(name):
    model = MODELS[name]()
    asked = dict(gen_length=16, steps=4, over="exact" if name in BLOCK_CAUSAL else "dual")
    asked |= {} if name in BLOCK_CAUSAL else dict(block_length=8)
    loose, tight = (
        calibrate_heads(model, [prompt(2), prompt(1, 9)], similarity=c, shift=d, **asked)
        for c, d in ((-1.0, 1e6), (1.0, 0.0))
    )
    assert loose.recompute.shape == (3, 4, 4)
    first = 1 if name in BLOCK_CAUSAL else 2  # over dual, the first step is a full pass, the second one is kept
    assert not loose.recompute[:, first:].any()
    assert tight.recompute.all()


def test_files_of_other_models_are_refused(tmp_path):
    model = sdar()
    save_file({"something": torch.zeros(1)}, str(tmp_path / "a.safetensors"))
    HeadMask(torch.zeros(2, 4, 4, dtype=torch.bool), "Qwen3ForCausalLM").save(tmp_path / "b.safetensors")
    facts = {"over": "dual", "block_length": 8}
    HeadMask(torch.zeros(3, 4, 4, dtype=torch.bool), "Qwen3ForCausalLM", facts=facts).save(tmp_path / "d.safetensors")
    said = {"a": "not a schedule", "b": "made for Qwen3ForCausalLM with layers=2, but here it is layers=3",
            "c": "no such file", "d": "over: made for dual, but here it is exact"}  # fmt: skip
    for name, text in said.items():
        with pytest.raises(ScheduleFileError, match=text):
            generate(model, prompt(), "flashblock", heads=str(tmp_path / f"{name}.safetensors"), gen_length=8)
    with pytest.raises(ConfigError, match="similarity: 2"):
        calibrate_heads(model, [prompt()], gen_length=8, similarity=2)


# -- decoders ----------------------------------------------------------------------------------------------------------


def test_an_edit_replaces_decoded_tokens_of_the_block_alone():
    state = SequenceState(prompt(1, 4), 10, MASK)
    state.block = (4, 8)
    state.write(torch.tensor([[4, 5]]), torch.tensor([[1, 2]]), torch.ones(1, 2, dtype=torch.bool))
    logits = torch.zeros(1, 5, 64)
    logits[0, :, 9] = 20.0
    logits[0, 1, 2] = 40.0  # agrees with what stands there
    positions = torch.tensor([[3, 4, 5, 6, 7]])
    open = state.open.gather(1, positions)
    choice = Edit().choose(Sight(logits[:, [0, 0, 1, 2, 3]], positions, open, torch.zeros(1, 1).long(), state))
    assert choice.edits[0].tolist() == [False, True, False, False, False]
    assert choice.transfer[0].tolist() == [False, True, False, True, True]


@pytest.mark.parametrize("method", ["vanilla", "flashblock"])
def test_editing_ends(method):
    model = sdar()
    run = generate(model, prompt(2), method, gen_length=16, decoder=Edit(threshold=0.4, edit=0.05, refine=3))
    assert MASK not in run.sequences
    assert run.stats.steps > generate(model, prompt(2), method, gen_length=16, decoder="edit").stats.forwards // 4
    assert generate(model, prompt(2), method, gen_length=16, decoder=Edit(edit=1.0)).stats.new_tokens == 32


def guide(**more):
    torch.manual_seed(7)
    return LlamaForCausalLM(LlamaConfig(**{**COMMON, **more})).eval()


@pytest.mark.parametrize("chunk", [3, 32])
def test_a_guide_that_always_agrees_takes_whole_blocks_and_one_that_never_does_single_tokens(chunk):
    model = llada()
    settings = dict(gen_length=16, block_length=8, guide=guide())
    rule = dict(rule="probability", chunk=chunk)
    run = generate(model, prompt(2), "freecache", decoder_settings=dict(least=0.0, **rule), **settings)
    assert run.stats.steps == 2
    assert run.stats.guide_forwards == 2 * 2 * -(-8 // chunk)
    run = generate(model, prompt(2), "freecache", decoder_settings=dict(least=1.0, **rule), **settings)
    assert run.stats.steps == 16
    assert run.stats.guide_rows >= run.stats.guide_forwards


@pytest.mark.parametrize("chunk", [1, 2, 32])
def test_the_guides_cache_does_not_change_what_it_says(chunk):
    """Each accepted run is the longest one that a guide without a cache agrees with."""
    model, judge, runs = llada(), guide(), []
    decoder = Guided(guide=judge, rule="topk", top=24, chunk=chunk)

    def see(state):
        runs.append(int((state.decoded_at[0] == state.step).sum()))

    ids = generate(model, prompt(), "vanilla", gen_length=24, block_length=8, decoder=decoder, on_step=see).sequences
    with torch.no_grad():
        agreed = decoder.agrees(judge(ids[:, :-1]).logits[0, 12:], ids[0, 13:]).tolist()
    start, ends = 0, set()
    for run in runs:
        assert all(agreed[start + 1 : start + run])
        ends.add(start := start + run)
    assert len(runs) < 24
    assert start == 24


def test_a_guide_must_be_an_autoregressive_model_of_the_same_vocabulary():
    with pytest.raises(ConfigError, match="guide: a vocabulary of 80 tokens, the diffusion model has 64"):
        generate(llada(), prompt(), gen_length=8, guide=guide(vocab_size=80))
    with pytest.raises(UnsupportedModelError, match="a diffusion language model itself"):
        generate(llada(), prompt(), gen_length=8, guide=declare(guide()))
    with pytest.raises(UnsupportedModelError, match="not a causal language model"):
        Guided(guide=torch.nn.Linear(2, 2))
