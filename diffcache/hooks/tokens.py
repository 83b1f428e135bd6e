"""Site ``token``: partial steps. Some tokens are recomputed through every block, the others keep what they had.

Nothing of a model's own code is rewritten: its blocks run as they are, and their attention and feed-forward modules are
called with the rows of the chosen tokens (see :mod:`.token_passes`). Where the tokens are in each module's arguments is
learned from one pass and proved by another, in the first step that is computed; a module that mixes tokens (a
convolution, linear attention) is computed in full at partial steps, too.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from diffusers.hooks import ModelHook
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..kernels import counting
from ..predictors.resting import home_of
from ..schedules.selectors import Evidence
from ..schedules.sparsity import count_tokens
from .again import close_to, compare, repeatable
from .anatomy import find_block_lists, inspect_denoiser
from .attach import HOOK_NAME, attach, detach
from .block_lessons import BlockLearningPass, settle
from .cache import Cache, Holding, Moment
from .finite import FiniteOutlook
from .grid import Grid
from .modules import Unit
from .outputs import tensors_in_order
from .packed import BlockLesson, Broken, PackedPass
from .recipe import Recipe
from .selection import Selection, Unfit
from .sites import Run, Site
from .token_passes import Call, FullPass, Lesson, Memory, ProvingPass, TokenPass

_UNIT_NAME = f"{HOOK_NAME}_token"
_BLOCK_NAME = f"{HOOK_NAME}_block"
#: classes that cannot be run on some of their tokens, as the first computed step of a tiny one has shown
_WITHOUT = {
    "Cosmos3OmniTransformer": "its hidden states are packed without a batch",
    "ErnieImageTransformer2DModel": "its tokens come before its batch",
    "RFD4ProteinaTransformer": "its attention is biased by pairs of residues",
}
# Lists whose tokens are text.
_TEXT_LIST = re.compile(r"refiner|context|text|txt|caption|perceiver", re.IGNORECASE)


@dataclass(frozen=True)
class Known:
    """What was learned of a model and a form of call.

    Attributes:
        start: the block at which the tokens enter.
        units: lessons of its units.
        blocks: lessons of its blocks; empty where they cannot run on packed rows.
        unpacked: why they cannot, or None.
    """

    start: nn.Module
    units: dict[Call, Lesson]
    blocks: dict[Call, BlockLesson] = field(default_factory=dict)
    unpacked: str | None = None


class TokenCache(Cache):
    """What a branch holds for partial steps.

    Memory: over the units the sum of ``numel(results) * element_size``, and of ``numel(keys) + numel(values)`` of each
    attention among the tokens; selector ``input`` adds the hidden stream, each selector 4 bytes a token.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        #: kernel calls that went to the torch reference on a GPU, with their reason
        self.slow: Counter[tuple[str, str]] = Counter()
        #: scores that somebody else can tell
        self.more_scores: Mapping[str, Callable[[], Tensor]] = {}
        self.forget()

    def forget(self) -> None:
        self.memories: dict[Call, Memory] = {}
        self.lessons: dict[Call, Lesson] | None = None
        self.full = -1  # last step that was computed in full
        self.age: Tensor | None = None
        self.grid: tuple[int, int] | None = None  # rows and columns of a frame's tokens, where the selector asks
        self.chosen: Tensor | None = None  # tokens that the last partial step computed
        self.seen: Tensor | None = None  # the hidden stream of each token when it was computed last
        self.pending = None

    @property
    def ready(self) -> bool:
        return self.lessons is not None

    def held(self) -> Iterator[Tensor]:
        for memory in self.memories.values():
            yield from memory.held()
        yield from (t for t in (self.age, self.seen) if t is not None)

    def holdings(self) -> Iterator[Holding]:
        return (Holding(t.numel(), home_of(t), rests=False) for t in self.held())

    def slow_kernels(self) -> Counter[str]:
        return Counter({f"{kernel}: {reason}": count for (kernel, reason), count in self.slow.items()})

    def renew(self, stream: Tensor, step: int) -> None:
        """All tokens were computed at ``step``."""
        self.full = step
        self.age = torch.zeros(stream.shape[1], device=stream.device)
        self.seen = stream.detach().clone() if self.recipe.selector.score == "input" else None

    def select(self, stream: Tensor, least: int) -> Selection:
        """Rank the tokens, and note which are computed by every unit that computes any: the first ``least``."""
        self.age += 1.0
        selection = Selection(self.recipe.selector.rank(Evidence(self.age, self._scores(stream), self.grid)))
        self.chosen = chosen = selection.rows(least)
        self.age.index_fill_(0, chosen, 0.0)
        if self.seen is not None:
            self.seen.index_copy_(1, chosen, stream.index_select(1, chosen))
        return selection

    def _scores(self, stream: Tensor) -> Mapping[str, Callable[[], Tensor]]:
        return {
            "input": lambda: (stream.float() - self.seen.float()).square_().sum(-1).sqrt_().mean(0),
            "value": lambda: self._small_values(stream.shape[1]),
            "random": lambda: torch.rand(stream.shape[1], device=stream.device),
            **self.more_scores,
        }

    def _small_values(self, tokens: int) -> Tensor:
        """``sum_heads(1 - ||v||)`` in the last attention, shifted to be positive: small values are recomputed."""
        *_, (value, place) = [
            (value, self.lessons[call].keys[number])
            for call, memory in self.memories.items()
            for number, (_, value, _) in memory.attended.items()
        ]
        size = value.narrow(place.axis, place.offset, tokens).float().norm(dim=-1)
        size = size.mean([axis for axis in range(size.dim()) if axis != place.axis])
        return size.amax() - size


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
            raise self._refusal(_WITHOUT[type(model).__name__])
        self.now: TokenPass | None = None
        self._lists = {block: name for name, blocks in find_block_lists(model).items() for block in blocks}
        self._layers = {unit.name: index for index, unit in _layers(units)}
        self._lessons: dict[Any, Known] = {}
        self._share = 0.0
        #: whether blocks run on packed rows (layout C) where that is proved; else modules do (layout B)
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
                known = self._lessons[form] = self._learn(again, full, result, cache)
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
        select = partial(cache.select, least=min(self._counts(cache, moment), default=0))
        now = self._pass(known, cache, select, self._counter(cache, moment))
        try:
            with torch.no_grad(), counting() as fallbacks:
                result = self._within(now, run)
                now.end()
            cache.slow.update(fallbacks)
        except Broken as error:
            # What ran is not to be trusted: this step is computed in full, and the next ones module by module.
            self._lessons[form] = replace(known, blocks={}, unpacked=str(error))
            self._share = 1.0
            return self.compute(repeatable(run), cache, moment), self._everything(cache)
        self._share = now.rows / max(now.all_rows, 1)
        return result, cache.chosen

    def _pass(self, known: Known, cache: TokenCache, select: Any, count: Any, **proof: Any) -> PackedPass:
        blocks = known.blocks if self.packs else {}
        return PackedPass(cache.memories, known.units, known.start, select, count, blocks=blocks, **proof)

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

    # -- learning --------------------------------------------------------------------------------------------------

    def _learn(self, run: Run, full: FullPass, result: Any, cache: TokenCache) -> Known:
        """Find out where the tokens are, and prove it on the step that was just computed.

        Raises:
            UnsupportedModelError: no unit can be run on some of its tokens.
        """
        start, stream = self._start(full)
        tokens, lessons = stream.shape[1], {}
        try:
            learning = BlockLearningPass(cache.memories, lessons, start, tokens)
            self._within(learning, run)
            errors = self._prove(lessons, start, stream, run, cache)
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
            raise self._refusal(str(error).splitlines()[0]) from error
        self._judge(lessons, errors, stream.dtype)
        if all(lesson.whole for lesson in lessons.values()):
            raise self._refusal(next(lesson.whole for lesson in lessons.values()))
        for call, lesson in lessons.items():
            held = cache.memories[call].attended
            for number in [n for n in held if lesson.whole or lesson.keys[n] is None]:
                del held[number]
        settle(learning.blocks, lessons)
        return self._prove_blocks(Known(start, lessons, learning.blocks), stream, run, result, cache)

    def _prove_blocks(self, known: Known, stream: Tensor, run: Run, result: Any, cache: TokenCache) -> Known:
        """Keep to packed rows if a pass of some tokens gives what the full pass gave."""
        if all(block.whole for block in known.blocks.values()):
            return replace(known, blocks={}, unpacked=next((b.whole for b in known.blocks.values()), "it has no block"))
        order, count = _trial(stream.shape[1], stream.device)
        now = self._pass(known, cache, lambda stream: order, lambda *unit: count, poison=True)
        try:
            found = self._within(now, run)
            now.end()
        except (Broken, Unfit, RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
            return replace(known, blocks={}, unpacked=str(error).splitlines()[0])
        same = torch.stack(compare(tensors_in_order(result), tensors_in_order(found))).tolist()
        return known if all(same) else replace(known, blocks={}, unpacked="its blocks do more than adding up results")

    def _prove(
        self, lessons: dict[Call, Lesson], start: nn.Module, stream: Tensor, run: Run, cache: TokenCache
    ) -> Mapping[Call, Tensor]:
        """Errors of each unit on some rows of the step that was just computed."""
        order, count = _trial(stream.shape[1], stream.device)
        proof = ProvingPass(cache.memories, lessons, start, lambda stream: order, lambda *unit: count)
        self._join(lessons)
        try:
            self._within(proof, run)
        except (RuntimeError, ValueError, IndexError) as error:
            # Modules that feed one unit did not agree on their rows.
            for unit in self.units:
                for lesson in self._group(lessons, unit) if unit.feeders else ():
                    lesson.whole = lesson.whole or str(error).splitlines()[0]
            proof = ProvingPass(cache.memories, lessons, start, lambda stream: order, lambda *unit: count)
            self._within(proof, run)
        return proof.errors

    def _start(self, full: FullPass) -> tuple[nn.Module, Tensor]:
        """The block at which the tokens enter, and the hidden stream there."""
        name, stream = next(
            ((n, s) for n, s in full.entries.items() if not _TEXT_LIST.search(n)), next(iter(full.entries.items()))
        )
        if stream.dim() != 3 or stream.shape[1] < 2:
            raise self._refusal(f"its hidden states of shape {tuple(stream.shape)} are no sequence of tokens")
        return next(block for block, list_name in self._lists.items() if list_name == name), stream

    def _judge(self, lessons: dict[Call, Lesson], errors: Mapping[Call, Tensor], dtype: torch.dtype) -> None:
        """Units whose rows were not what the full pass gave are computed whole."""
        calls = [call for call in errors if lessons[call].whole is None]
        if calls:
            # one host read for a model's first computed step
            found = torch.stack([errors[call] for call in calls]).tolist()
            for call, error in zip(calls, found, strict=True):
                if not error <= close_to(dtype):
                    lessons[call].whole = "a token's result depends on which others are computed"
        self._join(lessons)

    def _join(self, lessons: dict[Call, Lesson]) -> None:
        """A unit and the modules that feed it are computed on the same rows."""
        for unit in self.units:
            group = self._group(lessons, unit)
            reason = next((lesson.whole for lesson in group if lesson.whole), None)
            for lesson in group:
                lesson.whole = reason

    def _group(self, lessons: dict[Call, Lesson], unit: Unit) -> list[Lesson]:
        names = {unit.name, *(_feeder_name(unit, i) for i in range(len(unit.feeders)))}
        return [lesson for (name, _), lesson in lessons.items() if name in names]

    def _refusal(self, why: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"site token: {type(self._model).__name__} cannot be taken apart: {why}")

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

    # -- the rest of a site ----------------------------------------------------------------------------------------

    def hindrance(self, cache: TokenCache) -> str | None:
        if not all(memory.intact for memory in cache.memories.values()):
            cache.forget()
            return "a stored result was written to by the model"
        return super().hindrance(cache)

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
                attach(feeder, _TokenHook(self, _feeder_name(unit, index), layer, unit.kind, True), _UNIT_NAME)

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
        name = re.match(r".*?\.\d+", unit.name).group()
        yield blocks.setdefault(name, len(blocks)), unit


def _trial(tokens: int, device: torch.device) -> tuple[Selection, int]:
    """About half of the tokens, in no order and no number that a module which knows rows or frames could live with."""
    fit = (c for c in range(1, tokens) if math.gcd(c, tokens) == 1)
    count = min(fit, key=lambda c: (c == 1, abs(2 * c - tokens)))
    order = sorted(range(tokens), key=lambda i: i * 0.6180339887 % 1.0)
    return Selection(torch.tensor(order, device=device)), count


def _feeder_name(unit: Unit, index: int) -> str:
    return f"{unit.name} {index}"


def _form(run: Run) -> Any:
    """Equal for calls whose arguments have the same shapes."""
    return tuple((t.shape, t.dtype) for t in tensors_in_order([*run.args, run.keywords]))


class _TokenHook(ModelHook):
    """On a unit, or on a module whose result only the unit uses."""

    def __init__(self, site: TokenSite, name: str, layer: int, kind: str, feeds: bool) -> None:
        super().__init__()
        self.site, self.what = site, (name, layer, kind, feeds)

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        now = self.site.now
        if now is None:
            return self.fn_ref.original_forward(*args, **kwargs)
        return now.run(*self.what, self.fn_ref.original_forward, args, kwargs)


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
