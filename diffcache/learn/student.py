"""The student of DiffSparse: a run under a table in which it is seen what each cell gains by computing more or less.

Every unit is computed for all tokens, and what is not in the table is mixed away: ``out_i = m_i fresh_i + (1 - m_i)
held_i``, keys and values likewise. So the gain of tokens that were not chosen is known, too: ``u_i = <dL/d out_i,
fresh_i - held_i>``, and since the chosen sets are nested ``G_s = sum_(r < K_s) u_(r)`` is the gradient of the loss by
the choice of level s. That is a straight-through estimator as in the paper, which does not give the form of its own.

The gradient of a step's output is taken from the end of the same run: the sampler and the steps that follow multiply it
by one measured number (ours), so that memory is that of one step, and errors of several steps that add up are seen to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..hooks.again import repeatable
from ..hooks.blend import BlendPass, Value
from ..hooks.cache import Moment
from ..hooks.forecast import Forecast
from ..hooks.modules import Unit, find_units, unit_kinds
from ..hooks.outputs import flatten, tensors_in_order
from ..hooks.recipe import Recipe
from ..hooks.selection import Selection, in_order
from ..hooks.sites import Run
from ..hooks.sparse import SparseForecast, SparseSite
from ..hooks.tokens import TokenCache, TokenSite
from ..methods.sparse import ORDERS
from ..pipeline import accelerated, handle_of
from ..schedules.sparsity import count_tokens
from .course import Table
from .decoding import decoded, direction
from .effects import Effects
from .trials import Trials, digest
from .watching import final, heard, sampled
from .work import Floats


@dataclass(frozen=True)
class Seeds:
    """Gradient of the loss by what the denoiser returned.

    Attributes:
        error: by the final sample, ``[batch, ...]``.
        shares: of each conditioning in what the sampler is given.
        reach: of each step, how much the final sample moves with it; 0 where nothing is computed.
        folded: whether the conditionings are halves of one batch.
    """

    error: Tensor
    shares: Sequence[float]
    reach: Sequence[float]
    folded: bool

    def at(self, step: int, branch: int, like: Tensor) -> Tensor | None:
        """For one call; None where it is not known."""
        if self.folded:
            whole = torch.cat([share * self.error for share in self.shares])
        else:
            whole = self.shares[min(branch, len(self.shares) - 1)] * self.error
        return None if whole.shape != like.shape else (self.reach[step] * whole).to(like)


class StudentTokens(TokenSite):
    """Site ``token``, blended.

    Args:
        model, units, recipe: see :class:`~diffcache.hooks.tokens.TokenSite`.
        seeds: where gradients begin.
        first: step of the trajectory at which this denoiser's part begins.
        levels: shares of the tokens, ascending.

    Attributes:
        gains: step of the trajectory -> ``[units + 1, levels]``, first-order change of the loss by the level; the last
            row is what the result of so many tokens gains over its forecast.
        forecast: what stands in for the result of tokens that are left out, where something does.
    """

    def __init__(
        self,
        model: nn.Module,
        units: Sequence[Unit],
        recipe: Recipe,
        seeds: Seeds,
        first: int,
        levels: Sequence[float],
    ) -> None:
        super().__init__(model, units, recipe)
        self._seeds, self._first, self._levels = seeds, first, levels
        self._numbers = {unit.name: number for number, unit in enumerate(units)}
        self._held: dict[int, dict[Value, Tensor]] = {}
        self.gains: dict[int, Tensor] = {}
        self.forecast: Forecast | None = None

    def compute(self, run: Run, cache: TokenCache, moment: Moment) -> Any:
        again = repeatable(run)
        if not cache.ready:
            super().compute(repeatable(run), cache, moment)  # where the tokens are
            return self._blended(again, cache, moment, None)
        return self._blended(again, cache, moment, len(cache.age))

    def recompute(self, run: Run, cache: TokenCache, moment: Moment) -> tuple[Any, Tensor]:
        least = min(self._counts(cache, moment), default=0)
        return self._blended(repeatable(run), cache, moment, least), cache.chosen

    def _blended(self, run: Run, cache: TokenCache, moment: Moment, least: int | None) -> Any:
        """One pass; ``least``: tokens that every unit computes, None where nothing is held yet."""
        held = self._held.get(id(cache), {})
        branch = list(self._held).index(id(cache)) if held else len(self._held)
        start = next(iter(self._lessons.values())).start
        select = in_order if least is None else partial(cache.select, least=least)
        with torch.enable_grad():
            seen = BlendPass(cache.lessons, start, held, select, self._counter(cache, moment))
            result = self._within(seen, run)
            self._learn_from(seen, tensors_in_order(result)[0], held, moment, branch)
        self._held[id(cache)] = {name: value.detach() for name, value in seen.mixed.items()}
        tensors, template = flatten(result)
        return template.rebuild([tensor.detach() for tensor in tensors])

    def _learn_from(
        self, seen: BlendPass, output: Tensor, held: Mapping[Value, Tensor], moment: Moment, branch: int
    ) -> None:
        step = self._first + moment.step
        seed = self._seeds.at(step, branch, output.detach())
        if not held or seed is None:
            return
        names = list(seen.mixed)
        grads = torch.autograd.grad((output * seed).sum(), [seen.mixed[n] for n in names], allow_unused=True)
        found = dict(zip(names, grads, strict=True))
        total = torch.zeros(len(self.units) + 1, len(self._levels), dtype=torch.float64)
        for results in (True, False):
            for name, gain in seen.gains(found, held, results).items():
                total[self._numbers[name]] += self._by_level(gain.sum(0), seen.selection)
        if self.forecast is not None and self.forecast.ready:
            change = seed * (output.detach() - self.forecast.predict(moment)[0])
            total[-1] = self._by_level(len(change) * self.forecast.grid.sums(change), seen.selection)
        self.gains[step] = self.gains[step] + total if step in self.gains else total

    def _by_level(self, gain: Tensor, selection: Selection) -> Tensor:
        """``[tokens]`` -> ``[levels]``: the sum over those that each level computes."""
        kept = [count_tokens(level, selection.tokens) for level in self._levels]
        return torch.nn.functional.pad(gain[selection.ranking].double().cumsum(0), (1, 0))[kept].cpu()


class StudentSite(SparseSite):
    """Site ``output`` with a student inside."""

    def compute(self, run: Run, cache: SparseForecast, moment: Moment) -> Any:
        self.tokens.forecast = cache
        return super().compute(run, cache, moment)

    def predict(self, run: Run, cache: SparseForecast, moment: Moment, kinds: frozenset[str]) -> Any:
        self.tokens.forecast = cache
        return super().predict(run, cache, moment, kinds)


# -- from a table to gains ---------------------------------------------------------------------------------------------


def measure_gains(trials: Trials, keep: Table, seed: int, effects: Effects, levels: Sequence[float]) -> Floats:
    """How the logarithm of the loss of one run changes with the levels of a table, to first order.

    Args:
        trials: its pipeline and dense course.
        keep: the table, ``[steps, units]``.
        seed: the run.
        effects: of each step's output on the final sample.
        levels: shares of the tokens, ascending.

    Returns:
        ``[steps, units + 1, levels]``, 0 at level 0 and where nothing is known (steps at which the denoiser is not
        called); the last row of a step is what the result of so many tokens gains over its forecast.
    """
    name = f"gains/{digest(keep)}/{seed}"
    return trials.kept.numbers(name, lambda: _gains(trials, keep, seed, effects, levels))


def _gains(trials: Trials, keep: Table, seed: int, effects: Effects, levels: Sequence[float]) -> Floats:
    seeds = _seeds(trials, keep, seed, effects)
    table = np.zeros((len(keep), keep.shape[1] + 1, len(levels)))
    trial = replace(trials.trial(keep), exact=False)
    with accelerated(trials.pipe, trial), trials.counted(f"gains {seed + 1}"):
        students = []
        for part in trials.course.parts:
            model, hook = handle_of(trials.pipe).hooks[part.name]
            units = find_units(model, "module", unit_kinds("module"))
            student = StudentTokens(model, units, hook.recipe, seeds, part.start, levels)
            hook.site.uninstall(model)
            hook.site = student
            if trials.site == "output":
                hook.site = StudentSite(model, hook.anatomy, units, hook.recipe)
                hook.site.tokens = student
            hook.site.install(model)
            students.append(student)
        trials.run(seed)
    for student in students:
        for step, gains in student.gains.items():
            table[step] = gains.numpy()
    return table


def _seeds(trials: Trials, keep: Table, seed: int, effects: Effects) -> Seeds:
    """From a run under the table: where it ends tells in which direction each step should have gone."""
    course = trials.course
    with accelerated(trials.pipe, trials.trial(keep)), sampled(trials.pipe) as seen, heard(trials.pipe) as calls:
        with trials.counted(f"where the table leads {seed + 1}"), decoded(trials.pipe) as pictures:
            found = final(trials.run(seed), seen)
    wanted = course.finals[seed]
    halves = 2 if course.folded else 1
    error, reference = ((t.chunk(2)[0] if course.folded else t) for t in (found - wanted, wanted))
    gradient = direction(trials.pipe, pictures, error, reference) if trials.loss_name == "decoded" else None
    if gradient is None:
        gradient = 2.0 * error / error.square().sum().clamp_min(1e-30)
    shares = _shares(calls, seen.outputs, course.folded) or [1.0] * halves
    active = np.flatnonzero((keep > 0).any(1)) if trials.site == "output" else np.arange(course.steps)
    return Seeds(gradient, shares, reach(effects.signed, active, ORDERS[trials.site], course.starts), course.folded)


def reach(effect: Floats, active: Sequence[int], order: int, starts: Sequence[int] = (0,)) -> Floats:
    """How much the final sample moves with the output of each active step: by itself, and by the forecasts from it.

    Args:
        effect: of each step's output on the final sample, ``[steps]``.
        active: steps at which the denoiser is called, ascending.
        order: of the forecast in between, 0 or 1.
        starts: steps at which another denoiser takes over: nothing is forecast from what was before.

    >>> reach(np.ones(4), [0, 1], 1).tolist()
    [-2.0, 6.0, 0.0, 0.0]
    """
    found = np.zeros(len(effect))
    active = [int(step) for step in active]
    for number, last in enumerate(active):
        found[last] += effect[last]
        end = active[number + 1] if number + 1 < len(active) else len(effect)
        for step in range(last + 1, end):
            slope = (step - last) / (last - active[number - 1]) if order and number and last not in starts else 0.0
            found[last] += effect[step] * (1.0 + slope)
            if slope:
                found[active[number - 1]] -= effect[step] * slope
    return found


def _shares(calls: Mapping[int, list[Tensor]], outputs: Sequence[Tensor], folded: bool) -> list[float] | None:
    """How what the sampler is given is mixed of what the denoiser returns: guidance, by least squares.

    None where it is not a mixture of them.
    """
    columns, targets = [], []
    for step, wanted in enumerate(outputs):
        found = calls.get(step, [])
        if folded and found and len(found[0]) % 2 == 0:
            found, wanted = list(found[0].chunk(2)), wanted[: len(found[0]) // 2]
        if found and all(f.shape == wanted.shape for f in found):
            columns.append(torch.stack([f.flatten() for f in found], 1).double())
            targets.append(wanted.flatten().double())
    if not columns or len({c.shape[1] for c in columns}) > 1:
        return None
    mixed, wanted = torch.cat(columns), torch.cat(targets)
    answer = torch.linalg.lstsq(mixed, wanted[:, None]).solution.flatten()
    close = (mixed @ answer - wanted).norm() <= 0.05 * wanted.norm()
    return answer.tolist() if bool(close) else None
