"""Pure decisions on small tensors and numbers: which steps to compute. Nothing here touches a module."""

from .adaptive import ChaoticSkipping, Guarded, streak
from .base import NEVER, Schedule
from .drift import chaotic_drift, relative_drift
from .placement import Explicit, Interval, PowerLaw, power_law

__all__ = [
    "NEVER",
    "ChaoticSkipping",
    "Explicit",
    "Guarded",
    "Interval",
    "PowerLaw",
    "Schedule",
    "chaotic_drift",
    "power_law",
    "relative_drift",
    "streak",
]
