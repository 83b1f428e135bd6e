"""Real clips of one held motion, for tiny-wan's training and for its probe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from training import window_starts

CLIP_FRAMES = 9
KEYS = "LRFB"  # in the order of MOTIONS
STRIDES = (1, 1, 2, 2)  # recorded frames per clip frame: walks go on for twice as long as turns
ACTIONS = "NFBLRAD"
MIN_DEPTH = 30  # mean of the recorded depth: right before a wall a turn can hardly be told from a step


def travelled(pose: np.ndarray, starts: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Way ahead (map units) and turn to the left (degrees) over ``length`` recorded frames."""
    first, last = pose[starts], pose[starts + length]
    way, heading = last[:, :2] - first[:, :2], np.deg2rad(first[:, 2])
    return way[:, 0] * np.cos(heading) + way[:, 1] * np.sin(heading), (last[:, 2] - first[:, 2] + 180) % 360 - 180


def find_clips(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Start frames and motion numbers of the clips in open view that hold one action, and whose pose shows it."""
    action, episode, pose = (np.load(folder / f"{name}.npy") for name in ("action", "episode", "pose"))
    open_view = np.load(folder / "depth.npy", mmap_mode="r").mean((1, 2), dtype=np.float32) > MIN_DEPTH
    found = []
    for key, stride in zip(KEYS, STRIDES, strict=True):
        length = stride * (CLIP_FRAMES - 1)
        starts = window_starts(episode, length + 1)
        held = (action[starts[:, None] + np.arange(length)] == ACTIONS.index(key)).all(1)
        starts = starts[held & open_view[starts] & open_view[starts + length]]
        ahead, turn = travelled(pose, starts, length)
        shown = {"L": turn > 20, "R": turn < -20, "F": ahead > 48, "B": ahead < -48}[key]
        found.append(starts[shown])
    return np.concatenate(found), np.repeat(np.arange(len(KEYS)), [len(starts) for starts in found])


def clip_frames(starts: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """Frame numbers of whole clips, shape ``(len(starts), CLIP_FRAMES)``."""
    return starts[:, None] + np.array(STRIDES)[motion][:, None] * np.arange(CLIP_FRAMES)
