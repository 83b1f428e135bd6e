"""Which classes of the installed diffusers are transformer denoisers, by introspection and a stated rule."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import cache

import diffusers.models
from torch import nn

_TIMESTEP = re.compile(r"(^|_)time(step)?s?$|^t$")

#: what takes a timestep and is no transformer denoiser: (rule on the class name, reason)
EXCLUDED: list[tuple[Callable[[str], bool], str]] = [
    (lambda name: "ControlNet" in name, "a ControlNet gives residuals to a denoiser"),
    (lambda name: "UNet" in name, "a U-Net has no list of transformer blocks"),
    (lambda name: "Prior" in name, "a prior predicts an embedding, in one vector"),
    (
        lambda name: (
            name
            in {
                "Transformer2DModel",
                "DualTransformer2DModel",
                "TransformerTemporalModel",
                "DreamLiteTransformer2DModel",
            }
        ),
        "a part of a U-Net: it takes the timestep for the norms of its blocks",
    ),
]


def exclusion(name: str) -> str | None:
    """Why a class that takes a timestep is left out, or None."""
    return next((reason for rule, reason in EXCLUDED if rule(name)), None)


@cache
def timed_classes() -> dict[str, type[nn.Module]]:
    """Model classes that diffusers exports and whose ``forward`` takes a timestep."""
    exported = {name: getattr(diffusers.models, name) for name in dir(diffusers.models)}
    return {
        name: value
        for name, value in sorted(exported.items())
        if isinstance(value, type)
        and issubclass(value, nn.Module)
        and any(_TIMESTEP.search(parameter) for parameter in inspect.signature(value.forward).parameters)
    }


@cache
def denoiser_classes() -> list[str]:
    """Names of the transformer denoisers among them."""
    return [name for name in timed_classes() if exclusion(name) is None]
