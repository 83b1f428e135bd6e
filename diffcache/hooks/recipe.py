"""A method, ready to run: what is cached, when, and with what it is predicted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from torch import Tensor

from ..predictors import Fit, Horizon, Moments, Predictor, Rest
from ..predictors.base import Slope
from ..predictors.resting import DTYPES
from ..schedules import Schedule
from ..schedules.calibration import Calibration
from ..schedules.selectors import Selector
from ..schedules.sparsity import KeepTable
from ..sizes import read_size

#: (fit, moments, slopes, coming horizons with a leading axis) -> drift of each, shape [n]; of a hosted predictor with
#: totals and arrays in place of moments and tensors
Drift = Callable[[Fit, Moments, tuple[Slope, ...], Horizon], Tensor]

SITES = ("output", "body", "block", "module")
#: of the hidden stream at partial steps: in rank order (C), or in the order of the tokens (B)
LAYOUTS = ("ranked", "dense")
AXES = ("index", "sigma", "logsnr")


@dataclass(frozen=True)
class Recipe:
    """method = site x schedule x predictor.

    Attributes:
        name: the method's name, for stats.
        config: the typed configuration that it was built from.
        site: ``output`` (the denoiser's return value), ``body`` (the residual over all blocks), ``block`` (of each) or
            ``module`` (results of attention and feed-forward modules).
        schedule: makes the schedule of one segment.
        predictor: from stored values to a value for now.
        drift: signal for schedules that plan by drift.
        axis: time axis of the predictor: step ``index``, ``sigma`` or ``logsnr``.
        limit: longest run that a predictor blends over.
        modalities: channel widths of stacked modalities; empty for one.
        signal: what the schedule hears (see :mod:`diffcache.schedules.change`), or None.
        first, last: of site ``body``, blocks before and behind it that always run.
        kinds: of sites ``block`` and ``module``, which kinds of unit are cached (see :mod:`.modules`).
        selector: of site ``token``, which tokens a partial step recomputes.
        keep: of site ``token``: (steps since the last full one, depth of the block in [0, 1], kind of module) ->
            share of the tokens that is recomputed.
        table: with a selector, the share of each unit at each step; has precedence over ``keep``.
        blend: of site ``output`` with a selector: ``k`` of ``N`` recomputed tokens are taken at the weight
            ``(k / N) ** blend``, and the rest of them from their prediction.
        calibration: what the method's numbers were measured on, or None; another model or sampler is refused.
        calibrated: with a calibration, makes the schedule of the denoiser of that name; has precedence.
        tabled: with a calibration, the table of the denoiser of that name.
        predicted: with a plan for each denoiser, the predictor of the one of that name; has precedence.
    """

    name: str
    config: Any
    site: str
    schedule: Callable[[], Schedule]
    predictor: Predictor
    drift: Drift | None = None
    axis: str = "index"
    limit: int = 1
    modalities: tuple[int, ...] = ()
    kinds: frozenset[str] = frozenset()
    signal: str | None = None
    first: int = 0
    last: int = 0
    selector: Selector | None = None
    keep: Callable[[int, float, str], float] | None = None
    blend: float = 0.0
    calibration: Calibration | None = None
    calibrated: Callable[[str], Schedule] | None = None
    table: KeepTable | None = None
    tabled: Callable[[str], KeepTable] | None = None
    predicted: Callable[[str], Predictor] | None = None

    def __reduce__(self) -> Any:
        # Every hook of ours holds one, so that this is what pickle, and torch.save of a whole model, come upon.
        raise TypeError(
            f"what {self.name} is on cannot be pickled: restore(...) it first, and accelerate the copy with the same "
            "configuration (.diffcache.config, which can be pickled)"
        )

    @cached_property
    def rest(self) -> Rest:
        """How cached values rest."""
        name = getattr(self.config, "cache_dtype", None)
        return Rest(None if name is None else DTYPES[name], getattr(self.config, "offload", False))

    @property
    def layout(self) -> str:
        """Of site ``token``, one of :data:`LAYOUTS`."""
        return getattr(self.config, "layout", LAYOUTS[0])

    @cached_property
    def budget(self) -> int | None:
        """Most bytes that may be held, or None."""
        return read_size(getattr(self.config, "memory", None))

    def of(self, expert: str) -> Recipe:
        """The recipe of the denoiser ``expert``."""
        if self.calibrated is None:
            return self
        table = self.table if self.tabled is None else self.tabled(expert)
        predictor = self.predictor if self.predicted is None else self.predicted(expert)
        return replace(self, schedule=partial(self.calibrated, expert), table=table, predictor=predictor)
