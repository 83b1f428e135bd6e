"""Train tiny-sdar: a block-causal masked diffusion language model, from tiny-llada's weights.

    python samples/train_tiny_sdar.py --init runs/tiny-llada --out runs/tiny-sdar --minutes 20 --compile

Stopped and started again, it resumes from ``resume.pt``. Qwen3 adds a norm to queries and keys; it starts at one.
"""

from __future__ import annotations

from functools import cache

import torch
from language_training import arguments, sizes, start_from, train
from reasoning import make_tokenizer, mask_blocks, masked_loss
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from diffcache.llm import declare

BLOCK = 8


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    fields = sizes(len(tokenizer), tokenizer.eos_token_id)
    head = fields["hidden_size"] // fields["num_attention_heads"]
    ids = {"mask_id": tokenizer.mask_token_id, "eos_id": tokenizer.eos_token_id}
    model = Qwen3ForCausalLM(Qwen3Config(**fields, head_dim=head))
    return declare(model, regime="block-causal", block_length=BLOCK, **ids)


@cache
def two_stream_mask(length: int, start: int, block: int = BLOCK) -> torch.Tensor:
    """Bool (1, 1, N, N), N = 2 length - start, for [clean sequence | noised one from ``start``], BD3LM's training mask
    (arXiv:2503.09573, section 3.2).

    A clean row sees clean tokens up to its block. A noised row sees the clean tokens of earlier blocks and the noised
    ones of its own.
    """
    place = torch.cat([torch.arange(length), torch.arange(start, length)]) // block
    noised = torch.arange(len(place)) >= length
    own, other = place[:, None], place[None]
    clean = ~noised & torch.where(noised[:, None], other < own, other <= own)
    return (clean | noised & noised[:, None] & (other == own))[None, None]


def loss_of(model: PreTrainedModel, decoder: torch.nn.Module, ids: torch.Tensor, prompt: int) -> torch.Tensor:
    """All blocks in one pass: each is noised on its own, behind clean earlier ones.

    The noised stream begins at a block's first token, so the prompt's end may be part of it, as it is in decoding.
    """
    said = model.config.diffusion
    canvas, length, start = ids[:, prompt:], ids.shape[1], prompt // said["block_length"] * said["block_length"]
    noised, masked = mask_blocks(canvas, said["mask_id"], prompt, said["block_length"])
    positions = torch.cat([torch.arange(length), torch.arange(start, length)])[None]
    both = torch.cat([ids, ids[:, start:prompt], noised], 1)
    hidden = decoder(input_ids=both, attention_mask=two_stream_mask(length, start), position_ids=positions)
    logits = model.lm_head(hidden.last_hidden_state[:, -canvas.shape[1] :])
    return masked_loss(logits, canvas, masked, said["eos_id"])


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], minutes=20)
    parser.add_argument("--init", default="tiny-llada", help="a run's folder or a name of the zoo")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    start_from(args.init, model)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens", flush=True)
    train(args, model, tokenizer, loss_of)


if __name__ == "__main__":
    main()
