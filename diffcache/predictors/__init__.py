"""Pure tensor maths: from computed outputs to a value for now. Nothing here knows a model or a sampler."""

from .base import Fit, Horizon, Predictor, weights
from .fitted import Fitted, Pilot, Plan
from .hermite import Hermite, Heterogeneous
from .history import History
from .layout import Modality, TokenLayout
from .moments import Moments, energy, measure, measure_all, spread
from .polynomial import Taylor
from .resting import Rest
from .sample_trend import Pace, SampleFit, SampleTrend
from .scaled_hermite import ScaledHermite
from .static import Static
from .totals import Sample, Sums, Totals
from .trend import Trend

__all__ = [
    "Fit",
    "Fitted",
    "Hermite",
    "Heterogeneous",
    "History",
    "Horizon",
    "Modality",
    "Moments",
    "Pace",
    "Pilot",
    "Plan",
    "Predictor",
    "Rest",
    "Sample",
    "SampleFit",
    "SampleTrend",
    "ScaledHermite",
    "Static",
    "Sums",
    "Taylor",
    "TokenLayout",
    "Totals",
    "Trend",
    "energy",
    "measure",
    "measure_all",
    "spread",
    "weights",
]
