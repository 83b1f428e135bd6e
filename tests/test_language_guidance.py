"""Classifier-free guidance of language models: LLaDA's formula under every policy, each branch with its own keys."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from diffcache import ConfigError, accelerate_model, list_methods
from diffcache.llm import TopK, generate, read_facts

from .language import BIDIRECTIONAL, BLOCK, BLOCK_CAUSAL, MASK, MODELS, llada, native_logits, prompt

SETTINGS = dict(gen_length=16, decoder="threshold", decoder_settings=dict(threshold=0.4), cfg_scale=1.5)


def settings(name, **more):
    return {**SETTINGS, **({} if name in BLOCK_CAUSAL else {"block_length": 8}), **more}


@dataclass(frozen=True, kw_only=True)
class Seen(TopK):
    """Notes what it is shown."""

    shown: list

    def choose(self, sight):
        self.shown.append((sight.state.ids.clone(), sight.positions.clone(), sight.logits.clone()))
        return super().choose(sight)


@pytest.mark.parametrize("name", MODELS)
def test_a_decoder_sees_the_formula_of_two_whole_forwards(name):
    model, shown = MODELS[name](), []
    facts = read_facts(model)
    more = settings(name, decoder=Seen(shown=shown), decoder_settings=None)
    generate(model, prompt(2), **{**more, "gen_length": 8})
    for ids, positions, logits in shown[::3]:
        stop = int(positions.max()) + 1
        without = torch.where(torch.arange(ids.shape[1]) < 13, MASK, ids)
        end = stop if facts.causal else ids.shape[1]
        both = [native_logits(model, t[:, :end], BLOCK if facts.causal else None) for t in (ids, without)]
        want = (both[1] + 2.5 * (both[0] - both[1]))[:, positions[0] - facts.shift]
        torch.testing.assert_close(logits, want, rtol=0.0, atol=1e-4)


EXACT = {
    "dllm-cache:prompt_interval=1,response_interval=1": BIDIRECTIONAL,
    "dkv:refresh=1": BIDIRECTIONAL,
    "window:active=16,refresh=1,window=64": BIDIRECTIONAL,
    "freecache": BLOCK_CAUSAL,
    "fast-dllm": BLOCK_CAUSAL,
    "flashblock:dirty=1": BLOCK_CAUSAL,
}


@pytest.mark.parametrize(("method", "name"), [(method, name) for method, models in EXACT.items() for name in models])
def test_what_is_exact_stays_so_under_guidance(method, name):
    model, more = MODELS[name](), settings(name)
    if method.startswith("window"):
        more["block_length"] = 16
    want = generate(model, prompt(2), "vanilla", **more)
    got = generate(model, prompt(2), method, **more)
    assert torch.equal(got.sequences, want.sequences)
    assert not torch.equal(
        want.sequences, generate(model, prompt(2), "vanilla", **{**more, "cfg_scale": 0.0}).sequences
    )


@pytest.mark.parametrize("method", list_methods("language"))
def test_every_policy_runs_guided_and_branches_have_keys_of_their_own(method):
    # without a prompt all masks are alike at first, and rounding picks among the rows of a nucleus
    model, chosen = llada(), {"flashblock": "flashblock:dual", "d2cache": "d2cache:nucleus=0"}.get(method, method)
    run = generate(model, prompt(2), chosen, **settings("llada"))
    plain = generate(model, prompt(2), chosen, **settings("llada", cfg_scale=0.0))
    assert MASK not in run.sequences[:, 13:]
    assert run.stats.kv_bytes == 2 * plain.stats.kv_bytes
    assert run.stats.notes == ("guided: every row was computed with the prompt and without",)
    assert plain.stats.notes == ()
    if method != "elastic":  # it refreshes for all where one drifts
        # of one batch size, for the same reason
        other = torch.cat([prompt(2)[:1], prompt(1, seed=8)])
        assert torch.equal(run.sequences[:1], generate(model, other, chosen, **settings("llada")).sequences[:1])


def test_ways_to_call_and_what_is_refused():
    model, more = llada(), settings("llada")
    want = generate(model, prompt(), "freecache", **more).sequences
    more.pop("gen_length")
    accelerate_model(model, "freecache")
    custom = model.diffcache.custom_generate
    assert torch.equal(model.generate(prompt(), custom_generate=custom, max_new_tokens=16, **more), want)
    for wrong in (-1.0, float("nan"), "much"):
        with pytest.raises(ConfigError, match="cfg_scale: "):
            generate(model, prompt(), cfg_scale=wrong)


def test_padding_counts_in_neither_branch():
    model, alone = llada(), prompt(1, 9)
    both = torch.cat([torch.cat([torch.zeros(1, 4, dtype=torch.long), alone], 1), prompt(1, 13)])
    mask = torch.ones_like(both)
    mask[0, :4] = 0
    got = generate(model, both, "freecache", attention_mask=mask, **settings("llada")).sequences
    assert torch.equal(got[0, 13:], generate(model, alone, "freecache", **settings("llada")).sequences[0, 9:])
