"""Train tiny-llada: a fully bidirectional masked diffusion language model, on problems of reasoning-gym.

    python samples/train_tiny_llada.py --out runs/tiny-llada --minutes 45 --compile

Stopped and started again, it resumes from ``resume.pt``.
"""

from __future__ import annotations

import torch
from language_training import arguments, sizes, start_from, train
from reasoning import make_tokenizer, mask_canvas, masked_loss
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from diffcache.llm import declare


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(**sizes(len(tokenizer), tokenizer.eos_token_id))
    model = declare(LlamaForCausalLM(config), mask_id=tokenizer.mask_token_id, eos_id=tokenizer.eos_token_id)
    _begin_alike(model, tokenizer)
    return model


@torch.no_grad()
def _begin_alike(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """A digit that begins a row starts as the vector of the digit with a space before it, plus one shared offset.

    Otherwise the few tokens at row starts learn to be read long after all others.
    """
    table, vocabulary = model.get_input_embeddings().weight, tokenizer.get_vocab()
    offset = table[vocabulary["1"]] - table[vocabulary[" 1"]]
    for digit in range(10):
        table[vocabulary[str(digit)]] = table[vocabulary[f" {digit}"]] + offset


def loss_of(model: PreTrainedModel, decoder: torch.nn.Module, ids: torch.Tensor, prompt: int) -> torch.Tensor:
    """Only the canvas is masked and only its tokens count; the prompt is always there, as in LLaDA's fine-tuning."""
    said = model.config.diffusion
    canvas = ids[:, prompt:]
    noised, masked = mask_canvas(canvas, said["mask_id"])
    hidden = decoder(input_ids=torch.cat([ids[:, :prompt], noised], 1)).last_hidden_state[:, prompt:]
    return masked_loss(model.lm_head(hidden), canvas, masked, said["eos_id"])


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], minutes=45)
    parser.add_argument("--init", help="a run's folder or a name of the zoo to go on from; default: random weights")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    if args.init:
        start_from(args.init, model)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens", flush=True)
    train(args, model, tokenizer, loss_of)


if __name__ == "__main__":
    main()
