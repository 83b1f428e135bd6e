"""Sites ``block`` and ``module``: the denoiser runs at every step, with some of its parts' results predicted.

A *unit* is one block, or one attention or feed-forward module of a block. Its value is its result as it leaves the
module: of an attention or feed-forward before the block's gate, of a block the difference to its input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffusers.hooks import ModelHook
from torch import Tensor, nn

from .attach import HOOK_NAME, attach, detach
from .cache import Moment
from .finite import FiniteOutlook
from .gradients import without_gradients
from .modules import Unit
from .ports import FeederPort, Port, traced
from .recipe import Recipe
from .sites import Run, Site
from .slots import Call, Slot, UnitCache, form_of
from .streams import Links, Passage, Visit, named_tensors, trace

_UNIT_NAME = f"{HOOK_NAME}_unit"
_FEEDER_NAME = f"{HOOK_NAME}_feeder"


@dataclass(slots=True)
class _Pass:
    """A forward pass under way: where values go to, or come from."""

    cache: UnitCache
    moment: Moment
    computing: frozenset[str] | None  # kinds that compute; None means all
    calls: dict[str, int] = field(default_factory=dict)

    def call(self, name: str) -> Call:
        """The coming call of a module; some blocks run one module for both streams."""
        return name, self.calls.get(name, 0)

    def computes(self, unit: Unit) -> bool:
        """Whether the unit's coming call is computed."""
        return self.computing is None or unit.kind in self.computing or self.call(unit.name) not in self.cache.slots


class UnitSite(Site):
    """Hooks on units; which kinds of them are predicted at a step is the schedule's choice.

    Args:
        units: from :func:`diffcache.hooks.modules.find_units`.
        recipe: its predictor must be static: one set of coefficients serves all units.

    Attributes:
        settled: whether a pass has shown which inputs the blocks' results continue.
    """

    def __init__(self, units: Sequence[Unit], recipe: Recipe) -> None:
        self.units, self.recipe = units, recipe
        self.kinds = frozenset(unit.kind for unit in units)
        self.now: _Pass | None = None
        self._links = Links()
        self.settled = False
        self._latest: tuple[Slot, Visit] | None = None  # until then, the block called last
        self._hooks: list[_UnitHook] = []
        self._feeder_hooks: list[_FeederHook] = []
        # Of compiled calls: the form of the coming one, and by form what calls look like that were seen.
        self._form: Any = None
        self._seen: dict[Any, dict[str, list[Passage]]] = {}

    def learns(self, form: Any) -> bool:
        self._form = form
        return form not in self._seen

    def cache(self) -> UnitCache:
        return UnitCache(self.recipe)

    def compute(self, run: Run, cache: UnitCache, moment: Moment) -> Any:
        result = self._run(run, _Pass(cache, moment, None))
        if not self.settled:
            self._settle(cache)
        elif self._form is not None and self._form not in self._seen and cache.spoilt is None:
            self._seen[self._form] = cache.passages()
        if moment.ahead or self.recipe.predictor.depth > 1:  # older values count in later predictions, too
            cache.pending = FiniteOutlook(cache, result, len(moment.ahead), cache.narrowed())
        return result

    def before(self, unit: Unit, streams: dict[str, Tensor]) -> None:
        """A unit's call begins."""
        if unit.residual:
            self._links.arrive(unit.module, streams)
            self._amend()

    def passage(self, visit: Visit) -> Passage:
        """The passage of a unit's call, as far as it is known by now."""
        return self._links.told(visit.block, visit.passage) if visit.streams else visit.passage

    def after(self, visit: Visit, slot: Slot) -> None:
        """A unit was called, and its results are stored."""
        if visit.streams and not self.settled:
            self._links.leave(visit)
            self._latest = slot, visit

    def _amend(self) -> None:
        """The next block shows what the results of the one before it continue."""
        if self._latest is not None:
            (slot, visit), self._latest = self._latest, None
            passage = self._links.told(visit.block, visit.passage)
            if passage != slot.passage:
                with without_gradients():
                    slot.amend(passage.added(visit.streams, visit.parts), passage)

    def _settle(self, cache: UnitCache) -> None:
        """After a first pass: what was stored by a guess that the links contradict is dropped."""
        self._amend()
        self.settled = True
        self._links.rest()
        modules = {unit.name: unit.module for unit in self.units}
        if any(self._links.told(modules[name], s.passage) != s.passage for (name, _), s in cache.slots.items()):
            cache.drop()

    def predict(self, run: Run, cache: UnitCache, moment: Moment, kinds: frozenset[str]) -> Any:
        result = self._run(run, _Pass(cache, moment, kinds))
        if kinds:
            cache.pending = FiniteOutlook(cache, result, 0, cache.narrowed())
        return result

    def _run(self, run: Run, now: _Pass) -> Any:
        before, self.now = self.now, now
        seen = self._seen.get(self._form)
        try:
            if seen is not None:
                self._open_ports(now, seen)
            result = run()
            if seen is not None:
                self._collect(now, seen)
            return result
        finally:
            self.now = before
            if seen is not None:
                self._close_ports()

    # -- inside compiled graphs ------------------------------------------------------------------------------------

    def _open_ports(self, now: _Pass, seen: Mapping[str, list[Passage]]) -> None:
        """What the coming pass takes from units in a graph, and gives them."""
        for hook in self._hooks:
            passages = seen.get(hook.unit.name, [])
            slots = [now.cache.slots.get((hook.unit.name, index)) for index in range(len(passages))]
            if now.computes(hook.unit) or None in slots:
                hook.port.take(passages)
            else:
                hook.port.give(passages, *now.cache.stored(slots, now.moment))
        for hook in self._feeder_hooks:
            if not now.computes(hook.unit) and hook.name in seen:
                hook.port.rest(now.cache.slots[hook.unit.name, 0].newest()[0], seen[hook.name])

    def _collect(self, now: _Pass, seen: Mapping[str, list[Passage]]) -> None:
        """Store what units in a graph have computed."""
        for hook in self._hooks:
            for index, tensors in enumerate(hook.port.taken):
                now.cache.put((hook.unit.name, index), tensors, seen[hook.unit.name][index], now.moment)

    def _close_ports(self) -> None:
        for hook in (*self._hooks, *self._feeder_hooks):
            hook.port.close()

    def hindrance(self, cache: UnitCache, step: int) -> str | None:
        fault = cache.fault
        if fault is not None:
            cache.drop()
            return fault
        return super().hindrance(cache, step)

    def share(self, kinds: frozenset[str]) -> float:
        return sum(unit.kind in kinds for unit in self.units) / len(self.units)

    def install(self, model: nn.Module) -> None:
        for unit in self.units:
            self._hooks.append(_UnitHook(self, unit))
            attach(unit.module, self._hooks[-1], _UNIT_NAME)
            for index, feeder in enumerate(unit.feeders):
                self._feeder_hooks.append(_FeederHook(self, unit, index))
                attach(feeder, self._feeder_hooks[-1], _FEEDER_NAME)

    def uninstall(self, model: nn.Module) -> None:
        for unit in self.units:
            detach(unit.module, _UNIT_NAME)
            for feeder in unit.feeders:
                detach(feeder, _FEEDER_NAME)
        self._hooks, self._feeder_hooks = [], []


class _UnitHook(ModelHook):
    """Stores a unit's result, or gives the predicted one in its place."""

    def __init__(self, site: UnitSite, unit: Unit) -> None:
        super().__init__()
        self.site, self.unit, self.port = site, unit, Port()

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if traced():
            return self.port.run(module, self.fn_ref.original_forward, args, kwargs, self.unit.residual)
        now = self.site.now
        if now is None:
            return self.fn_ref.original_forward(*args, **kwargs)
        name = self.unit.name  # runs for every unit: no call more than needed
        call = name, now.calls.get(name, 0)
        slot = now.cache.slots.get(call)
        streams = named_tensors(module, args, kwargs) if self.unit.residual else {}
        if now.computing is None or slot is None or now.computes(self.unit) or not slot.fits(streams):
            result = self._compute(now, call, slot, streams, args, kwargs)
        else:
            result = self._predict(now, slot, streams)
        now.calls[name] = call[1] + 1
        return result

    def _compute(
        self, now: _Pass, call: Call, slot: Slot | None, streams: dict[str, Tensor], args: Any, kwargs: Any
    ) -> Any:
        result = self._watched(now, streams, args, kwargs) if streams else self.fn_ref.original_forward(*args, **kwargs)
        # The usual case: there is nothing to find out about it.
        if slot is None or not (self.site.settled or not streams) or not slot.take(streams, result, now.moment):
            self._store(now, call, streams, result)
        return result

    def _watched(self, now: _Pass, streams: dict[str, Tensor], args: Any, kwargs: Any) -> Any:
        """The call of a block, which must not write to its streams: its value is a difference to them."""
        before = [0 if s.is_inference() else s._version for s in streams.values()]  # :func:`version`, in a call less
        if not self.site.settled:
            self.site.before(self.unit, streams)
        result = self.fn_ref.original_forward(*args, **kwargs)
        if [0 if s.is_inference() else s._version for s in streams.values()] != before:
            now.cache.spoilt = f"{type(self.unit.module).__name__} writes into its input"
        return result

    def _store(self, now: _Pass, call: Call, streams: dict[str, Tensor], result: Any) -> None:
        """Find out what a result looks like, and keep it."""
        passage, tensors = trace(self.unit.module, streams, result)
        visit = Visit(self.unit.module, streams, tensors, passage)
        passage = self.site.passage(visit)
        with without_gradients():
            slot = now.cache.put(call, passage.added(streams, tensors), passage, now.moment)
        slot.form = form_of(streams, result)
        self.site.after(visit, slot)

    def _predict(self, now: _Pass, slot: Slot, streams: dict[str, Tensor]) -> Any:
        with without_gradients():
            values = now.cache.get(slot, now.moment)
            return slot.passage.template.rebuild(slot.passage.onto(streams, values))


class _FeederHook(ModelHook):
    """A module whose result only the unit uses: at a predicted step a placeholder of its shape, with no memory."""

    def __init__(self, site: UnitSite, unit: Unit, index: int) -> None:
        super().__init__()
        self.site, self.unit, self.port = site, unit, FeederPort()
        self.name = f"{unit.name} {index}"

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if traced():
            return self.port.run(self.fn_ref.original_forward, args, kwargs)
        now = self.site.now
        if now is None:
            return self.fn_ref.original_forward(*args, **kwargs)
        call = self.name, now.calls.get(self.unit.name, 0)
        known = now.cache.feeds.get(call)
        if known is not None and not now.computes(self.unit):
            slot = now.cache.slots[now.call(self.unit.name)]
            return known.template.rebuild([slot.placeholder(shape) for shape in known.shapes])
        result = self.fn_ref.original_forward(*args, **kwargs)
        now.cache.feeds[call], _ = trace(module, {}, result)
        return result
