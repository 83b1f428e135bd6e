"""Train tiny-llada: a fully bidirectional masked diffusion language model, on problems of reasoning-gym.

    python samples/train_tiny_llada.py --out runs/tiny-llada --minutes 45 --compile

Stopped and started again, it resumes from ``resume.pt``.
"""

from __future__ import annotations

import torch
from language_training import arguments, facts, sizes, train
from reasoning import make_tokenizer, mask_canvas, masked_loss
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(**sizes(len(tokenizer), tokenizer.eos_token_id), diffusion=facts(tokenizer))
    config.is_causal = False
    return LlamaForCausalLM(config)


def loss_of(model: PreTrainedModel, decoder: torch.nn.Module, ids: torch.Tensor, prompt: int) -> torch.Tensor:
    """Only the canvas is masked and only its tokens count; the prompt is always there, as in LLaDA's fine-tuning."""
    said = model.config.diffusion
    canvas = ids[:, prompt:]
    noised, masked = mask_canvas(canvas, said["mask_id"])
    hidden = decoder(input_ids=torch.cat([ids[:, :prompt], noised], 1)).last_hidden_state[:, prompt:]
    return masked_loss(model.lm_head(hidden), canvas, masked, said["eos_id"])


def main() -> None:
    args = arguments(__doc__.splitlines()[0], minutes=45).parse_args()
    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens", flush=True)
    train(args, model, tokenizer, loss_of)


if __name__ == "__main__":
    main()
