"""Real clips of one held motion, for tiny-wan's training and for its probe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from training import window_starts

from diffcache.zoo.wan import MOTIONS

CLIP_FRAMES = 9
KEYS = "LRFBAD"  # in the order of MOTIONS
ACTIONS = "NFBLRAD"
MIN_DEPTH = 30  # mean of the recorded depth: right before a wall a turn can hardly be told from a step


def travelled(pose: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Way ahead and to the right (map units) and turn to the left (degrees) from the first to the last clip frame."""
    first, last = pose[starts], pose[starts + CLIP_FRAMES - 1]
    way, heading = last[:, :2] - first[:, :2], np.deg2rad(first[:, 2])
    ahead = way[:, 0] * np.cos(heading) + way[:, 1] * np.sin(heading)
    right = way[:, 0] * np.sin(heading) - way[:, 1] * np.cos(heading)
    return ahead, right, (last[:, 2] - first[:, 2] + 180) % 360 - 180


def find_clips(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Start frames and motion numbers of the clips in open view that hold one action, and whose pose shows it."""
    action, episode, pose = (np.load(folder / f"{name}.npy") for name in ("action", "episode", "pose"))
    open_view = np.load(folder / "depth.npy", mmap_mode="r").mean((1, 2), dtype=np.float32) > MIN_DEPTH
    starts = window_starts(episode, CLIP_FRAMES)
    held = action[starts[:, None] + np.arange(CLIP_FRAMES - 1)]
    clear = (held == held[:, :1]).all(1) & open_view[starts] & open_view[starts + CLIP_FRAMES - 1]
    starts, held = starts[clear], held[clear, 0]
    ahead, right, turn = travelled(pose, starts)
    motion = np.full(len(starts), -1)
    shown = {"L": turn > 20, "R": turn < -20, "F": ahead > 24, "B": ahead < -24, "A": right < -22, "D": right > 22}
    for number, key in enumerate(KEYS):
        motion[(held == ACTIONS.index(key)) & shown[key]] = number
    return starts[motion >= 0], motion[motion >= 0]


def motion_names() -> list[str]:
    return list(MOTIONS)
