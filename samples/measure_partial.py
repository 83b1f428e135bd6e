"""Time of a partial step against a full one, at widths of real models: ``python samples/measure_partial.py``.

Blocks of each family with random weights (time does not depend on them), one call of all of them, 1,024 tokens or more.
Full and partial calls alternate; each figure is the ratio of medians over the rounds. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
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
from diffcache.hooks.outputs import tensors_in_order

SHARES = (0.75, 0.5, 0.25, 0.1, 0.0)
TEXT = 128
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
    x, text = torch.randn(1, 4, 64, 64), torch.randn(1, TEXT, 64)
    return model, lambda level: {
        "hidden_states": x * level,
        "encoder_hidden_states": text,
        "timestep": _time(level),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def flux() -> tuple[nn.Module, Arguments]:
    """One double and one single block 1,536 wide, 1,024 tokens, 128 words."""
    model = FluxTransformer2DModel(
        num_layers=1,
        num_single_layers=1,
        num_attention_heads=12,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        guidance_embeds=False,
    )
    x, text, pooled = torch.randn(1, 1024, 64), torch.randn(1, TEXT, 64), torch.randn(1, 64)
    ids = torch.stack(torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij"), -1).reshape(-1, 2)
    image = torch.cat([torch.zeros(1024, 1), ids.float()], 1)
    return model, lambda level: {
        "hidden_states": x * level,
        "encoder_hidden_states": text,
        "pooled_projections": pooled,
        "timestep": torch.tensor([level]),
        "img_ids": image,
        "txt_ids": torch.zeros(TEXT, 3),
    }


def sd3() -> tuple[nn.Module, Arguments]:
    """SD3's block: 1,536 wide, 1,024 tokens, 128 words."""
    model = SD3Transformer2DModel(
        num_layers=2,
        num_attention_heads=24,
        joint_attention_dim=64,
        caption_projection_dim=1536,
        pooled_projection_dim=64,
        sample_size=64,
    )
    x, text, pooled = torch.randn(1, 16, 64, 64), torch.randn(1, TEXT, 64), torch.randn(1, 64)
    return model, lambda level: {
        "hidden_states": x * level,
        "encoder_hidden_states": text,
        "pooled_projections": pooled,
        "timestep": _time(level),
    }


def wan() -> tuple[nn.Module, Arguments]:
    """Wan-1.3B's block: 1,536 wide, 1,040 tokens, 128 words."""
    model = WanTransformer3DModel(num_attention_heads=12, num_layers=2, ffn_dim=8960, text_dim=64)
    x, text = torch.randn(1, 16, 5, 26, 32), torch.randn(1, TEXT, 64)
    return model, lambda level: {"hidden_states": x * level, "encoder_hidden_states": text, "timestep": _time(level)}


def cogvideox() -> tuple[nn.Module, Arguments]:
    """CogVideoX-2B's block: 1,920 wide, 1,280 tokens, 128 words."""
    model = CogVideoXTransformer3DModel(
        num_attention_heads=30,
        num_layers=2,
        text_embed_dim=64,
        max_text_seq_length=TEXT,
        sample_width=32,
        sample_height=32,
        sample_frames=17,
    )
    x, text = torch.randn(1, 5, 16, 32, 32), torch.randn(1, TEXT, 64)
    return model, lambda level: {"hidden_states": x * level, "encoder_hidden_states": text, "timestep": _time(level)}


FAMILIES = {"DiT": dit, "PixArt": pixart, "Flux": flux, "SD3": sd3, "Wan": wan, "CogVideoX": cogvideox}


def ratios(
    build: Callable[[], tuple[nn.Module, Arguments]], rounds: int, tick: Callable[[], None]
) -> dict[float, float]:
    """Share -> time of a partial call over that of a full one."""
    model, arguments = build()
    model.eval()
    seconds: dict[float, list[float]] = {share: [] for share in (1.0, *SHARES)}
    with torch.no_grad():
        for _ in range(rounds):
            for share in SHARES:
                accelerate_model(model, "toca", keep=share, interval=64, warmup=1, cooldown=0, **_EVERYWHERE)
                with denoising(model, 4):
                    timed = [_call(model, arguments(1.0 - step / 8)) for step in range(4)]
                restore(model)
                seconds[share] += timed[2:]
                seconds[1.0].append(_call(model, arguments(0.5)))
                tick()
    full = statistics.median(seconds[1.0])
    return {share: statistics.median(seconds[share]) / full for share in SHARES}


_EVERYWHERE = dict(attention=1.0, cross=1.0, feedforward=1.0, depth=0.0)


def _call(model: nn.Module, arguments: dict[str, Any]) -> float:
    begin = time.process_time()
    tensors_in_order(model(**arguments))
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--out", type=Path, help="write the table there as well")
    options = parser.parse_args()
    lines = ["| family | " + " | ".join(f"{share:g}" for share in SHARES) + " |"]
    lines.append("|---" * (len(SHARES) + 1) + "|")
    with Progress() as progress:
        bar = progress.add_task("partial steps", total=len(options.families) * options.rounds * len(SHARES))
        for name in options.families:
            found = ratios(FAMILIES[name], options.rounds, lambda: progress.advance(bar))
            what = FAMILIES[name].__doc__.rstrip(".")
            lines.append(f"| {name}: {what} | " + " | ".join(f"{found[share]:.2f}" for share in SHARES) + " |")
    table = "\n".join(lines)
    print(table)
    if options.out is not None:
        options.out.write_text(table + "\n")


if __name__ == "__main__":
    main()
