"""What both recipes share: clips from the recording, optimisers, EMA, and a training loop that stops on time."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from diffcache.zoo.autoencoder import AutoencoderBlockPCA


def to_pixels(frames: np.ndarray) -> torch.Tensor:
    """uint8 (N, T, H, W[, C]) to float (N, C, T, H, W) in [-1, 1]."""
    x = torch.from_numpy(np.ascontiguousarray(frames)).float() / 127.5 - 1
    return x[:, None] if x.ndim == 4 else x.permute(0, 4, 1, 2, 3)


def fit_autoencoder(frames: np.ndarray, z_dim: int, causal: bool, seed: int = 0) -> AutoencoderBlockPCA:
    """Fit the block PCA on 3,000 random pairs of following frames."""
    start = np.sort(np.random.default_rng(seed).choice(len(frames) - 1, min(3000, len(frames) - 1), replace=False))
    pairs = to_pixels(np.stack([frames[start], frames[start + 1]], 1))
    config = {"in_channels": pairs.shape[1], "causal": causal}
    blocks = AutoencoderBlockPCA(in_channels=pairs.shape[1]).blocks(pairs).permute(0, 2, 3, 4, 1).flatten(0, 3)
    return AutoencoderBlockPCA.fit(blocks[::3], z_dim, power=0.5, **config)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """PSNR in dB of pixels in [-1, 1], pooled over everything."""
    return -10 * math.log10(((a - b) / 2).square().mean().item())


@torch.no_grad()
def encode_pairs(autoencoder: AutoencoderBlockPCA, frames: np.ndarray, second: np.ndarray) -> torch.Tensor:
    """Normalised fp16 latents (N, C, H, W) of the pairs (frames[n], second[n])."""
    plain = AutoencoderBlockPCA.from_config({**autoencoder.config, "causal": False})
    plain.load_state_dict(autoencoder.state_dict())
    parts = []
    for i in range(0, len(frames), 512):
        pair = to_pixels(np.stack([frames[i : i + 512], second[i : i + 512]], 1))
        parts.append(plain.normalize(plain.encode(pair).latent_dist.mode())[:, :, 0].half())
    return torch.cat(parts)


def following(frames: np.ndarray, lag: int = 1) -> np.ndarray:
    """The array ``lag`` frames later (the last frame stays)."""
    return np.concatenate([frames[lag:], frames[-1:].repeat(lag, 0)])


def window_starts(episode: np.ndarray, length: int) -> np.ndarray:
    """Indices n such that n … n + length - 1 lie in one episode."""
    starts = np.arange(len(episode) - length + 1)
    return starts[episode[starts] == episode[starts + length - 1]]


def noised(latents: torch.Tensor, mean: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rectified flow with logit-normal times: (x_t, velocity, timestep in 0 … 1000)."""
    sigma = torch.sigmoid(torch.randn(len(latents)) + mean)
    noise = torch.randn_like(latents)
    level = sigma.view(-1, *[1] * (latents.ndim - 1))
    return (1 - level) * latents + level * noise, noise - latents, sigma * 1000


def make_optimizers(model: nn.Module, hidden: Callable[[str], bool], lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else."""
    named = list(model.named_parameters())
    matrices = [p for n, p in named if p.ndim == 2 and hidden(n)]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in chosen]
    muon = torch.optim.Muon(matrices, lr=2 * lr, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    return [muon, adam]


class Trainer:
    """A loop of ``loss_fn()`` calls that ends when ``minutes`` of training are used up, resumes, and keeps an EMA.

    The learning rate warms up over 100 steps and falls to zero on a cosine over the fraction of the minutes used.
    """

    def __init__(
        self, model: nn.Module, optimizers: list, folder: Path, minutes: float, ema: float = 0.998, warmup: int = 100
    ):
        self.model, self.optimizers, self.folder, self.decay, self.warmup = model, optimizers, folder, ema, warmup
        self.seconds, self.used, self.step = minutes * 60, 0.0, 0
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.base = [[group["lr"] for group in o.param_groups] for o in optimizers]
        folder.mkdir(parents=True, exist_ok=True)
        self.checkpoint = folder / "resume.pt"
        if self.checkpoint.exists():
            self.load()

    def load(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["ema"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.used, self.step = state["used"], state["step"]

    def save(self) -> None:
        state = {"model": self.model.state_dict(), "ema": self.average.state_dict(), "used": self.used}
        state |= {"optimizers": [o.state_dict() for o in self.optimizers], "step": self.step}
        torch.save(state, self.checkpoint.with_suffix(".tmp"))
        self.checkpoint.with_suffix(".tmp").replace(self.checkpoint)

    def set_rate(self) -> None:
        fraction = min(self.used / self.seconds, 1.0)
        factor = min(1.0, (self.step + 1) / self.warmup) * 0.5 * (1 + math.cos(math.pi * fraction))
        for optimizer, base in zip(self.optimizers, self.base, strict=True):
            for group, lr in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = lr * factor

    def update_average(self) -> None:
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)

    def run(self, loss_fn: Callable[[], torch.Tensor], log_every: int = 20, save_every: float = 180.0) -> None:
        """Train until the time is used; a line of JSON per ``log_every`` steps goes to ``log.jsonl``."""
        losses, last, saved = [], time.time(), time.time()
        while self.used < self.seconds:
            self.set_rate()
            loss = loss_fn()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self.step += 1
            self.update_average()
            losses.append(loss.item())
            now = time.time()
            self.used, last = self.used + min(now - last, 30.0), now  # a stopped process trains nothing
            if self.step % log_every == 0:
                row = {"step": self.step, "minutes": round(self.used / 60, 2), "loss": round(float(np.mean(losses)), 4)}
                with open(self.folder / "log.jsonl", "a") as file:
                    file.write(json.dumps(row) + "\n")
                losses = []
            if now - saved > save_every:
                self.save()
                saved = now
        self.save()
