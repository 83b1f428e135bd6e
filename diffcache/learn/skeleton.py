"""Which steps of a trajectory are computed at all: the first stage of DiffSparse, and what matters most of it (ours).

Full steps are worth more than the sum of their cells, which no table of cells can discover. So they come first: an
exact placement under a model of the error, for several variants of that model, and then a search by the true loss.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import pairwise

import numpy as np

from ..schedules import power_law
from ..schedules.placing import Allotment, Floats, Split, Steps, neighbours, no_gaps, split_of

#: longest run of idle steps that is considered
REACH = 16
_TILTS = (0.0, 0.5, 1.0, 1.5, 2.0)
_ALPHAS = (1.0, 1.5)


def gap_errors(gram: Floats, effect: Floats, order: int, reach: int = REACH) -> Floats:
    """What the idle steps between two computed ones cost.

    The forecast errors of one gap add up, each with the effect that the step has on the final sample:
    ``||sum_(p2 < t < n) c_t (y_t - y_p2 - order (t - p2) (y_p2 - y_p1) / (p2 - p1))||^2``. They are sums of outputs, so
    their inner products are all that is needed.

    Args:
        gram: ``[steps, steps]``, inner products of the outputs.
        effect: ``[steps]``, c.
        order: of the forecast, 0 or 1.
        reach: longest gap.

    Returns:
        as :func:`~diffcache.schedules.placing.no_gaps`, at ``[p1 + 1, p2, n]``.
    """
    steps = len(gram)
    errors = no_gaps(steps)
    for last in range(steps):
        ahead = np.arange(last + 1, min(last + reach + 1, steps))
        for before in range(-1 if last == 0 else max(last - reach - 1, 0), max(last, 0)):
            weights = np.zeros((len(ahead), steps))
            weights[np.arange(len(ahead)), ahead] = 1.0
            slope = (ahead - last) / (last - before) if order and before >= 0 else np.zeros(len(ahead))
            weights[:, last] -= 1.0 + slope
            if before >= 0:
                weights[:, before] += slope
            total = np.cumsum(weights * effect[ahead, None], 0)
            cost = np.einsum("ki,ij,kj->k", total, gram, total)
            errors[before + 1, last, last + 1 : last + 2 + len(ahead)] = np.maximum([0.0, *cost], 0.0)
    return errors


def candidates(
    gram: Floats | None, effect: Floats, order: int, starts: Sequence[int], splits: Collection[Split]
) -> list[Steps]:
    """Placements that are worth a look, without repeats.

    The model of the error is right about a single gap and cannot know how gaps add up, so it is tilted towards early or
    late steps; power laws, dense early, need no model.

    Args:
        gram: as for :func:`gap_errors`; None where outputs are not known.
        effect: as for :func:`gap_errors`.
        order: of the forecast, 0 or 1.
        starts: first step of each denoiser's part: in every placement, and nothing is forecast from before it.
        splits: how the full steps may be split over the parts.
    """
    steps, most = len(effect), max(map(max, splits))
    parts = list(pairwise((*starts, steps)))
    found: list[Steps] = []
    if gram is not None:
        time = np.linspace(0.0, 1.0, steps)
        for tilt in _TILTS:
            tilted = effect * np.exp(-tilt * time)
            gaps = [gap_errors(gram[a:b, a:b], tilted[a:b], order) for a, b in parts]
            placed = Allotment(gaps, most).best(splits)
            found += [placed] if placed else []
    share = np.diff([*starts, steps]) / steps
    even = min(sorted(splits), key=lambda split: float(np.abs(np.array(split) / sum(split) - share).sum()))
    for alpha in _ALPHAS:
        law = _law(steps, sum(even), alpha, starts)
        if split_of(law, parts) not in splits:  # denoisers that do not cost the same: each by itself
            laws = zip(parts, even, strict=True)
            law = tuple(a + step for (a, b), count in laws for step in _law(b - a, count, alpha, (0,)))
        found.append(law)
    return list(dict.fromkeys(found))


def _law(steps: int, count: int, alpha: float, forced: Sequence[int]) -> Steps:
    law = sorted({*forced, *power_law(steps, count, alpha, min(3, count))})
    while len(law) > count:  # forced steps come on top: give up the ones with the closest neighbours
        law.remove(_closest(law, forced))
    return tuple(law)


def _closest(steps: Sequence[int], forced: Sequence[int]) -> int:
    free = [s for s in steps if s not in forced]
    near = {s: min(abs(s - other) for other in steps if other != s) for s in free}
    return min(free, key=lambda s: (near[s], -s))


def improve(
    steps: Steps, total: int, forced: Sequence[int], evaluate: Callable[[Steps], float], trials: int, seed: int = 0
) -> tuple[Steps, float]:
    """Coordinate search by the true loss: neighbours in random order, the first better one is taken.

    Args:
        steps: to begin with.
        total: steps of the trajectory.
        forced: steps that stay.
        evaluate: the true loss.
        trials: most evaluations.
        seed: of the order.
    """
    order = np.random.default_rng(seed)
    loss, tried = evaluate(steps), {steps}
    while trials > 0:
        fresh = [n for n in neighbours(steps, total, forced=forced) if n not in tried]
        if not fresh:
            break
        near = fresh[order.integers(len(fresh))]
        tried.add(near)
        trials -= 1
        found = evaluate(near)
        if found < loss:
            steps, loss = near, found
    return steps, loss
