"""Site ``token``: partial steps. Some tokens are recomputed through every block, the others keep what they had.

Nothing of a model's own code is rewritten: its blocks run as they are, and their attention and feed-forward modules are
called with the rows of the chosen tokens (see :mod:`.token_passes`). Where the tokens are in each module's arguments is
learned from one pass and proved by another, in the first step that is computed; a module that mixes tokens (a
convolution, linear attention) is computed in full at partial steps, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from diffusers.hooks import ModelHook
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..kernels import counting
from ..schedules.sparsity import count_tokens
from .again import repeatable
from .anatomy import find_block_lists, inspect_denoiser
from .attach import HOOK_NAME, attach, detach
from .cache import Moment
from .finite import FiniteOutlook
from .grid import Grid
from .modules import Unit
from .outputs import tensors_in_order
from .packed import Broken
from .recipe import Recipe
from .sites import Run, Site
from .token_cache import TokenCache
from .token_passes import UNREACHED, Forward, FullPass, TokenPass
from .token_teacher import Known, Teacher, feeder_name, refusal

_UNIT_NAME = f"{HOOK_NAME}_token"
_BLOCK_NAME = f"{HOOK_NAME}_block"
#: classes that cannot be run on some of their tokens, as the first computed step of a tiny one has shown
_WITHOUT = {
    "Cosmos3OmniTransformer": "its hidden states are packed without a batch",
    "ErnieImageTransformer2DModel": "its tokens come before its batch",
    "RFD4ProteinaTransformer": "its attention is biased by pairs of residues",
}


class TokenSite(Site):
    """Partial steps.

    Args:
        model: the denoiser.
        units: its attention and feed-forward modules.
        recipe: with a selector, and the share of tokens that each unit computes.
    """

    traced = False

    def __init__(self, model: nn.Module, units: Sequence[Unit], recipe: Recipe) -> None:
        self.units, self.recipe, self._model = units, recipe, model
        if recipe.table is not None:
            recipe.table.check_units([unit.name for unit in units])
        if type(model).__name__ in _WITHOUT:
            raise refusal(model, _WITHOUT[type(model).__name__])
        self.now: TokenPass | None = None
        #: (name of a unit or feeder, its forward) -> what is called for it; whoever times units sets it
        self.around: Callable[[str, Forward], Forward] | None = None
        self._lists = {block: name for name, blocks in find_block_lists(model).items() for block in blocks}
        self._layers = {unit.name: index for index, unit in _layers(units)}
        self._teacher = Teacher(model, units, self._lists, self._within, recipe.layout == "ranked")
        self._lessons: dict[Any, Known] = {}
        self._share = 0.0
        #: whether blocks run on packed rows where that is proved; else modules do, one by one
        self.packs = True

    def cache(self) -> TokenCache:
        return TokenCache(self.recipe)

    # -- running the model -----------------------------------------------------------------------------------------

    def compute(self, run: Run, cache: TokenCache, moment: Moment) -> Any:
        form = _form(run)
        known = self._lessons.get(form)
        again = repeatable(run)
        full = FullPass(cache.memories, known.units if known is not None else {}, self._lists)
        result = self._within(full, run)
        with torch.no_grad():
            if known is None:
                known = self._teacher.glance(full)
            if known is None:
                known = self._lessons[form] = self._teacher.learn(again, full, result)
            cache.renew(full.entries[self._lists[known.start]], moment.step)
        cache.lessons = known.units
        if self.recipe.selector.bonus and cache.grid is None:
            cache.grid = self._grid(result, len(cache.age))
        cache.pending = FiniteOutlook(cache, result, len(moment.ahead))
        return result

    def _grid(self, result: Any, tokens: int) -> tuple[int, int]:
        """Rows and columns of a frame's tokens.

        Raises:
            UnsupportedModelError: the denoiser returns no picture with a window for each token.
        """
        try:
            output = tensors_in_order(result)[0]
            *_, rows, columns = Grid.of(inspect_denoiser(self._model), output, tokens).shape(output)
        except (UnsupportedModelError, ValueError) as error:
            raise UnsupportedModelError(
                f"bonus: {self.recipe.selector.bonus} needs rows and columns of tokens, must be 0 for "
                f"{type(self._model).__name__}: it returns no picture of {tokens} tokens"
            ) from error
        return rows, columns

    def predict(self, run: Run, cache: TokenCache, moment: Moment, kinds: frozenset[str]) -> Any:
        result, chosen = self.recompute(run, cache, moment)
        if len(chosen):
            cache.pending = FiniteOutlook(cache, result, 0)
        return result

    def recompute(self, run: Run, cache: TokenCache, moment: Moment) -> tuple[Any, Tensor]:
        """The result of a partial pass, and the tokens that went through every unit which computes any."""
        form = _form(run)
        known = self._lessons[form]
        counts = self._counts(cache, moment)
        select = partial(cache.select, least=min(counts, default=0), counts=counts)
        now = known.partial(cache.memories, select, self._counter(cache, moment), self.packs)
        now.around = self.around
        try:
            with torch.no_grad(), counting() as fallbacks:
                result = self._within(now, run)
                now.end()
            cache.slow.update(fallbacks)
            cache.slow.update({("gather_norm", reason): count for reason, count in now.unfused.items()})
            cache.slow.update({("project_epilogue", reason): count for reason, count in now.unformed.items()})
        except Broken as error:
            # What ran is not to be trusted: this step is computed in full, and the next ones module by module.
            self._lessons[form] = replace(known, blocks={}, unpacked=str(error))
            self._share = 1.0
            return self.compute(repeatable(run), cache, moment), self._everything(cache)
        self._share = now.rows / max(now.all_rows, 1)
        return result, cache.chosen

    def _everything(self, cache: TokenCache) -> Tensor:
        cache.chosen = torch.arange(len(cache.age), device=cache.age.device)
        return cache.chosen

    def idle(self, cache: TokenCache, moment: Moment) -> bool:
        """Whether no unit would compute any token at this step; counted as such."""
        idle = not self._counts(cache, moment)
        if idle:
            self._share = 0.0
        return idle

    def _counts(self, cache: TokenCache, moment: Moment) -> list[int]:
        """Tokens that each unit computes, without those that compute none."""
        count = self._counter(cache, moment)
        return [c for c in (count(u.name, self._layers[u.name], u.kind) for u in self.units) if c > 0]

    def _within(self, now: TokenPass, run: Run) -> Any:
        before, self.now = self.now, now
        try:
            return run()
        finally:
            self.now = before

    def _counter(self, cache: TokenCache, moment: Moment) -> Callable[[str, int, str], int]:
        """(name, layer, kind) -> how many tokens a unit computes at a step; a share above 0 is at least one."""
        tokens, table, offset = len(cache.age), self.recipe.table, moment.step - cache.full
        if table is not None:
            # a module that feeds a unit goes along with it
            return lambda name, layer, kind: count_tokens(table.share(moment.step, name.partition(" ")[0]), tokens)

        def count(name: str, layer: int, kind: str) -> int:
            share = self.recipe.keep(offset, layer / max(self.layers - 1, 1), kind)
            return min(max(round(share * tokens), 1), tokens) if share > 0.0 else 0

        return count

    @property
    def layers(self) -> int:
        """Blocks that have units."""
        return max(self._layers.values()) + 1

    @property
    def whole(self) -> dict[str, str]:
        """Units that are computed in full at partial steps, and why; known once a step was computed."""
        return {n: le.whole for known in self._lessons.values() for (n, _), le in known.units.items() if le.whole}

    @property
    def unpacked(self) -> dict[str, str]:
        """Blocks whose norms and sums are computed for all tokens, and why (``""``: all of them)."""
        found = {}
        for known in self._lessons.values():
            found |= {"": known.unpacked} if known.unpacked else {}
            found |= {name: block.whole for (name, _), block in known.blocks.items() if block.whole}
        return found

    @property
    def unfused(self) -> dict[str, str]:
        """Blocks on packed rows whose norms are their own, and why."""
        blocks = (item for known in self._lessons.values() for item in known.blocks.items())
        return {name: block.unfused for (name, _), block in blocks if block.unfused and not block.whole}

    @property
    def unformed(self) -> dict[str, str | None]:
        """Attentions among the tokens: why they run as they are written; None where kernel P is between their parts."""
        lessons = (item for known in self._lessons.values() for item in known.units.items())
        return {name: lesson.unformed for (name, _), lesson in lessons if lesson.mixes and not lesson.whole}

    @property
    def ways(self) -> dict[str, tuple[str, str | None]]:
        """How each block that tokens reach runs at partial steps, and why not in a cheaper way.

        ``kernels``: its norms are kernels G and F; ``rows``: it runs on packed rows; ``modules``: one by one on rows.
        """
        found: dict[str, tuple[str, str | None]] = {}
        for known in self._lessons.values():
            if known.unpacked:
                reached = (name for (name, _), lesson in known.units.items() if lesson.whole != UNREACHED)
                found |= {block_of(name): ("modules", known.unpacked) for name in reached}
            for (name, _), block in known.blocks.items():
                best = ("kernels", None) if block.sources else ("rows", block.unfused)
                found[name] = ("modules", block.whole) if block.whole else best
        return found

    # -- the rest of a site ----------------------------------------------------------------------------------------

    def hindrance(self, cache: TokenCache, step: int) -> str | None:
        if not all(memory.intact for memory in cache.memories.values()):
            cache.forget()
            return "a stored result was written to by the model"
        return super().hindrance(cache, step)

    def share(self, kinds: frozenset[str]) -> float:
        return self._share

    def partial(self, kinds: frozenset[str]) -> bool:
        return self._share > 0.0

    def install(self, model: nn.Module) -> None:
        units = {unit.module for unit in self.units}
        for name, blocks in find_block_lists(model).items():
            for index, block in enumerate(blocks):
                if index == 0 or block not in units:
                    whole = None if block in units else f"{name}.{index}"
                    attach(block, _BlockHook(self, index == 0, whole), _BLOCK_NAME)
        for unit in self.units:
            layer = self._layers[unit.name]
            attach(unit.module, _TokenHook(self, unit.name, layer, unit.kind, False), _UNIT_NAME)
            for index, feeder in enumerate(unit.feeders):
                attach(feeder, _TokenHook(self, feeder_name(unit, index), layer, unit.kind, True), _UNIT_NAME)

    def uninstall(self, model: nn.Module) -> None:
        for unit in self.units:
            for module in (unit.module, *unit.feeders):
                detach(module, _UNIT_NAME)
        for block in self._lists:  # last as they came first: one may be a unit itself
            detach(block, _BLOCK_NAME)


def _layers(units: Sequence[Unit]) -> Iterator[tuple[int, Unit]]:
    """Each unit with the number of its block."""
    blocks: dict[str, int] = {}
    for unit in units:
        yield blocks.setdefault(block_of(unit.name), len(blocks)), unit


def block_of(name: str) -> str:
    """Name of the block that a module is in."""
    return re.match(r".*?\.\d+", name).group()


def _form(run: Run) -> Any:
    """Equal for calls whose arguments have the same shapes."""
    return tuple((t.shape, t.dtype) for t in tensors_in_order([*run.args, run.keywords]))


class _TokenHook(ModelHook):
    """On a unit, or on a module whose result only the unit uses."""

    def __init__(self, site: TokenSite, name: str, layer: int, kind: str, feeds: bool) -> None:
        super().__init__()
        self.site, self.what = site, (name, layer, kind, feeds)

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        now, forward = self.site.now, self.fn_ref.original_forward
        if now is None:
            return forward(*args, **kwargs)
        if self.site.around is not None:
            forward = self.site.around(self.what[0], forward)
        return now.run(*self.what, forward, args, kwargs)


class _BlockHook(ModelHook):
    """On a block.

    Args:
        site: the site.
        first: whether it is the first of its list.
        name: its name; None where it is a unit itself.
    """

    def __init__(self, site: TokenSite, first: bool, name: str | None) -> None:
        super().__init__()
        self.site, self.first, self.name = site, first, name

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        now, forward = self.site.now, self.fn_ref.original_forward
        if now is not None and self.first:
            args, kwargs = now.entry(module, args, kwargs)
        if now is None or self.name is None:
            return forward(*args, **kwargs)
        return now.run_block(self.name, forward, args, kwargs)
