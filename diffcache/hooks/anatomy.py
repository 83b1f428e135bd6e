"""What a denoiser is made of, found by inspection: arguments, block lists, and where the tokens are in its output."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..predictors import Modality, TokenLayout

_SAMPLE_NAMES = ("hidden_states", "x", "sample", "latents", "img")
_TIMESTEP_NAMES = ("timestep", "timesteps", "t")
_CONDITIONING = re.compile(r"^(encoder_|prompt_|pooled_|class_label|text_|txt|cap_|caption|global_hidden|y$)")
_NOT_CONDITIONING = re.compile(r"(mask|lens?|ids|seqlen)$")
# Classes whose output is [batch, frames, channels, height, width]; the shape alone cannot tell.
_FRAMES_FIRST = {"CogVideoXTransformer3DModel", "ConsisIDTransformer3DModel"}


@dataclass(frozen=True)
class Anatomy:
    """Facts about one denoiser class.

    Attributes:
        model_class: class name.
        parameters: names of ``forward``'s parameters, in order.
        sample: name of the parameter that takes the noisy sample.
        timestep: name of the timestep parameter.
        conditioning: names of parameters that tell one branch from another.
        block_lists: names of the module lists that hold the transformer blocks, in order of registration.
        num_blocks: blocks in all lists.
        patch: sizes of a patch along the last axes of an unpatchified output.
        channels: output channels, if the configuration names them.
    """

    model_class: str
    parameters: tuple[str, ...]
    sample: str
    timestep: str
    conditioning: tuple[str, ...]
    block_lists: tuple[str, ...]
    num_blocks: int
    patch: tuple[int, ...]
    channels: int | None

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of a call by name."""
        return {**dict(zip(self.parameters, args, strict=False)), **kwargs}

    def layout(self, output: Tensor, modalities: Sequence[int] = ()) -> TokenLayout:
        """Where the tokens of an output tensor are."""
        channel = self._channel_dim(output)
        # With frames before channels a token is a latent pixel, as Aether takes it on CogVideoX.
        patch = self.patch if output.dim() >= 4 and channel != 2 else ()
        patch = patch[-(output.dim() - 1) :]
        return TokenLayout(channel, _ranges(modalities), patch if any(p > 1 for p in patch) else ())

    def _channel_dim(self, output: Tensor) -> int:
        if output.dim() <= 3:
            return output.dim() - 1
        return 2 if self.model_class in _FRAMES_FIRST and output.dim() == 5 else 1


def _ranges(widths: Sequence[int]) -> tuple[Modality, ...]:
    if not widths:
        return (Modality("all"),)
    edges = [sum(widths[:i]) for i in range(len(widths) + 1)]
    return tuple(Modality(f"m{i}", a, b) for i, (a, b) in enumerate(pairwise(edges)))


def inspect_denoiser(model: nn.Module) -> Anatomy:
    """Find the anatomy of a denoiser.

    Raises:
        UnsupportedModelError: it is not a denoiser built from transformer blocks; the message says what is missing.
    """
    name = type(model).__name__
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"{name} is not a torch.nn.Module")
    if "UNet" in name:
        raise UnsupportedModelError(
            f"{name} is a U-Net: diffcache caches transformer denoisers; for U-Nets use DeepCache or TGATE"
        )
    parameters = tuple(inspect.signature(type(model).forward).parameters)[1:]
    timestep = next((p for p in _TIMESTEP_NAMES if p in parameters), None)
    if timestep is None:
        raise UnsupportedModelError(f"{name}.forward has no parameter timestep: it is not a denoiser")
    lists = find_block_lists(model)
    if not lists:
        raise UnsupportedModelError(f"{name} has no list of transformer blocks")
    return Anatomy(
        model_class=name,
        parameters=parameters,
        sample=next((p for p in _SAMPLE_NAMES if p in parameters), parameters[0]),
        timestep=timestep,
        conditioning=tuple(p for p in parameters if _CONDITIONING.search(p) and not _NOT_CONDITIONING.search(p)),
        block_lists=tuple(lists),
        num_blocks=sum(len(blocks) for blocks in lists.values()),
        patch=_patch(model),
        channels=_channels(model),
    )


def find_block_lists(model: nn.Module) -> dict[str, nn.ModuleList]:
    """Direct module lists of the denoiser whose entries contain attention: its transformer blocks."""
    return {
        name: child
        for name, child in model.named_children()
        if isinstance(child, (nn.ModuleList, nn.Sequential)) and len(child) and all(_has_attention(b) for b in child)
    }


def _has_attention(block: nn.Module) -> bool:
    return any("attn" in name.lower() or "attention" in type(m).__name__.lower() for name, m in block.named_modules())


def _patch(model: nn.Module) -> tuple[int, ...]:
    config = getattr(model, "config", {})
    size = config.get("patch_size", 1) if isinstance(config, Mapping) else 1
    if isinstance(size, (tuple, list)):
        return tuple(int(s) for s in size)
    if not isinstance(size, int):
        return ()
    return (config.get("patch_size_t") or 1, size, size)


def _channels(model: nn.Module) -> int | None:
    config = getattr(model, "config", {})
    if not isinstance(config, Mapping):
        return None
    return config.get("out_channels") or config.get("in_channels")


def find_denoisers(pipe: Any) -> dict[str, nn.Module]:
    """The transformer denoisers of a pipeline by component name, experts in the order in which they run.

    Raises:
        UnsupportedModelError: there is none.
    """
    components = getattr(pipe, "components", None) or {}
    found = {n: m for n, m in components.items() if isinstance(m, nn.Module) and re.match(r"^transformer(_\d+)?$", n)}
    if not found:
        found = {n: m for n, m in components.items() if isinstance(m, nn.Module) and _is_denoiser(m)}
    if not found and "unet" in components:
        inspect_denoiser(components["unet"])
    if not found:
        raise UnsupportedModelError(
            f"{type(pipe).__name__} has no transformer denoiser among its components: {', '.join(components) or 'none'}"
        )
    return dict(sorted(found.items()))


def _is_denoiser(module: nn.Module) -> bool:
    try:
        inspect_denoiser(module)
    except UnsupportedModelError:
        return False
    return True
