"""What a user asked for, checked before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import ConfigError
from ..methods.checks import check_number
from ..methods.language import LanguageConfig
from .families import Facts

LARGE = 1_000_000


@dataclass(frozen=True, eq=False)
class Request:
    """One generation.

    Attributes:
        prompt: ids ``[B, P]``.
        padding: bool ``[B, P]``, True at real tokens, or None where all are.
        gen_length: new tokens.
        length: positions in all; a block-causal model's last block may reach beyond prompt and new tokens.
        block_length: of a block.
        steps: denoising steps in all, or None where the decoder alone decides.
        mask_id, eos_id: token ids.
        cfg_scale: of classifier-free guidance; 0 for none.
    """

    prompt: Tensor
    padding: Tensor | None
    gen_length: int
    length: int
    block_length: int
    steps: int | None
    mask_id: int
    eos_id: int | None
    cfg_scale: float = 0.0


def make_request(
    model: nn.Module,
    facts: Facts,
    config: LanguageConfig,
    input_ids: Any,
    *,
    gen_length: int,
    block_length: int | None,
    steps: int | None,
    mask_id: int | None,
    eos_id: int | None,
    attention_mask: Tensor | None,
    cfg_scale: float = 0.0,
) -> Request:
    """The request, checked.

    Raises:
        ConfigError: a value that is not valid; the message names the field.
    """
    vocabulary = model.get_output_embeddings().weight.shape[0]
    prompt = _check_prompt(input_ids, vocabulary).to(model.device)
    check_number("gen_length", gen_length, 1, LARGE, whole=True)
    block_length, length = _check_blocks(facts, prompt.shape[1], gen_length, block_length)
    if steps is not None:
        check_number("steps", steps, 1, LARGE, whole=True)
    mask_id = facts.mask_id if mask_id is None else mask_id
    if mask_id is None:
        raise ConfigError(
            "mask_id: missing; the model's configuration does not name its mask token, so it must be given"
        )
    eos_id = facts.eos_id if eos_id is None else eos_id
    for name, token in (("mask_id", mask_id), ("eos_id", eos_id)):
        if token is not None:
            check_number(name, token, 0, vocabulary - 1, whole=True)
    if mask_id == eos_id:
        raise ConfigError(f"eos_id: {eos_id} is the mask token, must be another one")
    if facts.shift and prompt.shape[1] == 0:
        raise ConfigError("input_ids: empty; this model predicts a position from the row before it")
    check_number("cfg_scale", cfg_scale, 0.0, 1e4, whole=False)
    padding = _check_padding(attention_mask, prompt, config, facts)
    return Request(prompt, padding, gen_length, length, block_length, steps, mask_id, eos_id, cfg_scale)


def _check_prompt(input_ids: Any, vocabulary: int) -> Tensor:
    if not isinstance(input_ids, Tensor):
        rows = input_ids if isinstance(input_ids, (list, tuple)) else ()
        lengths = {len(row) for row in rows if isinstance(row, (list, tuple, Tensor))}
        if len(lengths) > 1:
            raise ConfigError(
                f"input_ids: rows of different length ({min(lengths)} to {max(lengths)} tokens); pad them on the left "
                "and give attention_mask"
            )
        raise ConfigError(f"input_ids: {type(input_ids).__name__} is not a tensor of token ids [batch, length]")
    if input_ids.dim() != 2 or input_ids.is_floating_point():
        raise ConfigError(f"input_ids: shape {list(input_ids.shape)}, {input_ids.dtype} is not [batch, length] of ids")
    if input_ids.numel():
        low, high = (int(bound) for bound in input_ids.aminmax())
        if low < 0 or high >= vocabulary:
            wrong = low if low < 0 else high
            raise ConfigError(f"input_ids: {wrong} is out of range, token ids go from 0 to {vocabulary - 1}")
    return input_ids


def _check_blocks(facts: Facts, prompt: int, gen_length: int, block_length: int | None) -> tuple[int, int]:
    """Length of a block and of the sequence."""
    own = facts.block_length
    if own is not None:
        if block_length not in (None, own):
            raise ConfigError(f"block_length: {block_length} is out of range, the model was trained with {own}")
        return own, -(-(prompt + gen_length) // own) * own
    block_length = min(32, gen_length) if block_length is None else block_length
    check_number("block_length", block_length, 1, LARGE, whole=True)
    if gen_length % block_length:
        raise ConfigError(f"block_length: {block_length} does not divide gen_length {gen_length}")
    return block_length, prompt + gen_length


def _check_padding(
    attention_mask: Tensor | None, prompt: Tensor, config: LanguageConfig, facts: Facts
) -> Tensor | None:
    if attention_mask is None:
        return None
    if attention_mask.shape != prompt.shape:
        raise ConfigError(
            f"attention_mask: shape {list(attention_mask.shape)} does not belong to input_ids {list(prompt.shape)}"
        )
    padding = attention_mask.to(prompt.device).bool()
    if padding.all():
        return None
    if (padding.int().diff(dim=1) < 0).any() or not padding[:, -1].all():
        raise ConfigError("attention_mask: padding inside or right of a prompt; pad on the left")
    if not config.pads:
        raise ConfigError(
            f"attention_mask: {config.method} cannot honour padding; give prompts of one length, one by one"
        )
    if facts.block_length is not None and ((~padding).sum(1) % facts.block_length).any():
        raise ConfigError(
            f"attention_mask: a prompt is padded by a length that {facts.block_length}, the model's block, does not "
            "divide; its blocks would begin elsewhere than they do alone"
        )
    return padding
