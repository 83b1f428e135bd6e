"""What to generate with an embedded model when the user has not said: real held-out contexts, known prompts."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from .loading import WEIGHTS
from .registry import list_models


@lru_cache(maxsize=1)
def world_clips() -> dict[str, Any]:
    """Held-out ViZDoom clips that ship with tiny-world; tensors with a leading axis of clips.

    ``context_rgb`` (N, 2, 48, 64, 3) and ``context_depth`` (N, 2, 48, 64) are the two frames that are known,
    ``actions`` (N, 24) indices into ``ACTIONS``, ``rgb`` and ``depth`` the true continuation of 24 frames; uint8.
    """
    from safetensors.torch import load_file

    return load_file(WEIGHTS / "tiny-world" / "clips.safetensors")


def example_call(name: str, index: int) -> dict[str, Any]:
    """Arguments of the pipeline call number ``index`` of an embedded model, without seed, steps and output type.

    Raises KeyError for a model that is not embedded.
    """
    return {"tiny-world": _world_call, "tiny-wan": _wan_call}[name](index)


def _world_call(index: int) -> dict[str, Any]:
    from .world import ACTIONS

    clips = world_clips()
    index %= len(clips["actions"])
    return {
        "image": clips["context_rgb"][index].numpy(),
        "depth": clips["context_depth"][index].numpy(),
        "actions": "".join(ACTIONS[k] for k in clips["actions"][index].tolist()),
    }


def _wan_call(index: int) -> dict[str, Any]:
    from .wan import MOTIONS

    entry = list_models()["tiny-wan"]
    return {
        "prompt": list(MOTIONS)[index % len(MOTIONS)],
        "height": entry.height,
        "width": entry.width,
        "num_frames": entry.num_frames,
        "guidance_scale": entry.guidance_scale,
        **entry.call,
    }
