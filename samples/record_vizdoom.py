"""Record real ViZDoom play: RGB, depth, actions and pose, for both embedded models.

    python samples/record_vizdoom.py --out data/vizdoom
    python samples/record_vizdoom.py --out data/vizdoom-motions --policy motions --seed 100

The scenario is ``my_way_home`` (rooms with different textures, random spawn). A sticky random policy holds each action
for several frames, prefers walking forward and turns away from walls. One recorded frame is two game tics (one for the
``motions`` policy), so that a held turn (about 7 and 3.5 degrees per frame) keeps most of the view in the picture. Each
split becomes a folder of ``.npy`` files:

=============  ======================  ====================================================
``rgb``        uint8 (N, 48, 64, 3)    picture, box-filtered from 160 x 120
``depth``      uint8 (N, 48, 64)       four times the engine's 8-bit depth buffer (not metric, saturating)
``action``     uint8 (N,)              index into ``ACTIONS``; leads from frame n to frame n + 1
``pose``       float32 (N, 3)          x, y in map units, angle in degrees
``episode``    int32 (N,)              episode number: frames of two episodes never follow
=============  ======================  ====================================================
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

ACTIONS = "NFBLRAD"  # nothing, forward, backward, turn left, turn right, strafe left, strafe right
BUTTONS = ("MOVE_FORWARD", "MOVE_BACKWARD", "TURN_LEFT", "TURN_RIGHT", "MOVE_LEFT", "MOVE_RIGHT")
POLICIES = {  # how often each of ACTIONS is chosen
    "play": (0.03, 0.33, 0.09, 0.19, 0.19, 0.085, 0.085),  # what a player does, for tiny-world
    "motions": (0.0, 0.3, 0.3, 0.2, 0.2, 0.0, 0.0),  # turns and walks, for tiny-wan
}
HOLD = {"play": (4, 20), "motions": (10, 28)}  # frames for which an action is held
HEIGHT, WIDTH, EPISODE_FRAMES, DEPTH_GAIN = 48, 64, 400, 4.0
TICS = {"play": 2, "motions": 1}  # game tics per recorded frame
FIELDS = ("rgb", "depth", "action", "pose", "episode")


def make_game(seed: int):
    """A headless game without HUD, weapon or crosshair, with the depth buffer on."""
    import vizdoom as vzd

    game = vzd.DoomGame()
    game.load_config(f"{vzd.scenarios_path}/my_way_home.cfg")
    game.set_screen_resolution(vzd.ScreenResolution.RES_160X120)
    game.set_screen_format(vzd.ScreenFormat.RGB24)
    game.set_depth_buffer_enabled(True)
    game.set_render_hud(False)
    game.set_render_weapon(False)
    game.set_render_crosshair(False)
    game.set_window_visible(False)
    game.set_available_buttons([getattr(vzd.Button, name) for name in BUTTONS])
    variables = (vzd.GameVariable.POSITION_X, vzd.GameVariable.POSITION_Y, vzd.GameVariable.ANGLE)
    game.set_available_game_variables(list(variables))
    game.set_seed(seed)
    game.init()
    return game


def downscale(rgb: np.ndarray, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Antialiased 48 x 64 versions of a stack of screens."""
    # Rooms are small: the raw buffer stays below 64, so four times it uses the whole byte.
    depth = depth.astype(np.float32) * DEPTH_GAIN
    both = torch.cat([torch.from_numpy(rgb).permute(0, 3, 1, 2).float(), torch.from_numpy(depth)[:, None]], 1)
    small = F.interpolate(both, size=(HEIGHT, WIDTH), mode="bilinear", antialias=True, align_corners=False)
    small = small.round().clamp(0, 255).to(torch.uint8).numpy()
    return np.ascontiguousarray(small[:, :3].transpose(0, 2, 3, 1)), small[:, 3]


class StickyPolicy:
    """Holds a random action for several frames; turns away when walking does not move the player."""

    def __init__(self, rng: np.random.Generator, preference: tuple[float, ...], hold: tuple[int, int]):
        self.rng, self.preference, self.hold, self.action, self.left = rng, preference, hold, 0, 0

    def __call__(self, moved: float) -> int:
        walking = ACTIONS[self.action] in "FBAD"
        if self.left > 0 and walking and moved < 1.0 and self.rng.random() < 0.5:
            self.action, self.left = int(self.rng.choice([3, 4])), int(self.rng.integers(6, 16))
        elif self.left <= 0:
            self.action = int(self.rng.choice(len(ACTIONS), p=self.preference))
            self.left = int(self.rng.integers(*self.hold))
        self.left -= 1
        return self.action


def record_episode(game, rng: np.random.Generator, policy: str, number: int) -> dict[str, np.ndarray]:
    """Play one episode of at most ``EPISODE_FRAMES`` frames."""
    game.new_episode()
    player, rows, moved = StickyPolicy(rng, POLICIES[policy], HOLD[policy]), [], 9.0
    while len(rows) < EPISODE_FRAMES and not game.is_episode_finished():
        state = game.get_state()
        pose = np.asarray(state.game_variables, np.float32)
        if rows:
            moved = float(np.hypot(*(pose[:2] - rows[-1][3][:2])))
        action = player(moved)
        rows.append((state.screen_buffer.copy(), state.depth_buffer.copy(), action, pose, number))
        game.make_action([int(i + 1 == action) for i in range(len(BUTTONS))], TICS[policy])
    rgb, depth, action, pose, episode = (np.stack(column) for column in zip(*rows, strict=True))
    rgb, depth = downscale(rgb, depth)
    return dict(zip(FIELDS, (rgb, depth, action.astype(np.uint8), pose, episode.astype(np.int32)), strict=True))


def record(job: tuple[int, int, str]) -> dict[str, np.ndarray]:
    """Record at least ``frames`` frames with one game."""
    seed, frames, policy = job
    torch.set_num_threads(1)
    os.chdir(tempfile.mkdtemp())  # the engine writes its settings into the working directory
    game, rng, parts = make_game(seed), np.random.default_rng(seed), []
    while sum(len(part["action"]) for part in parts) < frames:
        parts.append(record_episode(game, rng, policy, seed * 10_000 + len(parts)))
    game.close()
    return {name: np.concatenate([part[name] for part in parts]) for name in FIELDS}


def save(folder: Path, parts: list[dict[str, np.ndarray]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in FIELDS:
        np.save(folder / f"{name}.npy", np.concatenate([part[name] for part in parts]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/vizdoom"))
    parser.add_argument("--frames", type=int, default=60_000, help="training frames")
    parser.add_argument("--heldout", type=int, default=4_000, help="frames of held-out episodes (other seeds)")
    parser.add_argument("--policy", choices=sorted(POLICIES), default="play")
    parser.add_argument("--seed", type=int, default=0, help="first seed; held-out episodes add 900")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    start, jobs = time.time(), 4 * args.workers
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        seeds = range(args.seed + 1, args.seed + 1 + jobs)
        train = pool.map(record, [(seed, args.frames // jobs, args.policy) for seed in seeds], chunksize=1)
        seeds = range(args.seed + 900, args.seed + 900 + args.workers)
        heldout = pool.map(record, [(seed, args.heldout // args.workers, args.policy) for seed in seeds])
    save(args.out / "train", train)
    save(args.out / "heldout", heldout)
    counts = [sum(len(part["action"]) for part in split) for split in (train, heldout)]
    print(f"{counts[0]} training and {counts[1]} held-out frames in {time.time() - start:.0f} s -> {args.out}")


if __name__ == "__main__":
    main()
