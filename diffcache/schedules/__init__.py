"""Pure decisions on small tensors and numbers: which steps to compute. Nothing here touches a module."""

from .adaptive import ChaoticSkipping, Guarded, streak
from .base import NEVER, Schedule
from .broadcast import Broadcast, pyramid
from .change import expected_change, relative_change, transformation_rate
from .drift import chaotic_drift, sample_drift, turning_drift
from .magnitude import MagCache, ratios, resample, skip_error
from .parallel import Parallel
from .placement import Explicit, Interval, PowerLaw, power_law
from .planned import Planned
from .published import POLYNOMIALS, RATIOS, Polynomial
from .signal import IDENTITY, EasyCache, FirstBlock, TeaCache

__all__ = [
    "IDENTITY",
    "NEVER",
    "POLYNOMIALS",
    "RATIOS",
    "Broadcast",
    "ChaoticSkipping",
    "EasyCache",
    "Explicit",
    "FirstBlock",
    "Guarded",
    "Interval",
    "MagCache",
    "Parallel",
    "Planned",
    "Polynomial",
    "PowerLaw",
    "Schedule",
    "TeaCache",
    "chaotic_drift",
    "expected_change",
    "power_law",
    "pyramid",
    "ratios",
    "relative_change",
    "resample",
    "sample_drift",
    "skip_error",
    "streak",
    "transformation_rate",
    "turning_drift",
]
