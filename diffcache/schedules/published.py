"""Calibrations that the methods' authors published, as data. A calibration is about one checkpoint and one sampler.

Sources, all Apache-2.0: github.com/ali-vilab/TeaCache (POLYNOMIALS), github.com/Zehong-Ma/MagCache (RATIOS).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Polynomial:
    """TeaCache's rescaling of one model.

    Attributes:
        coefficients: highest power first.
        measured: what the relative L1 change was taken of. ``modulated``: the first block's modulated input, the
            signal of that name. ``embedding``: the timestep's embedding, so that every prompt decides alike; no
            schedule hears that, and such a polynomial is meaningless with the other signal.
    """

    coefficients: tuple[float, ...]
    measured: str = "modulated"


POLYNOMIALS: dict[str, Polynomial] = {
    "flux": Polynomial((4.98651651e02, -2.83781631e02, 5.58554382e01, -3.82021401e00, 2.64230861e-01)),
    "hunyuan-video": Polynomial((7.33226126e02, -4.01131952e02, 6.75869174e01, -3.14987800e00, 9.61237896e-02)),
    "ltx-video": Polynomial((2.14700694e01, -1.28016453e01, 2.31279151e00, 7.92487521e-01, 9.69274326e-03)),
    "mochi": Polynomial((-3.51241319e03, 8.11675948e02, -6.09400215e01, 2.42429681e00, 3.05291719e-03)),
    "cosmos": Polynomial((2.71156237e02, -9.19775607e01, 2.24437250e00, 2.08355751e00, 1.41776330e-01)),
    "cogvideox-2b": Polynomial(
        (-3.10658903e01, 2.54732368e01, -5.92380459e00, 1.75769064e00, -3.61568434e-03), "embedding"
    ),
    "cogvideox-5b": Polynomial(
        (-1.53880483e03, 8.43202495e02, -1.34363087e02, 7.97131516e00, -5.23162339e-02), "embedding"
    ),
    "cogvideox1.5-5b": Polynomial(
        (2.50210439e02, -1.65061612e02, 3.57804877e01, -7.81551492e-01, 3.58559703e-02), "embedding"
    ),
    "cogvideox1.5-5b-i2v": Polynomial(
        (1.22842302e02, -1.04088754e02, 2.62981677e01, -3.06009921e-01, 3.71213220e-02), "embedding"
    ),
    # Wan2.1: the embedding after its projection to the blocks' modulations, with 5 steps of warm-up.
    "wan2.1-t2v-1.3b": Polynomial(
        (-5.21862437e04, 9.23041404e03, -5.28275948e02, 1.36987616e01, -4.99875664e-02), "embedding"
    ),
    "wan2.1-t2v-14b": Polynomial(
        (-3.03318725e05, 4.90537029e04, -2.65530556e03, 5.87365115e01, -3.15583525e-01), "embedding"
    ),
    "wan2.1-i2v-480p": Polynomial(
        (2.57151496e05, -3.54229917e04, 1.40286849e03, -1.35890334e01, 1.32517977e-01), "embedding"
    ),
    "wan2.1-i2v-720p": Polynomial(
        (8.10705460e03, 2.13393892e03, -3.72934672e02, 1.66203073e01, -4.17769401e-02), "embedding"
    ),
}

# fmt: off
#: gamma of every step (28 for FLUX.1-dev, 50 for Wan2.1), the first one 1. Wan2.1's are those of the conditional
#: branch; the unconditional branch's differ by 0.01 in the second step and by less than 0.003 later.
RATIOS: dict[str, tuple[float, ...]] = {
    "flux": (
        1.0, 1.21094, 1.11719, 1.07812, 1.0625, 1.03906, 1.03125, 1.03906, 1.02344, 1.03125, 1.02344, 0.98047,
        1.01562, 1.00781, 1.0, 1.00781, 1.0, 1.00781, 1.0, 1.0, 0.99609, 0.99609, 0.98047, 0.98828, 0.96484,
        0.95703, 0.93359, 0.89062,
    ),
    "wan2.1-t2v-1.3b": (
        1.0, 1.0124, 1.00166, 0.99791, 0.99682, 0.99634, 0.99567, 0.99416, 0.99578, 0.9957, 0.99511, 0.99535,
        0.99552, 0.99541, 0.9954, 0.99489, 0.99518, 0.99484, 0.99481, 0.99415, 0.99419, 0.99396, 0.99388,
        0.99349, 0.99309, 0.9927, 0.99228, 0.99171, 0.99137, 0.99068, 0.99005, 0.98944, 0.98849, 0.98758,
        0.98644, 0.98504, 0.9836, 0.98202, 0.97977, 0.97717, 0.9741, 0.97003, 0.96538, 0.9593, 0.95086, 0.94013,
        0.92402, 0.90241, 0.86821, 0.81838,
    ),
    "wan2.1-t2v-14b": (
        1.0, 1.02504, 1.00025, 0.9985, 0.99779, 0.9966, 0.99482, 0.99467, 0.99664, 0.99434, 0.99533, 0.99468,
        0.99438, 0.99516, 0.99384, 0.99404, 0.99517, 0.99409, 0.99428, 0.99347, 0.99418, 0.99271, 0.99313,
        0.99215, 0.99218, 0.99216, 0.99163, 0.99138, 0.98982, 0.98996, 0.9887, 0.98772, 0.98767, 0.98573,
        0.98501, 0.9838, 0.98177, 0.98037, 0.97678, 0.97546, 0.97184, 0.96711, 0.96349, 0.95629, 0.94926,
        0.93964, 0.92511, 0.90693, 0.8796, 0.86111,
    ),
}
# fmt: on
