"""Language models and problems of the zoo."""

from __future__ import annotations

import dataclasses
import json
import re
import sys

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from diffcache.errors import ConfigError
from diffcache.zoo import (
    ModelNotAvailableError,
    ProblemsNotAvailableError,
    draw_problems,
    list_language_models,
    load_language_model,
    load_problems,
)
from diffcache.zoo.language_loading import load_checkpoint, native_config

from .language import llada2, prompt

EMBEDDED = [name for name, entry in list_language_models().items() if entry.embedded]


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_model_says_what_its_entry_says(name):
    model, tokenizer = load_language_model(name)
    entry = list_language_models()[name]
    assert type(model).__name__ == entry.model
    assert model.config.diffusion == entry.diffusion
    assert model.config.is_causal is False
    assert tokenizer.mask_token_id == entry.mask_id
    assert tokenizer.eos_token_id == entry.eos_id
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", EMBEDDED)
def test_text_of_every_problem_survives_the_tokenizer(name):
    _, tokenizer = load_language_model(name)
    for problem in load_problems():
        for text in (problem.question, problem.answer):
            ids = tokenizer(text).input_ids
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_model_sees_both_sides(name):
    """Changing the last token changes the logits of the first: attention without a mask is bidirectional."""
    model, tokenizer = load_language_model(name)
    ids = torch.tensor([tokenizer(load_problems()[0].question).input_ids])
    changed = ids.clone()
    changed[0, -1] = tokenizer.mask_token_id
    with torch.no_grad():
        assert (model(input_ids=ids).logits[0, 0] - model(input_ids=changed).logits[0, 0]).abs().max() > 1e-4


def test_checkpoint_under_llada_names_gives_the_logits_of_the_native_model(tmp_path):
    """A checkpoint as LLaDA's remote code writes it: own names of weights and of configuration fields."""
    entry = list_language_models()["llada-8b"]
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    config = LlamaConfig(vocab_size=90, num_key_value_heads=4, rms_norm_eps=1e-5, rope_parameters=rope, **shape)
    config.is_causal = False
    torch.manual_seed(0)
    native = LlamaForCausalLM(config).eval()
    save_file(_under_remote_names(native.state_dict()), tmp_path / "model.safetensors", metadata={"format": "pt"})
    fields = {"d_model": 32, "mlp_hidden_size": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "vocab_size": 90}
    fields |= {"embedding_size": 90, "rope_theta": 500000.0, "rms_norm_eps": 1e-5, "weight_tying": False}
    fields |= {"model_type": "llada", "architectures": ["LLaDAModelLM"], "max_sequence_length": 64}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    loaded = load_checkpoint(entry, tmp_path)
    ids = torch.randint(0, 90, (2, 12))
    with torch.no_grad():
        assert torch.equal(native(input_ids=ids).logits, loaded(input_ids=ids).logits)
    assert loaded.config.diffusion["mask_id"] == 126336


def test_checkpoint_with_fused_weights_gives_the_logits_of_the_native_model(tmp_path):
    """As LLaDA2's remote code writes it: queries, keys and values in one weight, experts one by one."""
    native, entry = llada2(), list_language_models()["llada2-mini"]
    with torch.no_grad():
        native.model.layers[1].mlp.gate.e_score_correction_bias.normal_()
    save_file(_fused(native), tmp_path / "model.safetensors", metadata={"format": "pt"})
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim",
            "num_key_value_heads", "moe_intermediate_size", "num_experts_per_tok", "n_group", "topk_group",
            "first_k_dense_replace", "rms_norm_eps", "routed_scaling_factor")  # fmt: skip
    fields = {name: getattr(native.config, name) for name in same} | {"num_experts": 4, "num_shared_experts": 1}
    fields |= {"rope_theta": native.config.rope_parameters["rope_theta"], "partial_rotary_factor": 0.5}
    fields |= {"model_type": "llada2_moe", "architectures": ["LLaDA2MoeModelLM"], "use_qkv_bias": False}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    loaded = load_checkpoint(entry, tmp_path)
    assert type(loaded) is type(native)
    ids = prompt(2)
    with torch.no_grad():
        want = native(input_ids=ids).logits
        native.config.is_causal = loaded.config.is_causal
        assert torch.equal(native(input_ids=ids).logits, loaded(input_ids=ids).logits)
        loaded.save_pretrained(tmp_path / "again")
        again = type(native).from_pretrained(tmp_path / "again")
        assert torch.equal(again(input_ids=ids).logits, loaded(input_ids=ids).logits)
    assert want.abs().max() > 0.1
    assert again.config.diffusion == entry.diffusion
    assert not any("query_key_value" in name for name in again.state_dict())


def _fused(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    names = {"model.embed_tokens.": "model.word_embeddings.", ".self_attn.q_norm.": ".attention.query_layernorm.",
             ".self_attn.k_norm.": ".attention.key_layernorm.", ".self_attn.o_proj.": ".attention.dense.",
             ".mlp.gate.e_score_correction_bias": ".mlp.gate.expert_bias"}  # fmt: skip
    state, out = model.state_dict(), {}
    for name, value in state.items():
        if name.endswith("self_attn.q_proj.weight"):
            parts = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            out[name.replace("self_attn.q_proj", "attention.query_key_value")] = torch.cat(parts)
        elif name.endswith("experts.gate_up_proj"):
            for number, both in enumerate(value):
                gate, up = both.chunk(2)
                stem = name.replace("gate_up_proj", str(number))
                out |= {f"{stem}.gate_proj.weight": gate.clone(), f"{stem}.up_proj.weight": up.clone()}
        elif name.endswith("experts.down_proj"):
            stem = name.replace("down_proj", "")
            out |= {f"{stem}{number}.down_proj.weight": one.clone() for number, one in enumerate(value)}
        elif "self_attn.k_proj" not in name and "self_attn.v_proj" not in name:
            for ours, theirs in names.items():
                name = name.replace(ours, theirs)
            out[name] = value.clone()
    return out


def _under_remote_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    blocks = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ff_norm", "self_attn.q_proj": "q_proj"}
    blocks |= {"self_attn.k_proj": "k_proj", "self_attn.v_proj": "v_proj", "self_attn.o_proj": "attn_out"}
    blocks |= {"mlp.gate_proj": "ff_proj", "mlp.up_proj": "up_proj", "mlp.down_proj": "ff_out"}
    top = {"model.embed_tokens": "wte", "model.norm": "ln_f", "lm_head": "ff_out"}
    renamed = {}
    for name, value in state.items():
        found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name)
        tail = f"blocks.{found[1]}.{blocks[found[2]]}" if found else top[name.removesuffix(".weight")]
        renamed[f"model.transformer.{tail}.weight"] = value.clone()
    return renamed


@pytest.mark.parametrize("name", [n for n, e in list_language_models().items() if not e.embedded])
def test_hub_entries_make_a_native_configuration(name):
    entry = list_language_models()[name]
    config = native_config(entry, {"hidden_size": 64, "rope_theta": 1e6})
    assert type(config).__name__ == entry.config
    assert config.is_causal is False
    assert config.diffusion == entry.diffusion
    assert config.rope_parameters["rope_theta"] == 1e6


def test_a_model_that_is_not_there_is_one_line():
    for name, hint in (("llada-8b", "not in the local cache"), ("tiny-lada", "did you mean 'tiny-llada'")):
        with pytest.raises(ModelNotAvailableError, match=hint) as error:
            load_language_model(name, download=False)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("field", "value"), [("regime", "causal"), ("block_length", 0), ("threshold", 1.5)])
def test_entries_are_checked(field, value):
    with pytest.raises(ConfigError, match=f"{field}: .*{value}"):
        dataclasses.replace(list_language_models()["tiny-llada"], **{field: value})


def test_frozen_problems_are_different_ones_and_only_their_answer_is_right():
    problems = load_problems()
    assert len({problem.question for problem in problems}) == len(problems) >= 300
    for problem in problems:
        assert problem.matches(problem.answer + "\n")
        assert not problem.matches(problem.answer[:-1])


def test_problems_of_one_family():
    family = load_problems()[0].family
    assert {problem.family for problem in load_problems(family, 5)} == {family}
    assert len(load_problems(family, 5)) == 5
    with pytest.raises(ValueError, match="unknown family 'chess'"):
        load_problems("chess")


def test_reasoning_gym_draws_the_frozen_problems_again_and_accepts_their_answers():
    pytest.importorskip("reasoning_gym")
    for problem in load_problems(count=5):
        assert problem.score(problem.answer) == 1
        assert problem.score("no answer") < 1
    other = dataclasses.replace(load_problems()[0], question="?")
    with pytest.raises(ProblemsNotAvailableError, match="draws another problem"):
        other.score("1")


def test_without_reasoning_gym_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ProblemsNotAvailableError, match=r"diffcache\[llm\]"):
        next(draw_problems("binary_matrix", 1))
