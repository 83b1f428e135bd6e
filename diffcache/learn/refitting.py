"""Weights of a plan fitted on the trajectories that the plan itself makes, towards the dense ones (ours).

A prediction is not asked for the output of the dense trajectory but for the one that leads to it: what earlier errors
have moved the sample by is taken back as far as a weighted sum can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..predictors import Plan
from ..predictors.evidence import Track, ridge, weigh
from ..schedules.motion import Motion
from ..schedules.planning import spread_out

#: shares of the way back to the dense trajectory that are tried, until predictions look like outputs
STRENGTHS = (1.0, 0.5, 0.0)
#: factor by which a prediction's variance may differ from that of the output
SPREAD = 1.5
#: share of its square sum that is added to a way from the dense trajectory: ways that nearly coincide tell little
FLAT = 1e-3


def refit(plan: Plan, made: Sequence[Sequence[Track]], dense: Sequence[Track], motion: Motion) -> Plan:
    """The plan with weights for what is really stored when it runs.

    The weights of a step change what all later ones see. How a computed output changes with its sample is taken from
    the trajectories that are known, between which it is taken to be straight.

    Args:
        plan: which steps are computed.
        made: trajectories under it, of each round with other weights.
        dense: those of the same calls, computed in full.
        motion: of the sampler.
    """
    runs = [_Run(tracks, d) for *tracks, d in zip(*made, dense, strict=True)]
    branches = [name for name, _ in dense[0].parts(0)]
    names = list(dict.fromkeys(branches))
    weights = {name: [list(rows[0])] for name, rows in plan.weights.items()}
    for run in runs:
        run.compute(0)
        run.move(motion, 0, run.stored[0])
    for step in range(1, plan.steps):
        if plan.computes(step):
            for run in runs:
                run.compute(step)
        if step in plan.starts:  # of another denoiser than the one before: nothing to predict it from
            for name in names:
                weights[name].append(list(plan.weights[name][step]))
            for run in runs:
                run.move(motion, step, run.stored[step])
            continue
        found, guesses = _fit_step(plan, step, runs, motion, branches)
        for name, row in zip(names, found, strict=True):
            weights[name].append(spread_out(row.tolist(), len(plan.before(step))))
        for run, guess in zip(runs, guesses, strict=True):
            # of a share of the tokens, here any, the output is the denoiser's own
            near = torch.lerp(guess, run.parts(run.dense, step), plan.level(step)) if plan.level(step) else guess
            run.move(motion, step, run.stored.get(step, near))
    return replace(plan, weights=weights)


def misses(plan: Plan, made: Sequence[Track], dense: Sequence[Track]) -> np.ndarray:
    """``[trajectories, steps]``: the relative errors (RMS over RMS, the worst sample) of the predictions under a plan.

    Where the trajectories have predicted, it is that against the dense ones.
    """
    found = np.zeros((len(made), plan.steps))
    for errors, track, whole in zip(found, made, dense, strict=True):
        for step in range(1, plan.steps):
            history = plan.before(step)
            if not history:
                continue
            rows = {b: [seen[s] for s in history] for b, seen in track.outputs.items()}
            for branch, row in rows.items():
                weights = plan.weights[branch][step]
                guess = sum(w * value for w, value in zip(weights, row))
                if track.sampled:
                    guess = guess + weights[-1] * track.samples[history[0]]
                truth = (track if step in track.outputs[branch] else whole).outputs[branch][step]
                errors[step] = max(errors[step], float(((guess - truth).norm(dim=1) / truth.norm(dim=1)).max()))
    return found


def surprises(plan: Plan, errors: Sequence[np.ndarray], guard: float) -> list[float]:
    """Steps that the guard would compute besides the plan, a trajectory, in calls that the calibration had not seen.

    Each call is taken out in turn and held against the limits of the others.

    Args:
        plan: which steps are computed.
        errors: of each call what :func:`misses` found; two calls or more.
        guard: factor on the largest error of the others.

    Returns:
        for each segment.
    """
    looked = [s for s in plan.computed if s not in plan.starts and s + 1 < plan.steps and not plan.computes(s + 1)]
    counts = np.zeros(plan.steps)
    for left_out, own in enumerate(errors):
        limits = np.max([e.max(0) for i, e in enumerate(errors) if i != left_out], axis=0)
        counts[looked] += (own > guard * limits)[:, looked].sum(0)
    return (np.add.reduceat(counts, plan.starts) / sum(map(len, errors))).tolist()


def _fit_step(
    plan: Plan, step: int, runs: Sequence[_Run], motion: Motion, branches: Sequence[str]
) -> tuple[np.ndarray, list[Tensor]]:
    """Weights ``[branches, k]`` of a step, and what they make of each run's stored values."""
    names = list(dict.fromkeys(branches))
    rows = [run.rows(plan.before(step)) for run in runs]
    for strength in STRENGTHS:
        aims = [run.stored[step] if plan.computes(step) else run.aim(motion, step, strength) for run in runs]
        found = _fit(rows, aims, motion.push[:, step], branches)
        shares = torch.from_numpy(found[[names.index(b) for b in branches]]).float()
        guesses = [torch.einsum("pk,pkn->pn", shares, row) for row in rows]
        if plan.computes(step) or all(map(_sound, guesses, (run.parts(run.dense, step) for run in runs))):
            break
    return found, guesses


def _sound(guess: Tensor, truth: Tensor) -> bool:
    """Whether a prediction varies about as much as the output in place of which it stands: at run time one that does
    not is a collapse."""
    ratio = guess.var(1) / truth.var(1)
    return bool(((ratio < SPREAD) & (ratio > 1.0 / SPREAD)).all())


class _Run:
    """One call under the new weights, step by step.

    Attributes:
        sample: where they have led, ``[numbers]``; None if samples are not known.
        stored: outputs ``[parts, numbers]`` of the computed steps, as far as they can be told.
        samples: of these steps.
    """

    def __init__(self, made: Sequence[Track], dense: Track) -> None:
        self.made, self.dense = made, dense
        self.sample = dense.sample(0) if dense.sampled else None
        self.stored: dict[int, Tensor] = {}
        self.samples: dict[int, Tensor] = {}

    @staticmethod
    def parts(track: Track, step: int) -> Tensor:
        """``[parts, numbers]`` of an output."""
        return torch.stack([part for _, part in track.parts(step)])

    def compute(self, step: int) -> None:
        """What the denoiser gives at the sample of now."""
        if self.sample is None:
            self.stored[step] = self.parts(self.made[-1], step)
            return
        self.samples[step] = self.sample
        there, base = self.dense.sample(step), self.parts(self.dense, step)
        ways = torch.stack([track.sample(step) - there for track in self.made]).double()
        turns = torch.stack([self.parts(track, step) - base for track in self.made])
        shares = ridge((ways @ ways.T).numpy(), (ways @ (self.sample - there).double()).numpy(), FLAT)
        self.stored[step] = base + torch.einsum("r,rpn->pn", torch.from_numpy(shares).float(), turns)

    def rows(self, history: Sequence[int]) -> Tensor:
        """``[parts, k, numbers]``: what the predictions are sums of."""
        stored = torch.stack([self.stored[step] for step in history], 1)
        if self.sample is None or len(history) < 2:
            return stored
        return torch.cat([stored, self.samples[history[0]].expand(len(stored), 1, -1)], 1)

    def aim(self, motion: Motion, step: int, strength: float) -> Tensor:
        """``[parts, numbers]`` that lead to the dense trajectory's next sample, as near to its outputs as can be; with
        less than the full ``strength`` they go only a part of the way there."""
        dense = self.parts(self.dense, step)
        push = motion.push[:, step]
        if self.sample is None or not motion.known[step] or not push.any():
            return dense
        shares = torch.from_numpy(strength * push / (push @ push) * motion.hold[step]).float()
        return dense + shares[:, None] * (self.dense.sample(step) - self.sample)

    def move(self, motion: Motion, step: int, outputs: Tensor) -> None:
        """Take a step."""
        if self.sample is not None:
            push = torch.from_numpy(motion.push[:, step]).float()
            self.sample = float(motion.hold[step]) * self.sample + push @ outputs


def _fit(rows: Sequence[Tensor], aims: Sequence[Tensor], push: np.ndarray, branches: Sequence[str]) -> np.ndarray:
    """``[branches, k]``."""
    parts, k, _ = rows[0].shape
    inner, cross = np.zeros((parts * k,) * 2), np.zeros((parts * k, parts))
    for row, aim in zip(rows, aims, strict=True):
        flat = row.flatten(0, 1).double()
        inner += (flat @ flat.T).numpy()
        cross += (flat @ aim.double().T).numpy()
    return weigh(inner.reshape(parts, k, parts, k), cross.reshape(parts, k, parts, 1), push, branches)[:, :, 0]
