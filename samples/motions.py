"""Real clips of one held motion, for tiny-wan's training and for its probe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from training import window_starts

from diffcache.zoo.wan import MOTIONS

CLIP_FRAMES = 9
KEYS = "LRFBAD"  # in the order of MOTIONS
ACTIONS = "NFBLRAD"


def travelled(pose: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Way ahead and to the right (map units) and turn to the left (degrees) from the first to the last clip frame."""
    first, last = pose[starts], pose[starts + CLIP_FRAMES - 1]
    way, heading = last[:, :2] - first[:, :2], np.deg2rad(first[:, 2])
    ahead = way[:, 0] * np.cos(heading) + way[:, 1] * np.sin(heading)
    right = way[:, 0] * np.sin(heading) - way[:, 1] * np.cos(heading)
    return ahead, right, (last[:, 2] - first[:, 2] + 180) % 360 - 180


def find_clips(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Start frames and motion numbers of all clips that hold one action and whose pose shows the motion."""
    action, episode, pose = (np.load(folder / f"{name}.npy") for name in ("action", "episode", "pose"))
    starts = window_starts(episode, CLIP_FRAMES)
    held = action[starts[:, None] + np.arange(CLIP_FRAMES - 1)]
    starts, held = starts[(held == held[:, :1]).all(1)], held[(held == held[:, :1]).all(1), 0]
    ahead, right, turn = travelled(pose, starts)
    motion = np.full(len(starts), -1)
    shown = {"L": turn > 35, "R": turn < -35, "F": ahead > 45, "B": ahead < -45, "A": right < -40, "D": right > 40}
    for number, key in enumerate(KEYS):
        motion[(held == ACTIONS.index(key)) & shown[key]] = number
    return starts[motion >= 0], motion[motion >= 0]


def motion_names() -> list[str]:
    return list(MOTIONS)
