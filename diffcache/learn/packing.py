"""Dense generations as tensors by name, as a calibration keeps them while it is under way."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ConfigError
from ..predictors.evidence import Track
from .piloting import Flight


def pack(flight: Flight, names: Sequence[str]) -> dict[str, Tensor]:
    """What is needed again of a dense generation.

    Args:
        flight: see :func:`.piloting.fly`.
        names: of the denoisers.
    """
    segments = [(names.index(name), steps) for name, steps in flight.segments]
    stage = {
        "pictures": flight.pictures,
        "timesteps": torch.tensor(flight.timesteps, dtype=torch.float64),
        "segments": torch.tensor(segments, dtype=torch.int64),
    }
    for i, track in enumerate(flight.tracks):
        check_branches(track)
        for branch, seen in track.outputs.items():
            stage[f"{i}.output.{branch}"] = torch.stack([seen[step] for step in sorted(seen)])
        if track.sampled:
            stage[f"{i}.sample"] = torch.stack([track.samples[step] for step in sorted(track.samples)])
    return stage


def unpack(stage: dict[str, Tensor]) -> list[Track]:
    """Its trajectories."""
    tracks: dict[int, Track] = {}
    for key, value in stage.items():
        number, _, rest = key.partition(".")
        if not rest:
            continue
        track = tracks.setdefault(int(number), Track())
        if rest == "sample":
            for step, sample in enumerate(value):
                track.take(step, sample)
        else:
            track.outputs.setdefault(rest.partition(".")[2], {}).update(enumerate(value))
    return [tracks[i] for i in sorted(tracks)]


def check_branches(track: Track) -> None:
    """Refuse a dense trajectory whose conditionings were not called at every step; raises ConfigError."""
    for branch, seen in track.outputs.items():
        missing = next((step for step in range(track.steps) if step not in seen), None)
        if missing is not None:
            raise ConfigError(
                f"calls: branch {branch} was not called at step {missing} of {track.steps}: every denoiser must be "
                "called with all conditionings at each of its steps"
            )
