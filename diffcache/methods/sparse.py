"""DiffSparse: how many tokens each module computes at each step was learned for one model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from ..errors import ScheduleFileError
from ..hooks.modules import unit_kinds
from ..hooks.recipe import Recipe
from ..predictors import Taylor
from ..schedules import NEVER, Schedule
from ..schedules.calibration import Calibration, Expert
from ..schedules.selectors import SCORES, Selector
from ..schedules.sparsity import KeepTable, Tabled
from .base import MethodConfig
from .calibrated import STEPS, CalibratedConfig
from .checks import check_as_it_is

#: site -> order of the polynomial that stands in for what is not computed
ORDERS = {"output": 1, "token": 0}


@dataclass(frozen=True, kw_only=True)
class DiffSparseConfig(CalibratedConfig):
    """DiffSparse (arXiv 2604.03674): a learned share of the tokens for each step and module, under a budget.

    The schedule file holds the table, and how tokens are ranked. Between what is computed the denoiser's output is
    extrapolated token by token, and a step of which nothing is computed does not call the denoiser (site ``output``,
    ours); or every module keeps its last results (site ``token``, as in the paper): ``diffcache calibrate`` chooses.

    Memory of one branch: over attention and feed-forward modules the sum of ``numel(results) * element_size``, and of
    ``numel(keys) + numel(values)`` of each attention among the tokens, and the hidden stream; with site ``output``
    ``2 * numel(output) * element_size`` besides, and nothing but these where no step is partial.

    Args:
        schedule: schedule file that ``diffcache calibrate`` wrote.
    """

    method: ClassVar[str] = "diffsparse"
    summary: ClassVar[str] = "a learned share of the tokens for each step and module (DiffSparse)"
    numbers: ClassVar[dict[str, tuple[int | None, ...]]] = {"keep": (STEPS, None)}

    warmup: int = 1
    cooldown: int = 0
    max_skip: int = NEVER

    def validate(self) -> None:
        super().validate()
        check_as_it_is(self)

    def recipe(self) -> Recipe:
        if self.needs_calibration:
            raise self.uncalibrated("schedule", "learned table", (), "the shipped file of an embedded model")
        if self.schedule is None:
            return sparse_recipe(self, "output", Selector())
        known = self._read()
        facts = next(iter(known.experts.values())).facts
        recipe = sparse_recipe(self, facts["site"], Selector(**facts["score"]))
        return with_tables(
            replace(recipe, calibration=known),
            lambda name: table_of(known.expert(name), known.source),
            admit=known.check_steps,
        )

    def _read(self) -> Calibration:
        known = super()._read()
        for name, expert in known.experts.items():
            if not _sound(expert):
                raise ScheduleFileError(f"{self.schedule}: damaged: the table of {name} is not right")
        return known


def sparse_recipe(config: MethodConfig, site: str, selector: Selector) -> Recipe:
    """Without a table: computes every step.

    Args:
        config: of the method.
        site: ``output`` or ``token``.
        selector: how tokens are ranked.
    """
    return Recipe(
        config.method,
        config,
        site,
        lambda: Schedule(max_skip=0),
        Taylor(ORDERS[site]),
        limit=NEVER,
        kinds=unit_kinds("module"),
        selector=selector,
        keep=lambda offset, depth, kind: 1.0,
    )


def with_tables(
    recipe: Recipe, tables: Callable[[str], KeepTable], admit: Callable[[str, int], None] | None = None
) -> Recipe:
    """The same under tables.

    Args:
        recipe: of :func:`sparse_recipe`; its configuration has warmup, cooldown and max_skip.
        tables: name of a denoiser -> its table.
        admit: (name, steps) -> raises where the table does not fit.
    """

    def scheduled(name: str) -> Tabled:
        config = recipe.config
        made = Tabled(tables(name), config.warmup, config.cooldown, config.max_skip)
        made.admit = None if admit is None else partial(admit, name)
        return made

    return replace(recipe, calibrated=scheduled, tabled=tables)


def _sound(expert: Expert) -> bool:
    """Whether there is a share for each module, and what goes with it."""
    facts, keep = expert.facts, expert.numbers["keep"]
    try:
        shaped = keep.shape[1] == len(facts["sublayers"]) and len(facts["timesteps"]) in (0, len(keep))
        ranged = bool(((keep >= 0) & (keep <= 1)).all()) and bool((keep[0] == 1).all())
        return shaped and ranged and facts["site"] in ORDERS and Selector(**facts["score"]).score in SCORES
    except (KeyError, TypeError):
        return False


def table_of(expert: Expert, source: str) -> KeepTable:
    """What a calibration found for one denoiser."""
    return KeepTable(
        units=tuple(expert.facts["sublayers"]),
        keep=tuple(map(tuple, expert.numbers["keep"].tolist())),
        timesteps=tuple(expert.facts["timesteps"]),
        branches=len(expert.branches),
        folded=expert.facts["folded"],
        source=source,
    )
