"""Site ``output`` for schedules that hear the output's expected rate of change (EasyCache, arXiv 2507.02860).

The cached value is the difference of output and input; the signal is known from inputs alone, before anything runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import UnsupportedModelError
from ..predictors import TokenLayout
from ..predictors.resting import waken
from ..schedules import expected_change, transformation_rate
from .anatomy import Anatomy
from .batch import Batches
from .cache import Cache, Holding, Moment
from .forecast import Forecast
from .forms import Form, counterparts, floating
from .gradients import without_gradients
from .outputs import flatten
from .recipe import Recipe
from .rows import Rows
from .sites import Answer, Asking, Judge, OutputSite, Run


@dataclass(frozen=True)
class _Seen:
    """What a computed call showed: drivers with what they drive, and what each output has over its base; ``fresh``:
    each has one, so that the differences are nobody else's tensors; what the call returned without them."""

    forms: list[Form]
    drivers: list[Tensor]
    driven: list[Tensor]
    differences: list[Tensor]
    fresh: bool
    template: Any


class RateCache(Forecast):
    """The difference of output and input, and what the rate is measured with.

    Memory besides the history: three inputs or outputs (last computed input and output, input of the previous step).
    """

    grows = True  # after a predicted step the previous input is no longer the last computed one

    def forget(self) -> None:
        super().forget()
        self.forms: list[Form] = []
        self.rates: list[Tensor] = []
        self.computed: list[tuple[Tensor, Tensor]] = []
        self.previous: list[Tensor] = []
        self.measured: list[Holding] = []

    def held(self) -> Iterator[Tensor]:
        yield from super().held()
        yield from (tensor for pair in self.computed for tensor in pair)
        yield from (*self.previous, *self.rates)

    def holdings(self) -> Iterator[Holding]:
        yield from super().holdings()
        yield from self.measured

    def keep(self, drivers: list[Tensor], driven: list[Tensor]) -> None:
        """What the next rate is measured with, of a computed step."""
        if not self.measured:  # another form of call forgets it
            self.measured = [*(Holding.like(x, 2) for x in drivers), *map(Holding.like, driven)]
            self.measured += [Holding.scalars(len(x), x.device) for x in drivers]  # the rates
        self.previous = self.kept(drivers)
        self.computed = list(zip(self.previous, self.kept(driven), strict=True))

    def kept(self, tensors: list[Tensor]) -> list[Tensor]:
        """Copies at rest."""
        return [self.recipe.rest.keep(t) for t in tensors]


class RateSite(OutputSite, Asking):
    """Reuses output minus input while the expected change stays small.

    Of several outputs (picture and sound) each goes with its own input, and the one that is expected to change most
    decides. An output that has no counterpart among the inputs is reused as it is.
    """

    def __init__(self, anatomy: Anatomy, recipe: Recipe) -> None:
        super().__init__(anatomy, recipe)
        self.batches = Batches(anatomy, outputs=True)

    def cache(self) -> RateCache:
        return RateCache(self.recipe)

    def compute(self, run: Run, cache: RateCache, moment: Moment) -> Any:
        result = run()
        self._keep(run, result, cache, moment)
        return result

    def _keep(self, run: Run, result: Any, cache: RateCache, moment: Moment) -> None:
        with without_gradients():
            seen = self._seen(run, result, cache.forms)
            cache.template = seen.template
            cache.forms, cache.layouts = seen.forms, cache.layouts or [TokenLayout(1) for _ in seen.forms]
            if cache.computed:
                cache.rates = self._rates(seen, cache.computed)
            cache.record(seen.differences, moment, given=seen.fresh)
            cache.keep(seen.drivers, seen.driven)

    def _rates(self, seen: _Seen, before: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        now = zip(seen.drivers, seen.driven, before, strict=True)
        return [transformation_rate(self._pair(x, old_x), self._pair(v, old_v)) for x, v, (old_x, old_v) in now]

    def _pair(self, now: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """What is seen now and what has rested, with digits alike."""
        return self.recipe.rest.rounded(now), waken(before, now.device)

    def _seen(self, run: Run, result: Any, forms: list[Form]) -> _Seen:
        """What a call showed; ``forms`` are those of another one, taken over if they fit."""
        inputs, (outputs, template) = self._inputs(run), flatten(result)
        if [form.shape for form in forms] != [t.shape for t in outputs]:
            forms = [Form(t.shape, self.anatomy.layout(t).channel_dim) for t in outputs]
        bases = counterparts(self.anatomy, inputs, forms)
        driven = [o for o, base in zip(outputs, bases, strict=True) if base is not None]
        if not driven:
            driven = [outputs[0] if self._by_sample(inputs, forms) else outputs[0][None]]
        differences = [form.less(output, base) for form, output, base in zip(forms, outputs, bases, strict=True)]
        fresh = all(base is not None for base in bases)
        return _Seen(forms, self._drivers(inputs, bases, forms), driven, differences, fresh, template)

    def _drivers(self, inputs: Mapping[str, Any], bases: list[Tensor | None], forms: list[Form]) -> list[Tensor]:
        """The inputs whose change tells how far the outputs with a counterpart move; else the noisy sample."""
        found = [base for base in bases if base is not None]
        noise = floating(inputs[self.anatomy.sample])[0]
        return found or [noise if self._by_sample(inputs, forms) else noise[None]]

    def _by_sample(self, inputs: Mapping[str, Any], forms: list[Form]) -> bool:
        """Whether noise and output have a batch in common although their tokens differ; else each is taken as one."""
        noise, shape = floating(inputs[self.anatomy.sample])[0], forms[0].shape
        return noise.dim() == len(shape) > 2 and noise.shape[0] == shape[0]

    def ask(self, run: Run, cache: RateCache, moment: Moment, judge: Judge) -> Answer:
        batch, again = self.batches.of(run)
        with without_gradients():
            inputs = self._inputs(run)
            drivers = self._drivers(inputs, counterparts(self.anatomy, inputs, cache.forms), cache.forms)
            parts = zip(cache.rates, drivers, cache.previous, cache.computed, strict=True)
            signals = [
                expected_change(rate, *self._pair(x, old_x), waken(v, x.device)) for rate, x, old_x, (_, v) in parts
            ]
        moved = judge(again, batch, signals)
        if len(moved) == batch.size:
            return Answer(self.compute(run, cache, moment), 1.0, 1.0)
        rows, cost = batch.rows(moved), len(moved) / batch.size
        if moved and not batch.parted:
            (whole, _), shown = batch.prove(again, rows, lambda part: (part(), []))
            if shown is None:
                self._keep(run, whole, cache, moment)
                return Answer(whole, 1.0, 1.0 + cost)
            cost += 1.0
        result = self.predict(run, cache, moment, frozenset())
        if moved:
            result = self._compute_some(batch.part(again, rows), rows, result, cache, moment)
        cache.previous = cache.kept(drivers)
        return Answer(result, len(moved) / batch.size, cost)

    def _compute_some(self, run: Run, rows: Rows, result: Any, cache: RateCache, moment: Moment) -> Any:
        """The samples that moved by themselves, in the place of what was predicted for them."""
        part = run()
        with without_gradients():
            seen = self._seen(run, part, cache.forms)
            inputs, outputs = zip(*cache.computed, strict=True)
            before = zip(rows.cut_all(inputs), rows.cut_all(outputs), strict=True)
            rates = self._rates(seen, list(before))
            stored = ((cache.rates, rates), (inputs, seen.drivers), (outputs, seen.driven))
            if not all(rows.replace(*pair) for pair in stored) or not cache.renew(rows, seen.differences, moment):
                cache.drop()  # what is held is not theirs, and what they have does not fit
            return rows.merge(result, part)

    def predict(self, run: Run, cache: RateCache, moment: Moment, kinds: frozenset[str]) -> Any:
        with without_gradients():
            bases = counterparts(self.anatomy, self._inputs(run), cache.forms)
            parts = zip(cache.forms, cache.predict(moment), bases, strict=True)
            return cache.template.rebuild([form.onto(difference, base) for form, difference, base in parts])

    def hindrance(self, cache: Cache, step: int) -> str | None:
        return super().hindrance(cache, step) or (None if cache.rates else "too few computed steps in this branch")

    def _inputs(self, run: Run) -> dict[str, Any]:
        inputs = self.anatomy.bind(run.args, run.keywords)
        if not floating(inputs.get(self.anatomy.sample)):
            raise UnsupportedModelError(
                f"{self.recipe.name}: {self.anatomy.model_class} was called without {self.anatomy.sample}"
            )
        return inputs
