"""Calibration: what a method needs to know about a model, measured by running it."""

from ..schedules.calibration import Calibration
from ..schedules.files import read_calibration, write_calibration
from .calibrator import Calibrator
from .calibrators import CALIBRATORS, calibrate, describe, make_calibrator
from .fitting import POOR, PolynomialFit, fit_polynomial

__all__ = [
    "CALIBRATORS",
    "POOR",
    "Calibration",
    "Calibrator",
    "PolynomialFit",
    "calibrate",
    "describe",
    "fit_polynomial",
    "make_calibrator",
    "read_calibration",
    "write_calibration",
]
