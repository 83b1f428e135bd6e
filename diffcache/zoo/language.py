"""Diffusion language models by name: where they are, which native class of transformers runs them, how they decode."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .registry import EMBEDDED

REGIMES = ("bidirectional", "block-causal")


@dataclass(frozen=True)
class LanguageEntry:
    """One diffusion language model.

    Attributes:
        name: of the zoo.
        source: ``"embedded"`` or a hub id.
        model: the class of transformers that runs the weights, and ``config`` its configuration class.
        description: one line.
        regime: ``bidirectional`` or ``block-causal`` (a query sees its own block and those before it).
        mask_id, eos_id: token ids.
        gen_length: new tokens by default.
        block_length: tokens of a decoding block; of a block-causal model, what it was trained with.
        threshold: confidence over which a token is kept, the decoder's default.
        shift: 1 where row ``i`` predicts position ``i + 1``.
        key_mapping: regular expressions of the checkpoint's names, and what they become in ``model``.
        fused: weights (under their new names) that the checkpoint keeps in one, and what they are in ``model``: in that
            order along the first axis, each of the size that it has there.
        renamed: fields of the checkpoint's configuration whose native name differs.
        settings: fields that the checkpoint's configuration lacks.
        tested: whether these very weights have been run; of others only the layout is known.

    Raises:
        ConfigError: an unknown regime, a length below 1, or a threshold outside 0 to 1.
    """

    name: str
    source: str
    model: str
    config: str
    description: str
    regime: str
    mask_id: int
    eos_id: int
    gen_length: int = 256
    block_length: int = 32
    threshold: float = 0.9
    shift: int = 0
    key_mapping: Mapping[str, str] = field(default_factory=dict)
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    tested: bool = False

    def __post_init__(self) -> None:
        if self.regime not in REGIMES:
            raise ConfigError(f"regime: {self.regime!r} is not known, must be one of {', '.join(REGIMES)}")
        for name in ("gen_length", "block_length"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is out of range, must be at least 1")
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"threshold: {self.threshold} is out of range, must be over 0 and at most 1")

    @property
    def embedded(self) -> bool:
        """Whether the weights ship inside the package."""
        return self.source == EMBEDDED

    @property
    def task(self) -> str:
        """``language``, beside the tasks of :class:`diffcache.zoo.ZooEntry`."""
        return "language"

    @property
    def diffusion(self) -> dict[str, Any]:
        """What the native configuration's field ``diffusion`` says of the model; policies and decoders read it."""
        block = self.block_length if self.regime == "block-causal" else None
        facts = {"regime": self.regime, "block_length": block, "shift": self.shift}
        return facts | {"mask_id": self.mask_id, "eos_id": self.eos_id}


# LLaDA's remote code names its parts after OLMo; the arithmetic is Llama's.
_LLADA_KEYS = {
    r"^model\.transformer\.wte\.": "model.embed_tokens.",
    r"^model\.transformer\.ln_f\.": "model.norm.",
    r"^model\.transformer\.ff_out\.": "lm_head.",
    r"^model\.transformer\.blocks\.(\d+)\.attn_norm\.": r"model.layers.\1.input_layernorm.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_norm\.": r"model.layers.\1.post_attention_layernorm.",
    r"^model\.transformer\.blocks\.(\d+)\.q_proj\.": r"model.layers.\1.self_attn.q_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.k_proj\.": r"model.layers.\1.self_attn.k_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.v_proj\.": r"model.layers.\1.self_attn.v_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.attn_out\.": r"model.layers.\1.self_attn.o_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_proj\.": r"model.layers.\1.mlp.gate_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.up_proj\.": r"model.layers.\1.mlp.up_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_out\.": r"model.layers.\1.mlp.down_proj.",
}
_LLADA_FIELDS = {
    "d_model": "hidden_size",
    "mlp_hidden_size": "intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "embedding_size": "vocab_size",
    "max_sequence_length": "max_position_embeddings",
    "weight_tying": "tie_word_embeddings",
}


def _llada(name: str, source: str, description: str) -> LanguageEntry:
    return LanguageEntry(
        name,
        source,
        "LlamaForCausalLM",
        "LlamaConfig",
        description,
        "bidirectional",
        126336,
        126081,
        key_mapping=_LLADA_KEYS,
        renamed=_LLADA_FIELDS,
    )


def _sdar(name: str, source: str, description: str, block_length: int = 4) -> LanguageEntry:
    return LanguageEntry(
        name,
        source,
        "Qwen3ForCausalLM",
        "Qwen3Config",
        description,
        "block-causal",
        151669,
        151643,
        block_length=block_length,
    )


# LLaDA2's remote code names its parts after Bailing's mixture of experts; the arithmetic is GLM-4.5's.
_LLADA2_KEYS = {
    r"^model\.word_embeddings\.": "model.embed_tokens.",
    r"\.attention\.query_layernorm\.": ".self_attn.q_norm.",
    r"\.attention\.key_layernorm\.": ".self_attn.k_norm.",
    r"\.attention\.dense\.": ".self_attn.o_proj.",
    r"\.attention\.query_key_value\.": ".self_attn.query_key_value.",
    r"\.mlp\.gate\.expert_bias": ".mlp.gate.e_score_correction_bias",
}
_LLADA2_FUSED = {
    f"self_attn.query_key_value.{kind}": tuple(f"self_attn.{part}_proj.{kind}" for part in "qkv")
    for kind in ("weight", "bias")
}
_LLADA2_FIELDS = {
    "num_experts": "n_routed_experts",
    "num_shared_experts": "n_shared_experts",
    "use_qkv_bias": "attention_bias",
}


def _llada2(name: str, source: str, description: str) -> LanguageEntry:
    return LanguageEntry(
        name,
        source,
        "Glm4MoeForCausalLM",
        "Glm4MoeConfig",
        description,
        "block-causal",
        156895,
        156892,
        threshold=0.7,
        key_mapping=_LLADA2_KEYS,
        fused=_LLADA2_FUSED,
        renamed=_LLADA2_FIELDS,
        settings={"use_qk_norm": True, "norm_topk_prob": True, "num_mtp_layers": 0},
    )


_ENTRIES = (
    LanguageEntry(
        "tiny-llada",
        EMBEDDED,
        "LlamaForCausalLM",
        "LlamaConfig",
        "distances in grids of digits, as text (LLaDA's layout, fully bidirectional)",
        "bidirectional",
        0,
        1,
        tested=True,
    ),
    LanguageEntry(
        "tiny-sdar",
        EMBEDDED,
        "Qwen3ForCausalLM",
        "Qwen3Config",
        "distances in grids of digits, as text (SDAR's layout, block-causal)",
        "block-causal",
        0,
        1,
        block_length=8,
        tested=True,
    ),
    _llada("llada-8b", "GSAI-ML/LLaDA-8B-Instruct", "LLaDA, 8 B parameters, fully bidirectional"),
    _llada("llada-1.5", "GSAI-ML/LLaDA-1.5", "LLaDA 1.5, 8 B parameters, tuned by preferences"),
    LanguageEntry(
        "dream-7b",
        "Dream-org/Dream-v0-Instruct-7B",
        "Qwen2ForCausalLM",
        "Qwen2Config",
        "Dream, 7 B parameters, from Qwen2.5; a row predicts the position behind it",
        "bidirectional",
        151666,
        151643,
        shift=1,
    ),
    _sdar("sdar-1.7b", "JetLM/SDAR-1.7B-Chat", "SDAR, 1.7 B parameters, block-causal"),
    _sdar("sdar-4b", "JetLM/SDAR-4B-Chat", "SDAR, 4 B parameters, block-causal"),
    _sdar("sdar-8b", "JetLM/SDAR-8B-Chat", "SDAR, 8 B parameters, block-causal"),
    _sdar("trado-8b", "Gen-Verse/TraDo-8B-Instruct", "TraDo, 8 B parameters, SDAR's layout"),
    _llada2("llada2-mini", "inclusionAI/LLaDA2.0-mini", "LLaDA 2.0, 16 B parameters in experts, block-causal"),
    _llada2("llada2.1-mini", "inclusionAI/LLaDA2.1-mini", "LLaDA 2.1, 16 B parameters in experts, edits its tokens"),
)


def list_language_models() -> dict[str, LanguageEntry]:
    """Every known diffusion language model by name, the embedded ones first."""
    return {entry.name: entry for entry in _ENTRIES}


def find_language_model(name: str) -> LanguageEntry | None:
    """The entry of a name, or of a hub id that an entry has."""
    known = list_language_models()
    return known.get(name) or next((e for e in known.values() if e.source == name and not e.embedded), None)


def is_language_model(name: str) -> bool:
    """Whether a name, a hub id or a folder is that of a language model; looks at a folder's configuration alone."""
    if find_language_model(name) is not None:
        return True
    path = Path(name) / "config.json"
    if not path.is_file() or (Path(name) / "model_index.json").is_file():
        return False
    try:
        classes = json.loads(path.read_text(encoding="utf-8")).get("architectures") or []
    except (ValueError, AttributeError):  # whoever loads it will say what is wrong
        return False
    return any(str(cls).endswith("ForCausalLM") for cls in classes)
