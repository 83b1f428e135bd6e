"""Measuring a method against dense sampling: fidelity and time, in one process and interleaved."""

from .metrics import Fidelity, fidelity
from .timing import Sample, generate

__all__ = ["Fidelity", "Sample", "fidelity", "generate"]
