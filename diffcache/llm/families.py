"""What a policy must know of a diffusion language model; read from its configuration, never from its code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import ConfigError, UnsupportedModelError

BIDIRECTIONAL, BLOCK_CAUSAL = "bidirectional", "block-causal"

FAMILIES: dict[str, str] = {
    "llama": "LLaDA",
    "qwen2": "Dream, Fast-dLLM v2",
    "qwen3": "SDAR, TraDo",
    "glm4_moe": "LLaDA2.x",
}
"""transformers' model types whose layers run here, and the diffusion language models of that layout."""

SHIFTED = ("qwen2",)
"""Model types whose row ``i`` predicts position ``i + 1``."""

FIELD = "diffusion"
"""Of the configuration: a dictionary with what :func:`declare` was told."""


@dataclass(frozen=True)
class Facts:
    """Of one model.

    Attributes:
        family: transformers' model type.
        regime: ``bidirectional``, or ``block-causal`` (a query sees its own block and those before it).
        block_length: of a block-causal model; it is a property of its weights. None otherwise.
        shift: 1 where row ``i`` predicts position ``i + 1``, else 0.
        mask_id: the mask token, or None if the configuration does not say it.
        eos_id: the end token, or None.
        layers: number of layers.
    """

    family: str
    regime: str
    block_length: int | None
    shift: int
    mask_id: int | None
    eos_id: int | None
    layers: int

    @property
    def causal(self) -> bool:
        """Whether keys of finished blocks are exact and never change."""
        return self.regime == BLOCK_CAUSAL


def declare(
    model: nn.Module,
    *,
    regime: str = BIDIRECTIONAL,
    block_length: int | None = None,
    mask_id: int | None = None,
    eos_id: int | None = None,
    shift: int | None = None,
) -> nn.Module:
    """Say in a model's configuration that it is a diffusion language model; ``save_pretrained`` keeps it.

    Args:
        model: of a class in :data:`FAMILIES`.
        regime: ``bidirectional`` or ``block-causal``.
        block_length: of a block-causal model.
        mask_id, eos_id: token ids.
        shift: 1 where row ``i`` predicts position ``i + 1``; by default what its family does.

    Raises:
        UnsupportedModelError: not a class whose layers run here.
        ConfigError: a field that is not valid.
    """
    family = family_of(model)
    if regime not in (BIDIRECTIONAL, BLOCK_CAUSAL):
        raise ConfigError(f"regime: {regime!r} is not known, must be '{BIDIRECTIONAL}' or '{BLOCK_CAUSAL}'")
    if (regime == BLOCK_CAUSAL) != (block_length is not None):
        raise ConfigError(f"block_length: {block_length!r} is out of range, must be given for block-causal models only")
    shift = int(family in SHIFTED) if shift is None else shift
    if shift not in (0, 1):
        raise ConfigError(f"shift: {shift!r} is out of range, must be 0 or 1")
    said = {"regime": regime, "block_length": block_length, "shift": shift, "mask_id": mask_id, "eos_id": eos_id}
    model.config.is_causal = False
    setattr(model.config, FIELD, said)
    return model


def family_of(model: Any) -> str:
    """transformers' model type; raises UnsupportedModelError if its layers do not run here."""
    config = getattr(model, "config", None)
    family = getattr(config, "model_type", None)
    if not isinstance(model, nn.Module) or family is None or not hasattr(model, "get_output_embeddings"):
        raise UnsupportedModelError(f"{type(model).__name__} is not a language model of transformers")
    if family not in FAMILIES or model.get_output_embeddings() is None:
        known = ", ".join(f"{name} ({models})" for name, models in FAMILIES.items())
        raise UnsupportedModelError(f"{type(model).__name__}: model type '{family}' does not run here, known: {known}")
    return family


def read_facts(model: Any) -> Facts:
    """What a policy must know of a model.

    Raises:
        UnsupportedModelError: not a diffusion language model, or not one that runs here.
    """
    family = family_of(model)
    config = model.config
    said = getattr(config, FIELD, None)
    if said is None and getattr(config, "is_causal", True):
        raise UnsupportedModelError(
            f"{type(model).__name__}: its configuration says that it is causal (autoregressive), not a diffusion "
            "language model; if it is one, say so: diffcache.llm.declare(model, regime=..., mask_id=...)"
        )
    said = said or {}
    if getattr(config, "use_sliding_window", False):
        raise UnsupportedModelError(f"{type(model).__name__}: sliding-window layers do not run here")
    eos = said.get("eos_id", config.eos_token_id)
    return Facts(
        family=family,
        regime=said.get("regime", BIDIRECTIONAL),
        block_length=said.get("block_length"),
        shift=said.get("shift", int(family in SHIFTED)),
        mask_id=said.get("mask_id", getattr(config, "mask_token_id", None)),
        eos_id=eos[0] if isinstance(eos, (list, tuple)) else eos,
        layers=config.num_hidden_layers,
    )
