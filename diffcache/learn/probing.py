"""The one-shot table: what leaving tokens of one cell stale costs, from random probes of dense runs (ours).

For a quadratic loss the cost of a stale tail is ``||J delta||^2 = E_v[(sum_tail <d(v y) / d out_r, delta_r>)^2]`` with
normal v (Gauss-Newton): one forward and one backward pass a probe give all cells and levels of a step at once, by a
cumulative sum over the ranked tokens. The gradient is cut between steps: a step's output counts with its measured
effect on the final sample (as in HarmoniCa), so memory is that of one step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..hooks.again import repeatable
from ..hooks.blend import BlendPass, Value
from ..hooks.cache import Moment
from ..hooks.modules import Unit, find_units, unit_kinds
from ..hooks.outputs import tensors_in_order
from ..hooks.recipe import Recipe
from ..hooks.selection import in_order
from ..hooks.sites import Run
from ..hooks.token_cache import TokenCache
from ..hooks.tokens import TokenSite
from ..pipeline import accelerated, handle_of
from ..schedules.sparsity import count_tokens
from .measuring import Listening
from .trials import Trials

Floats = NDArray[np.float64]
#: ages that are told apart; older counts like the oldest
AGES = 4


class ProbeSite(TokenSite):
    """Runs every step densely and probes what its stale cells would have cost.

    Args:
        model, units, recipe: see :class:`~diffcache.hooks.tokens.TokenSite`.
        probes: random directions a step.
        levels: shares of the tokens, ascending.

    Attributes:
        costs: step of the segment -> ``[units, ages, levels]``, summed over probes and branches.
        counts: step -> how many probes and samples.
    """

    def __init__(
        self, model: nn.Module, units: Sequence[Unit], recipe: Recipe, probes: int, levels: Sequence[float]
    ) -> None:
        super().__init__(model, units, recipe)
        self._probes, self._levels = probes, levels
        self._numbers = {unit.name: number for number, unit in enumerate(units)}
        self._past: dict[int, deque[tuple[Tensor, Mapping[Value, Tensor]]]] = {}
        self.costs: dict[int, Tensor] = {}
        self.counts: dict[int, int] = {}

    def compute(self, run: Run, cache: TokenCache, moment: Moment) -> Any:
        again = repeatable(run)
        if not cache.ready:
            super().compute(repeatable(run), cache, moment)  # where the tokens are
        lessons = cache.lessons
        start = next(iter(self._lessons.values())).start
        with torch.enable_grad():
            seen = BlendPass(lessons, start, {}, in_order, lambda *unit: 0)
            result = self._within(seen, again)
            (output,) = tensors_in_order(result)
            self._probe(seen, output, self._past.setdefault(id(cache), deque(maxlen=AGES)), moment.step)
        return result

    def _probe(self, seen: BlendPass, output: Tensor, past: deque[Any], step: int) -> None:
        names = list(seen.mixed)
        for number in range(self._probes if past else 0):
            direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1000 * step + number))
            loss = (output * direction.to(output)).sum()
            last = number + 1 == self._probes
            grads = torch.autograd.grad(loss, [seen.mixed[n] for n in names], retain_graph=not last, allow_unused=True)
            self._add(seen, dict(zip(names, grads, strict=True)), past, step)
        past.appendleft((seen.stream, seen.fresh))

    def _add(self, seen: BlendPass, grads: Mapping[Value, Tensor | None], past: deque[Any], step: int) -> None:
        costs = self.costs.setdefault(step, torch.zeros(len(self.units), AGES, len(self._levels), dtype=torch.float64))
        for age in range(AGES):
            stream, before = past[min(age, len(past) - 1)]
            order = (seen.stream - stream).float().square().sum(-1).mean(0).argsort(descending=True)
            results = seen.gains(grads, before, results=True)
            attended = seen.gains(grads, before, results=False)
            for name, gain in results.items():
                others = attended.get(name)
                others = None if others is None else others[:, order]
                costs[self._numbers[name], age] += _tails(gain[:, order], others, self._levels).cpu()
        self.counts[step] = self.counts.get(step, 0) + 1


def _tails(gain: Tensor, attended: Tensor | None, levels: Sequence[float]) -> Tensor:
    """``[batch, tokens]`` in rank order -> ``[levels]``: squared sum of what each level leaves out, mean of the batch.

    Stale keys and values are seen by the queries that are computed alone, so they count with the share of these.
    """
    kept = [count_tokens(level, gain.shape[1]) for level in levels]
    left = _left(gain, kept)
    if attended is not None:
        left = left + _left(attended, kept) * left.new_tensor(kept) / gain.shape[1]
    return left.square().mean(0)


def _left(gain: Tensor, kept: Sequence[int]) -> Tensor:
    sums = torch.nn.functional.pad(gain.double().cumsum(1), (1, 0))
    return sums[:, -1:] - sums[:, kept]


def probe_cells(trials: Trials, effects: Floats, probes: int, runs: Sequence[int], levels: Sequence[float]) -> Floats:
    """``[steps, units, ages, levels]``: cost of each cell, in squared change of the final sample; step 0 is zero.

    Args:
        trials: its pipeline and dense course.
        effects: of each step's output, ``[steps]``.
        probes: directions for each run and step.
        runs: which.
        levels: shares of the tokens, ascending.
    """
    course = trials.course
    table = np.zeros((course.steps, len(course.units), AGES, len(levels)))
    for number in runs:
        name = f"probes/{probes}/{number}"
        table += trials.kept.numbers(name, lambda n=number: _probed(trials, probes, n, levels)) / len(runs)
    return table * effects[:, None, None, None] ** 2


def _probed(trials: Trials, probes: int, number: int, levels: Sequence[float]) -> Floats:
    course = trials.course
    table = np.zeros((course.steps, len(course.units), AGES, len(levels)))
    with accelerated(trials.pipe, Listening(exact=False)), trials.counted(f"probes {number + 1}"):
        sites = {}
        for name, (model, hook) in handle_of(trials.pipe).hooks.items():
            units = find_units(model, "module", unit_kinds("module"))
            hook.site = sites[name] = ProbeSite(model, units, trials.recipe(), probes, levels)
            hook.site.install(model)
        trials.run(number)
    for part in course.parts:
        site = sites[part.name]
        for step, costs in site.costs.items():
            table[part.start + step] = costs.numpy() / site.counts[step]
    return table
