"""Time of partial blocks over dense ones, at widths of real models: ``python samples/measure_partial.py``.

Two blocks of each family with random weights (time does not depend on them), 1,024 tokens or more, and as much text for
them as the models have at 1024 x 1024 (Flux schnell, SD3) or 480p; of Flux also all 4,096 tokens of that. The time is
the process's own, from the first block's call to the last one's return: with ranking, without embeddings and head.
Dense and partial calls alternate, and each figure is the median of their ratios. Text rows of joint attention are
always computed. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    CogVideoXTransformer3DModel,
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    WanTransformer3DModel,
)
from rich.progress import Progress
from torch import nn

from diffcache import accelerate_model, denoising, restore
from diffcache.hooks.anatomy import find_block_lists

SHARES = (0.75, 0.5, 0.25, 0.1)
Arguments = Callable[[float], dict[str, Any]]


def _time(level: float) -> torch.Tensor:
    return torch.tensor([1000.0 * level])


def dit() -> tuple[nn.Module, Arguments]:
    """DiT-XL's block: 1,152 wide, 1,024 tokens."""
    model = DiTTransformer2DModel(num_attention_heads=16, attention_head_dim=72, num_layers=2, sample_size=64)
    x, label = torch.randn(1, 4, 64, 64), torch.tensor([3])
    return model, lambda level: {"hidden_states": x * level, "timestep": _time(level).long(), "class_labels": label}


def pixart() -> tuple[nn.Module, Arguments]:
    """PixArt's block: 1,152 wide, 1,024 tokens, 128 words."""
    model = PixArtTransformer2DModel(num_layers=2, sample_size=64, caption_channels=64, use_additional_conditions=False)
    x, text = torch.randn(1, 4, 64, 64), torch.randn(1, 128, 64)
    return model, lambda level: {
        "hidden_states": x * level,
        "encoder_hidden_states": text,
        "timestep": _time(level),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def flux(side: int = 32, words: int = 64) -> tuple[nn.Module, Arguments]:
    """One double and one single block 1,536 wide, 1,024 tokens, 64 words."""
    model = FluxTransformer2DModel(
        num_layers=1,
        num_single_layers=1,
        num_attention_heads=12,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        guidance_embeds=False,
    )
    tokens = side * side
    x, text, pooled = torch.randn(1, tokens, 64), torch.randn(1, words, 64), torch.randn(1, 64)
    ids = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).reshape(-1, 2)
    image = torch.cat([torch.zeros(tokens, 1), ids.float()], 1)
    return model, lambda level: {
        "hidden_states": x * level,
        "encoder_hidden_states": text,
        "pooled_projections": pooled,
        "timestep": torch.tensor([level]),
        "img_ids": image,
        "txt_ids": torch.zeros(words, 3),
    }


def flux_large() -> tuple[nn.Module, Arguments]:
    """The same blocks, 4,096 tokens, 256 words: schnell at 1024 x 1024."""
    return flux(64, 256)


def sd3() -> tuple[nn.Module, Arguments]:
    """SD3's block: 1,536 wide, 1,024 tokens, 64 words."""
    model = SD3Transformer2DModel(
        num_layers=2,
        num_attention_heads=24,
        joint_attention_dim=64,
        caption_projection_dim=1536,
        pooled_projection_dim=64,
        sample_size=64,
    )
    x, text, pooled = torch.randn(1, 16, 64, 64), torch.randn(1, 64, 64), torch.randn(1, 64)
    return model, lambda level: {
        "hidden_states": x * level,
        "encoder_hidden_states": text,
        "pooled_projections": pooled,
        "timestep": _time(level),
    }


def wan() -> tuple[nn.Module, Arguments]:
    """Wan-1.3B's block: 1,536 wide, 1,040 tokens, 128 words."""
    model = WanTransformer3DModel(num_attention_heads=12, num_layers=2, ffn_dim=8960, text_dim=64)
    x, text = torch.randn(1, 16, 5, 26, 32), torch.randn(1, 128, 64)
    return model, lambda level: {"hidden_states": x * level, "encoder_hidden_states": text, "timestep": _time(level)}


def cogvideox() -> tuple[nn.Module, Arguments]:
    """CogVideoX-2B's block: 1,920 wide, 1,280 tokens, 16 words."""
    model = CogVideoXTransformer3DModel(
        num_attention_heads=30,
        num_layers=2,
        text_embed_dim=64,
        max_text_seq_length=16,
        sample_width=32,
        sample_height=32,
        sample_frames=17,
    )
    x, text = torch.randn(1, 5, 16, 32, 32), torch.randn(1, 16, 64)
    return model, lambda level: {"hidden_states": x * level, "encoder_hidden_states": text, "timestep": _time(level)}


FAMILIES = {
    "DiT": dit,
    "PixArt": pixart,
    "Flux": flux,
    "Flux-1024": flux_large,
    "SD3": sd3,
    "Wan": wan,
    "CogVideoX": cogvideox,
}


class BlockTime:
    """CPU seconds between the first block's call and the last one's return, of the last call of a model."""

    def __init__(self, model: nn.Module) -> None:
        blocks = [block for blocks in find_block_lists(model).values() for block in blocks]
        blocks[0].register_forward_pre_hook(self._begin)
        blocks[-1].register_forward_hook(self._end)
        self.seconds = self._began = 0.0

    def _begin(self, *call: Any) -> None:
        self._began = time.process_time()

    def _end(self, *call: Any) -> None:
        self.seconds = time.process_time() - self._began


def ratios(
    build: Callable[[], tuple[nn.Module, Arguments]], rounds: int, tick: Callable[[], None]
) -> dict[float, float]:
    """Share -> time of partial blocks over that of dense ones."""
    model, arguments = build()
    dense = copy.deepcopy(model.eval())
    times = BlockTime(dense), BlockTime(model)
    found: dict[float, list[float]] = {share: [] for share in SHARES}
    with torch.no_grad():
        for share in SHARES:
            accelerate_model(model, "toca", keep=share, interval=64, warmup=1, cooldown=0, **_EVERYWHERE)
            with denoising(model, rounds + 2):
                for step in range(rounds + 2):
                    given = arguments(1.0 - step / (2 * rounds + 4))
                    dense(**given)
                    model(**given)
                    if step > 1:  # the first is full, the second begins
                        found[share].append(times[1].seconds / times[0].seconds)
                        tick()
            restore(model)
    return {share: statistics.median(of) for share, of in found.items()}


#: all modules compute the same share
_EVERYWHERE = dict(attention=1.0, cross=1.0, feedforward=1.0, depth=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--out", type=Path, help="write the table there as well")
    options = parser.parse_args()
    torch.set_num_threads(1)  # process time of several threads counts their waiting
    lines = ["| family | " + " | ".join(f"{share:g}" for share in SHARES) + " |"]
    lines.append("|---" * (len(SHARES) + 1) + "|")
    with Progress() as progress:
        bar = progress.add_task("partial steps", total=len(options.families) * options.rounds * len(SHARES))
        for name in options.families:
            found = ratios(FAMILIES[name], options.rounds, lambda: progress.advance(bar))
            what = FAMILIES[name].__doc__.rstrip(".")
            lines.append(f"| {name}: {what} | " + " | ".join(f"{found[share]:.3f}" for share in SHARES) + " |")
    table = "\n".join(lines)
    print(table)
    if options.out is not None:
        options.out.write_text(table + "\n")


if __name__ == "__main__":
    main()
