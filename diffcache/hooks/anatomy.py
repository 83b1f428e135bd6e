"""What a denoiser is made of, found by inspection: arguments, block lists, and where the tokens are in its output."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..predictors import Modality, TokenLayout

_SAMPLE_NAMES = ("hidden_states", "x", "sample", "latents", "img", "vision_tokens", "decoder_input_tokens")
_TIMESTEP_NAMES = ("timestep", "timesteps", "t")
# Under other names: one time for each stream or token.
_TIMESTEP = re.compile(r"(^|_)time(step)?s?$")
_CONDITIONING = re.compile(
    r"^(encoder_|prompt_|pooled_|class_label|text_|txt|cap_|caption|global_hidden|input_ids$|encodings|conditioning$|y$)"
)
_NOT_CONDITIONING = re.compile(r"(mask|lens?|(text|txt|position)_ids|seqlen)$")
# What the configuration calls the output's channels.
_CHANNEL_NAMES = (
    "out_channels",
    "out_visual_dim",
    "out_dim",
    "audio_acoustic_hidden_dim",
    "in_channels",
    "io_channels",
    "latent_channel",
    "latent_dim",
    "input_dims",
)
# Classes whose output is [batch, frames, channels, height, width]; the shape alone cannot tell.
_FRAMES_FIRST = {
    "CogVideoXTransformer3DModel",
    "ConsisIDTransformer3DModel",
    "AnyFlowTransformer3DModel",
    "AnyFlowFARTransformer3DModel",
    "JoyImageEditPlusTransformer3DModel",
}


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

    def identity(self, inputs: Mapping[str, Any]) -> list[Any]:
        """What tells one branch from another: conditioning, and what is written as a number, a word or a flag."""
        switches = {n: _plain(inputs[n]) for n in inputs.keys() - self._told if not n.endswith("kwargs")}
        return [*map(inputs.get, self.conditioning), {n: switches[n] for n in sorted(switches) if switches[n]}]

    @cached_property
    def _told(self) -> frozenset[str]:
        """Arguments that are no switches."""
        return frozenset((self.sample, self.timestep, "return_dict", *self.conditioning))

    def signature(self, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
        """What must not change under a history: shape, dtype and device of every tensor, and the kind of result."""
        tensors = [t for n, v in inputs.items() if n not in self.conditioning for t in _tensors(v)]
        return tuple((t.shape, t.dtype, t.device) for t in tensors), inputs.get("return_dict", True)

    def layout(self, output: Tensor, modalities: Sequence[int] = ()) -> TokenLayout:
        """Where the tokens of an output tensor are."""
        channel = self._channel_dim(output)
        grid = output.dim() - channel - 1
        # With frames before channels a token is a latent pixel, as Aether takes it on CogVideoX.
        patched = grid >= 2 and not (output.dim() == 5 and channel == 2)
        patch = self.patch[-grid:] if patched else ()
        return TokenLayout(channel, _ranges(modalities), patch if any(p > 1 for p in patch) else ())

    def _channel_dim(self, output: Tensor) -> int:
        if output.dim() <= 2:
            return output.dim() - 1
        usual = output.dim() - 1 if output.dim() == 3 else 1
        if self.model_class in _FRAMES_FIRST and output.dim() >= 5:
            return 2
        if self.channels is None or output.shape[usual] in (self.channels, 2 * self.channels):
            return usual
        # Features last, or no batch axis: the axis that is as wide as the configuration says, if there is just one.
        wide = [axis for axis, size in enumerate(output.shape) if size == self.channels]
        return wide[0] if len(wide) == 1 else usual


def _plain(value: Any) -> tuple[Any, ...]:
    """Numbers, words and flags in a value, whatever it is held in; whole ones only, a scale may change every step."""
    if isinstance(value, (str, int)):
        return (value,)
    if isinstance(value, Mapping):
        return tuple((str(key), part) for key in value for part in _plain(value[key]))
    if isinstance(value, (list, tuple)):
        return tuple(part for entry in value for part in _plain(entry))
    return ()


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _ranges(widths: Sequence[int]) -> tuple[Modality, ...]:
    if not widths:
        return (Modality("all"),)
    edges = [sum(widths[:i]) for i in range(len(widths) + 1)]
    return tuple(Modality(f"m{i}", a, b) for i, (a, b) in enumerate(pairwise(edges)))


def inspect_class(model_class: type) -> tuple[tuple[str, ...], str]:
    """The parameters of a denoiser class's ``forward``, and which of them is the timestep.

    Raises:
        UnsupportedModelError: it is not a denoiser; the message says what it is, or what is missing.
    """
    name = model_class.__name__
    if not issubclass(model_class, nn.Module):
        raise UnsupportedModelError(f"{name} is not a torch.nn.Module")
    if "ControlNet" in name:
        raise UnsupportedModelError(f"{name} is a ControlNet: it serves a denoiser; accelerate that one")
    if "UNet" in name:
        raise UnsupportedModelError(
            f"{name} is a U-Net: diffcache caches transformer denoisers; for U-Nets use DeepCache or TGATE"
        )
    parameters = tuple(inspect.signature(model_class.forward).parameters)[1:]
    timestep = next((p for p in _TIMESTEP_NAMES if p in parameters), None)
    timestep = timestep or next((p for p in parameters if _TIMESTEP.search(p)), None)
    if timestep is None:
        language = "input_ids" in parameters
        hint = "; a diffusion language model takes one of list_methods('language')" if language else ""
        raise UnsupportedModelError(f"{name}.forward has no parameter timestep: it is not a denoiser{hint}")
    return parameters, timestep


def inspect_denoiser(model: nn.Module) -> Anatomy:
    """Find the anatomy of a denoiser.

    Raises:
        UnsupportedModelError: it is not a denoiser built from transformer blocks; the message says what is missing.
    """
    name = type(model).__name__
    parameters, timestep = inspect_class(type(model))
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
    """The denoiser's transformer blocks: lists of modules with attention, by dotted name.

    Its own lists (also in a dictionary of lists, one a modality); where it has none, those of the part that has.
    """
    found: dict[str, nn.ModuleList] = {}
    for name, child in model.named_children():
        if isinstance(child, nn.ModuleDict):
            found |= {f"{name}.{key}": part for key, part in child.items() if _is_block_list(part)}
        elif _is_block_list(child):
            found[name] = child
    if found:
        return found
    inner = ((name, find_block_lists(child)) for name, child in model.named_children())
    prefix, lists = next(((name, lists) for name, lists in inner if lists), ("", {}))
    return {f"{prefix}.{name}": blocks for name, blocks in lists.items()}


def _is_block_list(module: nn.Module) -> bool:
    return isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) > 0 and all(map(_has_attention, module))


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
    return next((config[name] for name in _CHANNEL_NAMES if isinstance(config.get(name), int)), None)


def find_denoisers(pipe: Any) -> dict[str, nn.Module]:
    """The transformer denoisers of a pipeline by component name, experts in the order in which they run.

    ``transformer`` and its numbered experts, and denoisers beside them (``unconditional_transformer`` of Ideogram4).

    Raises:
        UnsupportedModelError: there is none.
    """
    components = getattr(pipe, "components", None) or {}
    modules = {n: m for n, m in components.items() if isinstance(m, nn.Module)}
    found = {n: m for n, m in modules.items() if re.match(r"^transformer(_\d+)?$", n)}
    if found:
        found |= {n: m for n, m in modules.items() if n.endswith("_transformer") and _is_denoiser(m)}
    else:
        found = {n: m for n, m in modules.items() if _is_denoiser(m)}
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
