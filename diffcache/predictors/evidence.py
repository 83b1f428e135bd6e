"""What dense trajectories tell about every plan at once: the inner products of all that the denoiser took and gave.

A prediction is a weighted sum of outputs and a sample, so its error at any step, from any computed steps, follows from
these inner products alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

#: numbers of an output that are looked at, evenly spread; a weight for a whole output needs no more
MOST = 16384


def thinned(value: Tensor) -> Tensor:
    """At most :data:`MOST` numbers of a tensor, fp32 on the CPU, always the same ones."""
    flat = value.detach().flatten()
    step = -(-flat.numel() // MOST)
    return flat[::step].to("cpu", torch.float32, copy=True)


@dataclass
class Track:
    """One trajectory of a denoiser, thinned.

    Attributes:
        outputs: branch -> step -> the output.
        samples: step -> the noisy sample that the denoiser was given, where it has the output's form.
    """

    outputs: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    samples: dict[int, Tensor] = field(default_factory=dict)

    def note(self, branch: str, step: int, sample: Tensor | None, outputs: Sequence[Tensor]) -> None:
        """Add what a computed step showed."""
        if sample is not None and step not in self.samples:
            self.samples[step] = thinned(sample)
        self.outputs.setdefault(branch, {})[step] = torch.cat([thinned(value) for value in outputs])

    @property
    def steps(self) -> int:
        """How many steps it has seen."""
        return max((max(seen) + 1 for seen in self.outputs.values() if seen), default=0)

    @property
    def sampled(self) -> bool:
        """Whether samples have the outputs' form."""
        return bool(self.samples)


@dataclass(frozen=True)
class Evidence:
    """Dense trajectories of one denoiser and number of steps.

    Attributes:
        branches: names.
        steps: of each trajectory.
        gram: inner products, summed over trajectories, fp64, of the columns: each branch's outputs step by step, then
            the samples step by step where there are any.
        sampled: whether there are.
    """

    branches: tuple[str, ...]
    steps: int
    gram: np.ndarray
    sampled: bool

    @staticmethod
    def of(tracks: Sequence[Track], steps: int) -> Evidence:
        """Of complete dense trajectories of ``steps`` steps."""
        branches = tuple(tracks[0].outputs)
        sampled = all(track.sampled for track in tracks)
        gram = 0.0
        for track in tracks:
            columns = [track.outputs[branch][step] for branch in branches for step in range(steps)]
            if sampled:
                columns += [track.samples[step] for step in range(steps)]
            table = torch.stack(columns).double()
            gram = gram + (table @ table.T).numpy()
        return Evidence(branches, steps, np.asarray(gram), sampled)

    def output(self, branch: int, step: int) -> int:
        """Column of an output."""
        return branch * self.steps + step

    def sample(self, step: int) -> int:
        """Column of a sample."""
        return len(self.branches) * self.steps + step

    def regressors(self, branch: int, history: Sequence[int]) -> list[int]:
        """Columns that a prediction from the computed steps ``history`` (newest first) is a sum of."""
        own = [self.output(branch, step) for step in history]
        return [*own, self.sample(history[0])] if self.sampled else own


def ridge(gram: np.ndarray, target: np.ndarray, share: float) -> np.ndarray:
    """Least-squares weights from inner products.

    Args:
        gram: ``[k, k]`` of the regressors.
        target: ``[k]`` or ``[k, m]``, of the regressors with what they shall sum to.
        share: of each regressor's square sum that is added to it.
    """
    loaded = gram + np.diag(share * gram.diagonal() + np.finfo(np.float64).tiny)
    return np.linalg.solve(loaded, target)
