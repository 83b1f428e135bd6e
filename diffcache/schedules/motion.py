"""How a sampler moves the sample for what the denoiser gives, found from dense trajectories (ours)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..predictors.evidence import Evidence, ridge

#: share of a step's squared movement that may be left unexplained where a step is taken to be a weighted sum; noise
#: that a sampler adds, or a memory of its own, is more
UNEXPLAINED = 0.05


@dataclass(frozen=True)
class Motion:
    """``x[j + 1] = hold[j] * x[j] + sum_p push[p, j] * F[p, j]``, by least squares.

    For classifier-free guidance the ratios of the pushes are those of its scale.

    Attributes:
        push: ``[parts, steps]``; where samples are not known 1 over the number of parts.
        hold: ``[steps]``.
        known: ``[steps]``, whether a step is such a sum. The last one, behind which nothing is seen, is taken to be
            like the one before it.
    """

    push: np.ndarray
    hold: np.ndarray
    known: np.ndarray

    @staticmethod
    def of(evidence: Evidence) -> Motion:
        """From the samples before and behind each step."""
        count, steps = len(evidence.branches), evidence.steps
        push, hold, known = np.full((count, steps), 1.0 / count), np.ones(steps), np.zeros(steps, bool)
        if not evidence.sampled or steps < 3:
            return Motion(push, hold, known)
        for step in range(steps - 1):
            now, after = evidence.sample(step), evidence.sample(step + 1)
            rows = [*(evidence.output(part, step) for part in range(count)), now]
            found = ridge(evidence.gram[np.ix_(rows, rows)], evidence.gram[rows, after], 1e-10)
            push[:, step], hold[step] = found[:count], found[count]
            left, moved = (_square(evidence, [*rows, after], [*w, -1.0]) for w in (found, [0.0] * count + [1.0]))
            known[step] = left <= UNEXPLAINED * moved
        push[:, -1], hold[-1], known[-1] = push[:, -2], hold[-2], known[-2]
        return Motion(push, hold, known)


def _square(evidence: Evidence, columns: list[int], weights: list[float]) -> float:
    """Square sum of a weighted sum of columns."""
    return float(np.asarray(weights) @ evidence.gram[np.ix_(columns, columns)] @ np.asarray(weights))
