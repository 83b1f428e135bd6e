"""What a tiny denoiser is: how to build it, and the arguments of one call at a point of its trajectory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..models import normal, randomise, seeded

TEXT = 16  # width of text features
WORDS = 5  # text tokens: a number that no picture here has, so that streams cannot be mistaken for each other

#: settings of many classes: the heads, pictures and videos of four channels, and packed ones
HEADS = dict(num_attention_heads=2, attention_head_dim=16)
LATENT = dict(in_channels=4, out_channels=4, num_layers=2)
PACKED = dict(in_channels=16, num_layers=2)

Arguments = dict[str, Any]


def nothing(seed: int, size: int) -> Arguments:
    """No conditioning."""
    return {}


def thousand(level: float) -> Arguments:
    """A noise level in [0, 1] as a timestep out of 1000."""
    return {"timestep": torch.tensor([1000.0 * level])}


def whole(level: float) -> Arguments:
    """The same as a whole number."""
    return {"timestep": torch.tensor([round(999 * level)])}


def unit(level: float) -> Arguments:
    """The noise level itself."""
    return {"timestep": torch.tensor([level])}


@dataclass(frozen=True)
class Denoiser:
    """One exported class.

    Attributes:
        make: a new model with tiny widths; its weights follow the seed that is set around the call.
        noisy: (seed, size) -> what the sampler moves: tensors, or lists of them, of batch 1; ``size`` is 1 or 2.
        fixed: (seed, size) -> what stays the same for a whole trajectory: conditioning, positions, shapes.
        time: noise level in [0, 1] -> the timestep as this class takes it.
        within: most that a prediction under constant input may be away from the dense output, relatively.
    """

    make: Callable[[], nn.Module]
    noisy: Callable[[int, int], Arguments]
    fixed: Callable[[int, int], Arguments] = nothing
    time: Callable[[float], Arguments] = thousand
    within: float = 1e-5

    def tiny(self, seed: int = 0) -> nn.Module:
        """A seeded model in evaluation mode, fp32, without a zero gate."""
        with seeded(seed):
            model = self.make()
        return randomise(model.float(), seed)

    def trajectory(self, seed: int = 0, size: int = 1) -> Callable[[float], Arguments]:
        """Noise level -> arguments of a call. The conditioning is the same object each time, as a pipeline has it."""
        noise, fixed = self.noisy(seed, size), self.fixed(seed + 100, size)

        def arguments(level: float) -> Arguments:
            moved = {name: _scaled(value, 0.5 + 0.5 * level) for name, value in noise.items()}
            return {**moved, **fixed, **self.time(level)}

        return arguments


def _scaled(value: Any, factor: float) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_scaled(part, factor) for part in value)
    return value * factor if isinstance(value, Tensor) and value.is_floating_point() else value


# -- arguments that many classes share ---------------------------------------------------------------------------------


def picture(name: str = "hidden_states", channels: int = 4, height: int = 8) -> Callable[[int, int], Arguments]:
    """[1, channels, height, 4 * size]"""
    return lambda seed, size: {name: normal(1, channels, height, 4 * size, seed=seed)}


def film(channels: int = 4, frames: int = 3, height: int = 8) -> Callable[[int, int], Arguments]:
    """[1, channels, frames, height, 4 * size]"""
    return lambda seed, size: {"hidden_states": normal(1, channels, frames, height, 4 * size, seed=seed)}


def tokens(channels: int = 16, count: int = 8) -> Callable[[int, int], Arguments]:
    """[1, count * size, channels]: a packed picture or sound"""
    return lambda seed, size: {"hidden_states": normal(1, count * size, channels, seed=seed)}


def words(seed: int, size: int) -> Arguments:
    """Text features."""
    return {"encoder_hidden_states": normal(1, WORDS, TEXT, seed=seed)}


def masked_words(seed: int, size: int) -> Arguments:
    """Text features and their mask."""
    return {**words(seed, size), "encoder_attention_mask": torch.ones(1, WORDS)}


def words_where(seed: int, size: int) -> Arguments:
    """Text features and a mask of truth values."""
    return {**words(seed, size), "encoder_attention_mask": torch.ones(1, WORDS, dtype=torch.bool)}


def pooled(name: str = "pooled_projections", width: int = TEXT) -> Callable[[int, int], Arguments]:
    return lambda seed, size: {name: normal(1, width, seed=seed + 1)}


def turns(count: int, width: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of rotary angles, [count, width] each."""
    angles = normal(count, width, seed=3)
    return angles.cos(), angles.sin()


def frames_first(width: int = 4) -> Callable[[int, int], Arguments]:
    """[1, frames, channels, 8, width * size]"""
    return lambda seed, size: {"hidden_states": normal(1, 3, 4, 8, width * size, seed=seed)}


def grid_ids(axes: int = 3, count: int = 8) -> Callable[[int, int], Arguments]:
    """Position ids of a packed picture of 2 rows, and of the text."""

    def ids(seed: int, size: int) -> Arguments:
        columns = count * size // 2
        grid = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(columns), indexing="ij"), -1).reshape(-1, 2)
        image = torch.zeros(count * size, axes)
        image[:, 1:3] = grid.float()
        return {"img_ids": image, "txt_ids": torch.zeros(WORDS, axes)}

    return ids


def together(*parts: Callable[[int, int], Arguments]) -> Callable[[int, int], Arguments]:
    """Arguments of several parts."""
    return lambda seed, size: {name: value for part in parts for name, value in part(seed, size).items()}


def constant(**values: Any) -> Callable[[int, int], Arguments]:
    """The same arguments whatever seed and size."""
    return lambda seed, size: dict(values)
