"""Calibration: what a method needs to know about a model, measured by running it densely."""

from ..schedules.calibration import Calibration
from ..schedules.files import read_calibration, write_calibration
from .fitting import POOR, PolynomialFit, fit_polynomial
from .measuring import METHODS, calibrate, check_settings
from .summary import describe

__all__ = [
    "METHODS",
    "POOR",
    "Calibration",
    "PolynomialFit",
    "calibrate",
    "check_settings",
    "describe",
    "fit_polynomial",
    "read_calibration",
    "write_calibration",
]
