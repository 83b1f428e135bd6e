"""Train tiny-wan: a Wan text-to-video transformer and its UMT5 text encoder, jointly, on clips of one held motion.

    python samples/train_tiny_wan.py --data data/vizdoom-motions --out runs/tiny-wan --minutes 41 --compile

Stopped and started again, it resumes from ``resume.pt``. The learning rate follows the minutes used.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from motions import STRIDES, find_clips
from torch import nn
from training import Trainer, encode_pairs, fit_autoencoder, following, make_optimizers, noised
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from diffcache.zoo.autoencoder import AutoencoderBlockPCA
from diffcache.zoo.wan import MAX_SEQUENCE_LENGTH, MOTIONS, make_tokenizer

FRAMES, Z_DIM, HEADS, HEAD_DIM, LAYERS, TEXT_DIM = 5, 48, 4, 48, 6, 64


class TextToVideo(nn.Module):
    """The two trained parts of the pipeline."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.text_encoder = UMT5EncoderModel(
            UMT5Config(
                vocab_size=vocabulary,
                d_model=TEXT_DIM,
                d_kv=16,
                d_ff=128,
                num_layers=2,
                num_heads=4,
                dropout_rate=0.0,
                pad_token_id=0,
                eos_token_id=1,
            )
        )
        self.transformer = WanTransformer3DModel(
            patch_size=(1, 1, 1),
            num_attention_heads=HEADS,
            attention_head_dim=HEAD_DIM,
            in_channels=Z_DIM,
            out_channels=Z_DIM,
            text_dim=TEXT_DIM,
            freq_dim=HEADS * HEAD_DIM,
            ffn_dim=4 * HEADS * HEAD_DIM,
            num_layers=LAYERS,
            rope_max_seq_len=32,
        )
        self._start_as_plain_blocks()

    def _start_as_plain_blocks(self) -> None:
        nn.init.zeros_(self.transformer.condition_embedder.time_proj.weight)
        nn.init.zeros_(self.transformer.condition_embedder.time_proj.bias)
        nn.init.zeros_(self.transformer.proj_out.weight)
        nn.init.zeros_(self.transformer.scale_shift_table)
        for block in self.transformer.blocks:
            nn.init.zeros_(block.scale_shift_table)
            nn.init.ones_(block.scale_shift_table[:, 2::3])

    def embed(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Prompt embeddings, zero behind the prompt, as WanPipeline builds them."""
        return self.text_encoder(ids, mask).last_hidden_state * mask[..., None]


class Clips:
    """Random clips as normalised latents, with tokenised prompts; every motion is drawn equally often."""

    def __init__(self, folder: Path, vae, tokenizer):
        rgb = np.load(folder / "rgb.npy", mmap_mode="r")
        starts, motion = find_clips(folder)
        self.first = encode_pairs(vae, rgb[starts], rgb[starts])
        self.pairs = {stride: encode_pairs(vae, rgb, following(rgb, stride)) for stride in set(STRIDES)}
        self.starts = torch.from_numpy(starts)
        self.members = [torch.from_numpy(np.flatnonzero(motion == k)) for k in range(len(MOTIONS))]
        prompts = [prompt for variants in MOTIONS.values() for prompt in variants] + [""]
        tokens = tokenizer(prompts, padding="max_length", max_length=MAX_SEQUENCE_LENGTH, return_tensors="pt")
        self.ids, self.mask = tokens.input_ids, tokens.attention_mask
        self.variants = len(next(iter(MOTIONS.values())))
        print("clips per motion:", [len(m) for m in self.members], flush=True)

    def _rest(self, stride: int, clip: torch.Tensor) -> torch.Tensor:
        """Latent frames 1 to FRAMES - 1 of a causal clip: the second one holds clip frames 1 and 2, and so on."""
        return self.pairs[stride][self.starts[clip] + stride * (1 + 2 * torch.arange(FRAMES - 1))]

    def batch(self, size: int, dropout: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents (size, Z_DIM, FRAMES, H, W), token ids and mask; a share of ``dropout`` has the empty prompt."""
        motion = torch.randint(len(MOTIONS), (size,))
        chosen = torch.stack([self.members[k][torch.randint(len(self.members[k]), ())] for k in motion.tolist()])
        rest = torch.stack([self._rest(STRIDES[k], n) for k, n in zip(motion.tolist(), chosen, strict=True)])
        latents = torch.cat([self.first[chosen][:, None], rest], 1).float().transpose(1, 2).contiguous()
        prompt = motion * self.variants + torch.randint(self.variants, (size,))
        prompt[torch.rand(size) < dropout] = len(self.ids) - 1
        return latents, self.ids[prompt], self.mask[prompt]


def start_from(run: Path, model: TextToVideo, tokenizer) -> None:
    """Take over the weights of another run, and its word embeddings for the words that both runs know."""
    model.transformer.load_state_dict(WanTransformer3DModel.from_pretrained(run / "transformer").state_dict())
    old = UMT5EncoderModel.from_pretrained(run / "text_encoder").state_dict()
    known = PreTrainedTokenizerFast.from_pretrained(run / "tokenizer").get_vocab()
    shared = [(index, known[word]) for word, index in tokenizer.get_vocab().items() if word in known]
    new = model.text_encoder.state_dict()
    for name, value in old.items():
        if value.shape == new[name].shape:
            new[name] = value
        else:
            rows, from_rows = (list(part) for part in zip(*shared, strict=True))
            new[name][rows] = value[from_rows]
    model.text_encoder.load_state_dict(new)


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer()
    if args.init is not None:
        vae = AutoencoderBlockPCA.from_pretrained(args.init / "vae")
    else:
        vae = fit_autoencoder(np.load(args.data / "train" / "rgb.npy", mmap_mode="r"), Z_DIM, causal=True)
    vae.save_pretrained(args.out / "vae")
    tokenizer.save_pretrained(args.out / "tokenizer")
    clips, model = Clips(args.data / "train", vae, tokenizer), TextToVideo(len(tokenizer))
    if args.init is not None:
        start_from(args.init, model, tokenizer)
    optimizers = make_optimizers(model, lambda n: "transformer.blocks" in n, args.lr)
    trainer = Trainer(model, optimizers, args.out, args.minutes)
    forward = torch.compile(model.transformer) if args.compile else model.transformer

    def loss_fn() -> torch.Tensor:
        latents, ids, mask = clips.batch(args.batch, dropout=0.1)
        noisy, velocity, timestep = noised(latents, mean=args.mean)
        output = forward(noisy, timestep, model.embed(ids, mask), return_dict=False)[0]
        return (output - velocity).square().mean()

    trainer.run(loss_fn)
    trainer.average.transformer.save_pretrained(args.out / "transformer")
    trainer.average.text_encoder.save_pretrained(args.out / "text_encoder")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/vizdoom-motions"))
    parser.add_argument("--out", type=Path, default=Path("runs/tiny-wan"))
    parser.add_argument("--minutes", type=float, default=41)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--mean", type=float, default=0.3, help="mean of the logit-normal times")
    parser.add_argument("--init", type=Path, help="folder of another run whose weights to start from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="torch.compile the denoiser")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
