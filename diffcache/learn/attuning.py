"""Gains that agree with what whole plans were seen to do to the result (ours).

Probes measure one short span each, on one call. What a plan's error is made of shows in whole runs as well: of some
placements their PSNR is known, and the gains are bent by the smooth curve under which the landscape explains it best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..schedules.planning import Landscape

#: curves that are tried: natural logarithms at the end of the trajectory (less those at its begin), and of its middle
TILTS, BOWS = np.linspace(-4.0, 4.0, 33), np.linspace(-2.0, 2.0, 17)
#: standard deviations: of a PSNR about what the landscape says of it, in dB, and of a curve's two numbers
NOISE, TRUST = 1.0, 2.0


def attune(landscape: Landscape, seen: Mapping[Sequence[int], float]) -> np.ndarray:
    """``[steps]``: factors on the gains of a landscape, in the mean about 1.

    Args:
        landscape: with the gains as measured.
        seen: placement -> mean PSNR in dB of some runs, the same ones for all.
    """
    spans = [_spans(landscape, computed) for computed in seen]
    measured = np.array(list(seen.values()))

    def cost(tilt: float, bow: float) -> float:
        told = np.array([_told(errors, _curve(places, tilt, bow)) for places, errors in spans])
        rest = measured - told
        return float(np.square(rest - rest.mean()).sum()) / NOISE**2 + (tilt**2 + bow**2) / TRUST**2

    tilt, bow = min(((t, b) for t in TILTS for b in BOWS), key=lambda pair: cost(*pair))
    return _curve(np.linspace(-1.0, 1.0, landscape.steps), tilt, bow)


def _spans(landscape: Landscape, computed: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Of each span of predicted steps the middle, in [-1, 1], and its squared error."""
    ends = [*computed[1:], landscape.steps]
    spans = [(start, end) for start, end in zip(computed, ends, strict=True) if end > start + 1]
    places = np.array([start + end for start, end in spans]) / (landscape.steps - 1) - 1.0
    return places, np.array([landscape.span(landscape.before(computed, end), end) for _, end in spans])


def _curve(places: np.ndarray, tilt: float, bow: float) -> np.ndarray:
    return np.exp(0.5 * tilt * places + bow * (1.0 / 3.0 - places**2))


def _told(errors: np.ndarray, gains: np.ndarray) -> float:
    """PSNR in dB, up to a constant, where the spans have these squared errors, and these factors on their gains."""
    return float(-10.0 * np.log10(max(float(errors @ gains**2), 1e-30)))
