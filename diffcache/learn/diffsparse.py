"""DiffSparse's calibration: a table of shares for every step and module, learned under a budget."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from ..errors import ConfigError
from ..methods.checks import check_choice, check_number
from ..methods.sparse import ORDERS
from ..schedules import NEVER
from ..schedules.calibration import Calibration, Expert
from ..schedules.placing import Split
from ..schedules.selectors import Selector
from .calibrator import Calibrator, Call, Facts, Progress, check_whole
from .course import Course, Table
from .effects import inner_products, measure_effects
from .kept import Kept
from .latency import in_microseconds, measure_work
from .losses import LOSSES
from .measuring import Reporter
from .merging import merge, more_steps, shared
from .probing import probe_cells
from .refining import Ground, refine
from .skeleton import Steps, candidates, improve
from .student import measure_gains
from .trials import Trials
from .work import Bill, Budget, Floats, Work

LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
_HELD_OUT = 1 / 3
#: advantages of former full steps with which tables are made
BONUSES = (0.0, 0.3, 1.0)
#: how many late full steps are shared with idle neighbours, to begin learning with
SHARED = (1, 3)
#: the table that probes give without any search by the true loss; a control
ONE_SHOT = "one-shot"
#: of what an interrupted calibration keeps
_FORM = 2


@dataclass(frozen=True)
class SparsityCalibrator(Calibrator):
    """The learned table of DiffSparse (arXiv 2604.03674): prompts or class ids are all it needs.

    Args:
        budget: of a trajectory: a share of the dense tokens in (0, 1], or measured on this machine: a speed-up (``2x``)
            or the denoiser's time (``350ms``). See :class:`~diffcache.learn.work.Budget`.
        site: what stands in for what is not computed: ``output``, the forecast of the output (ours); ``token``, the
            last results of each module (the paper's).
        loss: ``latent`` or ``decoded``, see :func:`diffcache.learn.losses.measure`.
        evaluations: sampled trajectories of the search for full steps, for each run that is searched on.
        probes: random directions for each run of the one-shot table of cells; 0 learns full steps only.
        iterations: of straight-through learning, which begins with the best table of cells; 0 leaves it out.
        age_weight, oldest: of the ranking, see :class:`~diffcache.schedules.selectors.Selector`.
    """

    method: ClassVar[str] = "diffsparse"
    measures: ClassVar[str] = "which steps are computed, and which share of its tokens every module computes at each"
    seeds: ClassVar[str] = "0,1,2,3,4,5"
    least: ClassVar[int] = 3
    #: the one-shot table alone: neither a search for full steps by the true loss nor straight-through learning
    quick: ClassVar[Mapping[str, Any]] = {"evaluations": 0, "iterations": 0}
    quick_seeds: ClassVar[str] = "0,1,2"

    budget: float | str = 0.5
    site: str = "output"
    loss: str = "latent"
    evaluations: int = 40
    probes: int = 4
    iterations: int = 3
    age_weight: float = 1.0
    oldest: int = 8

    def __post_init__(self) -> None:
        Budget.read(self.budget)
        check_choice("site", self.site, list(ORDERS))
        check_choice("loss", self.loss, LOSSES)
        for name in ("evaluations", "probes", "iterations"):
            check_whole(name, getattr(self, name), 0)
        check_number("age_weight", self.age_weight, 0, 1e6, whole=False)
        check_number("oldest", self.oldest, 0, NEVER, whole=True)

    def measure(self, pipe: Any, calls: Sequence[Call], progress: Progress | None, kept: Path | None) -> Calibration:
        if len(calls) < self.least:
            raise ConfigError(
                f"seeds: {len(calls)} given, must be at least {self.least}: some are held out to choose among tables"
            )
        selector = Selector(age_weight=self.age_weight, oldest=self.oldest)
        trials = Trials(pipe, calls, self.site, selector, self.loss, Reporter(progress))
        trials.kept = Kept(kept, [asdict(self), _identity(trials.course)])
        found = Learner(self, trials).learn()
        trials.kept.discard()
        return found

    def describe(self, expert: Expert) -> Facts:
        q, keep = expert.quality, expert.numbers["keep"]
        full, idle = int((keep.amin(1) >= 1).sum()), int((keep.amax(1) <= 0).sum())
        return [
            ("steps", f"{full} full, {len(keep) - full - idle} partial, {idle} idle"),
            ("work", _told(q["work"], expert.facts["budget"])),
            ("loss", f"{q['held_out']:.3g} on held-out seeds; {q['searched']:.3g} on those searched"),
            ("chosen", expert.facts["calibration"]["chosen"]),
            *[("partial", f"{loss:.3g}: {name}") for name, loss in expert.facts["calibration"].get("partial", [])],
        ]


@dataclass
class Learner:
    """One calibration under way: the course of its stages."""

    options: SparsityCalibrator
    trials: Trials

    def __post_init__(self) -> None:
        count = len(self.trials.calls)
        held = max(round(count * _HELD_OUT), 1)
        self.searched, self.held_out = range(count - held), range(count - held, count)
        self.course = self.trials.course
        self.budget = Budget.read(self.options.budget)
        self.tables: dict[str, Table] = {}

    def learn(self) -> Calibration:
        course = self.course
        if self.budget.unit == "ms":
            self.bill = measure_work(self.trials, LEVELS)
        else:
            lengths = tuple(part.steps for part in course.parts)
            self.bill = Bill((Work.in_tokens(LEVELS, len(course.units)),) * len(lengths), lengths)
        self.room = self.budget.of(self.bill.dense)
        best = self._skeleton(self.bill.splits(self.budget))
        if self.options.probes:
            self._cells(best)
        if self.options.iterations:
            self._refine()
        name = min(self.tables, key=lambda n: self.trials.loss(self.tables[n], self.held_out, f"{n}, held out"))
        return self._result(name)

    # -- stage 1: full steps ---------------------------------------------------------------------------------------

    def _skeleton(self, splits: Collection[Split]) -> Steps:
        """The best full steps by the true loss."""
        course, trials = self.course, self.trials
        self.effects = effects = measure_effects(trials)
        gram = inner_products(course.outputs, course.finals)
        order = ORDERS[self.options.site]
        found = candidates(gram, effects.size, order, course.starts, splits)
        evaluate = self._evaluator("full steps")
        best = min(found, key=evaluate)
        self.tables["full steps, placed"] = self.whole(best)
        best, _ = improve(best, course.steps, course.starts, evaluate, self.options.evaluations)
        self.tables["full steps, searched"] = self.whole(best)
        return best

    def _evaluator(self, label: str) -> Callable[[Steps], float]:
        return lambda steps: self.trials.loss(self.whole(steps), self.searched, label)

    def whole(self, steps: Steps) -> Table:
        """A table of full and idle steps."""
        keep = np.zeros((self.course.steps, len(self.course.units)))
        keep[list(steps)] = 1.0
        return keep

    # -- stage 2: cells --------------------------------------------------------------------------------------------

    def _cells(self, former: Steps) -> None:
        """Tables with more steps than are paid in full; some of them give up the cells that cost least."""
        course, bill = self.course, self.bill
        table = probe_cells(self.trials, self.effects.size, self.options.probes, self.searched[:2], bill.levels)
        every = tuple(range(course.steps))
        if bill.pays(self.room, every):
            self.tables[ONE_SHOT] = merge(table, bill, every, (), course.starts, self.room, 0.0)
        for count in more_steps(len(former), course.steps):
            active = self._with_more(former, count)
            if not bill.pays(self.room, active):
                continue
            for bonus in BONUSES:
                name = f"{count} steps, bonus {bonus:g}"
                keep = merge(table, bill, active, former, course.starts, self.room, bonus)
                self.tables[name] = keep
        for count in SHARED:
            keep = shared(self.whole(former), count, course.starts)
            if bill.of(keep) <= self.room * (1 + 1e-9):
                self.tables[f"{count} full steps shared with their neighbours"] = keep

    def _with_more(self, former: Steps, count: int) -> Steps:
        """Further steps go to the middle of the gaps that the model of the error says cost most."""
        steps, effect = list(former), self.effects.size
        while len(steps) < count:
            edges = [*steps, self.course.steps]
            size = {a: (b - a - 1) * effect[(a + b) // 2 if b < self.course.steps else a] for a, b in pairwise(edges)}
            start = max(size, key=size.get)
            end = edges[edges.index(start) + 1]
            steps = sorted({*steps, start + max((end - start) // 2, 1)})
        return tuple(steps)

    # -- straight-through learning ----------------------------------------------------------------------------------

    def _refine(self) -> None:
        """The best table with partial steps, or else of all, learned on."""
        trials, course = self.trials, self.course
        wakes = self.options.site == "token"
        searched = {name: trials.loss(keep, self.searched, name) for name, keep in self.tables.items()}
        partial = [name for name, keep in self.tables.items() if wakes or has_partial(keep)]
        start = min(partial or searched, key=searched.get)
        learned = refine(
            self.tables[start],
            Ground(self.bill, self.room, course.starts, wakes),
            self._gains,
            lambda keep: trials.loss(keep, self.searched, "learning"),
            lambda keep: trials.loss(keep, self.held_out, "learning, held out"),
            self.options.iterations,
        )
        for number, keep in enumerate(learned, 1):
            self.tables[f"{start}, learned {number}"] = keep

    def _gains(self, keep: Table) -> Floats:
        return np.mean([measure_gains(self.trials, keep, seed, self.effects, LEVELS) for seed in self.searched], 0)

    # -- the result ------------------------------------------------------------------------------------------------

    def _result(self, name: str) -> Calibration:
        keep, course, trials = self.tables[name], self.course, self.trials
        quality = {
            "work": self.bill.of(keep) / self.bill.dense,
            "searched": trials.loss(keep, self.searched),
            "held_out": trials.loss(keep, self.held_out),
        }
        options = self.options
        losses = {n: trials.loss(t, self.held_out) for n, t in self.tables.items()}
        # What partial steps were worth here, whichever table was taken.
        partial = sorted(((n, losses[n]) for n, t in self.tables.items() if has_partial(t)), key=lambda p: p[1])[:1]
        facts = {
            "sublayers": list(course.units),
            "folded": course.folded,
            "site": options.site,
            "score": {"score": "input", "age_weight": options.age_weight, "oldest": options.oldest},
            "levels": list(LEVELS),
            "losses": losses,
            "budget": self._spent(keep),
            "calibration": {"loss": options.loss, "runs": len(trials.calls), "chosen": name, "partial": partial},
        }
        experts = {}
        for part, work in zip(course.parts, self.bill.works, strict=True):
            rows = slice(part.start, part.start + part.steps)
            timesteps = list(course.timesteps[rows])
            numbers = {"keep": torch.from_numpy(keep[rows].copy())}
            if work.unit == "ms":
                numbers["latency_us"] = in_microseconds(work.weight)
            if ONE_SHOT in self.tables:
                numbers["one_shot"] = torch.from_numpy(self.tables[ONE_SHOT][rows].copy())
            experts[part.name] = Expert(
                part.identity, part.steps, part.branches, numbers, quality, "", {**facts, "timesteps": timesteps}
            )
        return Calibration("diffsparse", course.sampler, course.steps, len(trials.calls), experts)

    def _spent(self, keep: Table) -> dict[str, Any]:
        """The budget, and what was made of it."""
        bill = self.bill
        facts = {"unit": bill.unit, "asked": self.budget.text, "value": self.room / bill.dense}
        if bill.unit == "ms":
            facts |= {"dense": bill.dense, "spent": bill.of(keep), "device": self.course.device}
        return facts


def has_partial(keep: Table) -> bool:
    """Whether some step is neither full nor idle."""
    return bool(((keep > 0).any(1) & (keep < 1).any(1)).any())


def _told(work: float, budget: Mapping[str, Any]) -> str:
    """Work and budget in words."""
    if budget["unit"] == "tokens":
        return f"{work:.1%} of dense, {budget['value']:.1%} asked for"
    return f"{budget['spent']:.4g} of {budget['dense']:.4g} ms ({budget['device']}), {budget['asked']} asked for"


def _identity(course: Course) -> list[Any]:
    """What a calibration that was interrupted must agree with; the dense samples stand for seeds and prompts."""
    parts = [[p.name, p.identity.model, dict(p.identity.settings), p.steps, list(p.branches)] for p in course.parts]
    samples = [f"{float(sample.double().abs().sum()):.5g}" for sample in course.finals]
    return [_FORM, parts, course.sampler, list(course.timesteps), samples]
