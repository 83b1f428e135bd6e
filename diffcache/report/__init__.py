"""Measuring a method against dense sampling."""

from .metrics import Fidelity, fidelity

__all__ = ["Fidelity", "fidelity"]
