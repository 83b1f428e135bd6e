"""A calibration in words."""

from __future__ import annotations

from ..schedules.calibration import Calibration, Expert

Facts = list[tuple[str, str]]


def describe(found: Calibration) -> Facts:
    """What was measured, how well, and what to mind, as (name, value)."""
    about = {"magcache": _ratios, "teacache": _fit}[found.method]
    facts = [("trajectories", str(found.runs))]
    for name, expert in found.experts.items():
        place = f"{name} " if len(found.experts) > 1 else ""
        facts += [(place + key, value) for key, value in about(expert)]
        facts += [(f"{place}note", expert.note)] if expert.note else []
    return facts


def _ratios(expert: Expert) -> Facts:
    q = expert.quality
    ratios = f"{q['low']:.4f} to {q['high']:.4f}, at most {q['spread']:.4f} between the runs"
    return [("branches", ", ".join(expert.branches)), ("ratios", ratios)]


def _fit(expert: Expert) -> Facts:
    q = expert.quality
    fit = f"R² {q['r2']:.2f}, off by {q['error']:.3f} where the output changes by {q['mean']:.3f} on average"
    return [("polynomial", f"degree {q['degree']:.0f} through {q['points']:.0f} points"), ("fit", fit)]
