"""What dense trajectories tell about every plan at once: the inner products of all that the denoiser took and gave.

A prediction is a weighted sum of outputs and a sample, so its error at any step, from any computed steps, follows from
these inner products alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

#: numbers of each row of an output that are looked at, evenly spread; a weight for a whole output needs no more
MOST = 16384


def thinned(value: Tensor) -> Tensor:
    """``[rows, at most MOST]`` numbers of a batch, fp32 on the CPU, always the same ones."""
    rows = value.detach().flatten(1) if value.dim() > 1 else value.detach()[:, None]
    return rows[:, :: -(-rows.shape[1] // MOST)].to("cpu", torch.float32, copy=True)


@dataclass
class Track:
    """One trajectory of a denoiser, thinned.

    Attributes:
        outputs: branch -> step -> ``[rows, numbers]`` of the output.
        samples: step -> the same of the noisy sample that the denoiser was given, where it has the output's form.
        halves: whether each sample is there twice: guidance in one batch, whose halves the sampler mixes.
    """

    outputs: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    samples: dict[int, Tensor] = field(default_factory=dict)
    halves: bool = True

    def note(self, branch: str, step: int, samples: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Add what a computed step showed."""
        if samples and step not in self.samples:
            self.take(step, torch.cat([thinned(value) for value in samples], 1))
        self.outputs.setdefault(branch, {})[step] = torch.cat([thinned(value) for value in outputs], 1)

    def take(self, step: int, sample: Tensor) -> None:
        """Add a sample, ``[rows, numbers]``."""
        self.samples[step] = sample
        self.halves = self.halves and len(sample) % 2 == 0 and torch.equal(*sample.chunk(2))

    @property
    def steps(self) -> int:
        """How many steps it has seen."""
        return max((max(seen) + 1 for seen in self.outputs.values() if seen), default=0)

    @property
    def sampled(self) -> bool:
        """Whether samples have the outputs' form."""
        return bool(self.samples)

    def sample(self, step: int) -> Tensor:
        """``[numbers]``: the noisy sample, once."""
        found = self.samples[step]
        return (found.chunk(2)[0] if self.halves else found).flatten()

    def parts(self, step: int) -> list[tuple[str, Tensor]]:
        """(branch, ``[numbers]``): what the sampler was given, in parts that have the sample's form."""
        size = self.sample(step).numel() if self.sampled else 0
        return [
            (branch, part)
            for branch, seen in self.outputs.items()
            for part in seen[step].reshape(-1, size or seen[step].numel())
        ]


@dataclass(frozen=True)
class Evidence:
    """Dense trajectories of one denoiser, or of several that take turns, and number of steps.

    Attributes:
        branches: of each part of what the sampler is given, the name of its branch: a branch whose batch holds both
            sides of a guidance has two parts.
        steps: of each trajectory.
        gram: inner products, summed over trajectories, fp64, of the columns: each part's outputs step by step, then
            the samples step by step where there are any.
        sampled: whether there are.
        spread: branch -> for each step the variance of its outputs, a mean over samples and trajectories.
        starts: first step of each denoiser's segment.
    """

    branches: tuple[str, ...]
    steps: int
    gram: np.ndarray
    sampled: bool
    spread: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    starts: tuple[int, ...] = (0,)

    @staticmethod
    def of(tracks: Sequence[Track], steps: int, starts: Sequence[int] = (0,)) -> Evidence:
        """Of complete dense trajectories of ``steps`` steps."""
        sampled = all(track.sampled for track in tracks)
        gram, branches = 0.0, ()
        for track in tracks:
            rows = [track.parts(step) for step in range(steps)]
            branches = tuple(name for name, _ in rows[0])
            columns = [row[part][1] for part in range(len(branches)) for row in rows]
            if sampled:
                columns += [track.sample(step) for step in range(steps)]
            table = torch.stack(columns).double()
            gram = gram + (table @ table.T).numpy()
        return Evidence(branches, steps, np.asarray(gram), sampled, _spread(tracks, branches, steps), tuple(starts))

    @property
    def segments(self) -> list[tuple[int, int]]:
        """First step of each denoiser's segment, and the first one behind it."""
        return list(pairwise((*self.starts, self.steps)))

    def segment(self, step: int) -> tuple[int, int]:
        """That of a step."""
        return next(found for found in reversed(self.segments) if found[0] <= step)

    def output(self, part: int, step: int) -> int:
        """Column of an output."""
        return part * self.steps + step

    def sample(self, step: int) -> int:
        """Column of a sample."""
        return len(self.branches) * self.steps + step

    def regressors(self, part: int, history: Sequence[int]) -> list[int]:
        """Columns that a prediction from the computed steps ``history`` (newest first) is a sum of."""
        own = [self.output(part, step) for step in history]
        return [*own, self.sample(history[0])] if self.sampled and len(history) > 1 else own

    def weights(self, history: Sequence[int], steps: Sequence[int], push: np.ndarray) -> np.ndarray:
        """``[branches, outputs and sample, steps]``: see :func:`weigh`."""
        parts = range(len(self.branches))
        rows = np.array([self.regressors(part, history) for part in parts], int)
        targets = np.array([[self.output(part, step) for step in steps] for part in parts], int)
        flat = rows.reshape(-1)
        inner = self.gram[np.ix_(flat, flat)].reshape(*rows.shape, *rows.shape)
        cross = self.gram[np.ix_(flat, targets.reshape(-1))].reshape(*rows.shape, *targets.shape)
        return weigh(inner, cross, push, self.branches)


def _spread(tracks: Sequence[Track], branches: Sequence[str], steps: int) -> dict[str, tuple[float, ...]]:
    found = {}
    for branch in dict.fromkeys(branches):
        rows = [torch.stack([track.outputs[branch][step] for step in range(steps)]) for track in tracks]
        found[branch] = tuple(torch.cat([row.var(2, correction=0) for row in rows], 1).mean(1).tolist())
    return found


#: share of a branch's own squared error in what its weights are fitted to; the rest is that of the sampler's move
OWN = 0.01
#: share of a regressor's own square sum that is added to it, so that outputs that are nearly equal do no harm
RIDGE = 1e-7


def weigh(inner: np.ndarray, cross: np.ndarray, push: np.ndarray, branches: Sequence[str]) -> np.ndarray:
    """The weights with which the sampler is moved best.

    Least squares for ``sum_p push[p] * miss[p]``, all branches at once: under guidance the errors of two branches
    partly cancel. The parts of one branch share its weights. A lone stored output is reused.

    Args:
        inner: ``[parts, k, parts, k]`` inner products of what each part's prediction is a sum of.
        cross: ``[parts, k, parts, m]`` of these with what shall come out.
        push: ``[parts]`` how far the sampler moves the sample for a unit of each; only their ratios matter.
        branches: the branch of each part.

    Returns:
        ``[branches, k, m]``.
    """
    names, (parts, k, _, m) = list(dict.fromkeys(branches)), cross.shape
    if k == 1:
        return np.ones((len(names), 1, m))
    size = np.linalg.norm(push)
    push = push / size if size > 0.0 else np.full(parts, parts**-0.5)
    metric = np.outer(push, push) + OWN * np.diag(push**2)
    member = np.array([[float(name == branch) for branch in branches] for name in names])
    gram = np.einsum("bi,cj,ij,ikjl->bkcl", member, member, metric, inner, optimize=True)
    target = np.einsum("bi,ij,ikjm->bkm", member, metric, cross, optimize=True)
    flat = len(names) * k
    return ridge(gram.reshape(flat, flat), target.reshape(flat, m), RIDGE).reshape(len(names), k, m)


def ridge(gram: np.ndarray, target: np.ndarray, share: float) -> np.ndarray:
    """Least-squares weights from inner products.

    Args:
        gram: ``[k, k]`` of the regressors.
        target: ``[k]`` or ``[k, m]``, of the regressors with what they shall sum to.
        share: of each regressor's square sum that is added to it.
    """
    loaded = gram + np.diag(share * gram.diagonal() + np.finfo(np.float64).tiny)
    return np.linalg.solve(loaded, target)
