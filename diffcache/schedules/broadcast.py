"""Pyramid attention broadcast: each kind of attention has its own interval, within a window of timesteps."""

from __future__ import annotations

from .base import NEVER, Schedule


class Broadcast(Schedule):
    """One kind of attention in PAB (arXiv 2408.12588): within the window, computed at every ``interval``-th step.

    Outside the window the attention changes too fast and every step is computed. Steps are counted from the start of
    the trajectory, not from the window's edge, as the release and diffusers do. Without timesteps all is computed.

    Args:
        interval: broadcast range, >= 1: one computed step serves itself and the ``interval - 1`` that follow.
        window: (low, high), exclusive, in the sampler's timesteps: diffusers' default is 100 to 800, the release takes
            450 to 930 for Open-Sora.
    """

    wants_timesteps = True

    def __init__(
        self,
        interval: int,
        window: tuple[float, float] = (100, 800),
        warmup: int = 0,
        cooldown: int = 1,
        max_skip: int = NEVER,
    ) -> None:
        self.interval, self.window = interval, window
        super().__init__(warmup, cooldown, max_skip if interval > 1 else 0)

    def placed(self, step: int) -> bool:
        if self.last < 0 or step >= len(self.timesteps):
            return True
        low, high = self.window
        return not low < self.timesteps[step] < high or step % self.interval == 0


def pyramid(
    spatial: int | None = 2,
    temporal: int | None = 4,
    cross: int | None = 6,
    window: tuple[float, float] = (100, 800),
    warmup: int = 0,
    cooldown: int = 1,
    max_skip: int = NEVER,
) -> dict[str, Broadcast]:
    """A schedule for each kind of attention; a kind with range None is always computed and has none.

    The more an attention varies, the shorter its range: spatial (and joint self-attention) most, cross least. The
    defaults are the paper's PAB-246.

    Args:
        spatial: range of self-attention within a frame, or over all tokens.
        temporal: range of self-attention across frames.
        cross: range of attention to the text.
        window: see :class:`Broadcast`.
    """
    ranges = {"spatial": spatial, "temporal": temporal, "cross": cross}
    return {kind: Broadcast(n, window, warmup, cooldown, max_skip) for kind, n in ranges.items() if n is not None}
