"""One run for all modules without weights that a call of a denoiser gives the very same values, bit for bit.

Every block of a DiT works out the sinusoids of its timestep anew: some ten operations on a few numbers, in each of 28
blocks, which cost their launches and not their arithmetic. The first run of a denoiser call is watched (:mod:`.flow`):
its result must be made from its arguments and from nothing else. Its twins run in that call as ever, and what they
return must be the same bits; from the next call on they get a copy of the first one's result, as long as they get the
same tensors, which nobody has written to. The result is held until the call ends.

In doubt a module runs: in inference mode (torch does not count who writes there), under autocast, with gradients, when
compiled, while somebody watches operations, beside other people's hooks, with more arguments than one tensor, and where
its attributes are more than plain values.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.hooks import ModelHook
from torch import Tensor, nn
from torch._C import _len_torch_dispatch_stack

from .answers import ExactMemory, Verdicts
from .attach import attach, detach, foreign_hooks
from .compiled import is_compiled
from .flow import Flow, Frame
from .given import is_plain
from .keeping import OWN_NAMES
from .passes import Forward
from .watch import LEAST_OPERATIONS, REPEAT_NAME, attributes

#: calls in which a twin may run alone (a body is proved by one that skips its blocks) before its group is let alone
_MOST_ALONE = 3


class Repeats:
    """The modules of one denoiser that are twins: without weights, of one class, with equal attributes.

    Args:
        model: the denoiser.

    Attributes:
        active: whether a denoiser call is under way.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self.active = model, False
        self._twins: dict[Any, list[nn.Module]] = {}
        self._groups: list[Group] = []

    def look(self, compiled: bool = False) -> None:
        """A trajectory begins: modules may have been replaced, changed or compiled, or have got hooks of others.

        Args:
            compiled: what is called is a compiled wrapper of the model.
        """
        twins = {} if compiled or any(map(is_compiled, self._model.modules())) else _twins(self._model)
        if twins == self._twins:
            return
        self.uninstall()
        self._twins = twins
        for modules in twins.values():
            group = Group(modules)
            self._groups.append(group)
            for module in modules:
                attach(module, _TwinHook(self, group), REPEAT_NAME)

    def begin(self) -> None:
        """A denoiser call begins."""
        self.active = bool(self._groups)
        for group in self._groups:
            group.settle()

    def end(self, memory: ExactMemory, full: bool) -> None:
        """It is over: nothing is held any longer, and twins that got other values than one another are let alone.

        Args:
            memory: of the call's branch; counts what was left out.
            full: whether the whole denoiser ran.
        """
        self.active = False
        for group in tuple(self._groups):
            memory.calls += group.answered
            if not group.rest(full):
                self._groups.remove(group)
                _take_off(group)

    def uninstall(self) -> None:
        """Take the hooks off."""
        for group in self._groups:
            _take_off(group)
        self._groups, self._twins = [], {}


class Run:
    """The first run of a denoiser call: what it was given, what it returned, and how often both were written to then.

    Attributes:
        given: the only argument.
    """

    __slots__ = ("_counted", "_device", "_result", "_version", "given")

    def __init__(self, given: Tensor, result: Tensor) -> None:
        self.given, self._version, self._device = given, given._version, given.device.type
        self._result, self._counted = result, result._version

    def again(self) -> Tensor | None:
        """A copy of the result, for the model may write to it; None where another run may return something else.

        It takes the place of few operations: no call more than needed.
        """
        if (
            self.given._version != self._version
            or self._result._version != self._counted
            or _len_torch_dispatch_stack()  # who watches operations shall see them
            or torch.is_autocast_enabled(self._device)
        ):
            return None
        return self._result.clone()

    def equals(self, result: Any) -> Tensor:
        """Whether another result holds the same bits: a flag on the device."""
        mine = self._result
        if not isinstance(result, Tensor) or (result.shape, result.dtype) != (mine.shape, mine.dtype):
            return torch.zeros((), dtype=torch.bool, device=mine.device)
        return (result == mine).all()


class Group:
    """Twins, and what is known of them.

    Attributes:
        modules: the twins.
        first: the first run of the denoiser call under way, if one run is proved to stand for all.
        answered: runs that were left out in it.
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        self.modules, self.answered = modules, 0
        self.first: Run | None = None
        #: form of the argument -> whether one run stands for all; None while that is not known
        self._known: dict[Any, bool | None] = {}
        self._doubted: tuple[Any, Run] | None = None  # form and first run
        self._doubts: list[tuple[Any, Tensor]] = []
        self._verdicts: Verdicts | None = None
        self._alone = 0  # calls in a row in which no twin got what the first one had got

    def run(self, module: nn.Module, forward: Forward, given: Tensor) -> Any:
        """What ``module`` returns, with a look at it."""
        if self._doubted is not None:
            form, first = self._doubted
            if first.given is given and first.again() is not None:
                result = forward(given)
                self._doubts.append((form, first.equals(result)))
                return result
        form = given.shape, given.stride(), given.dtype, given.device
        if form in self._known:
            result = forward(given)
        else:
            result, pure = _watched(module, forward, given)
            self._known[form] = None if pure else False
        stands = self._known[form]
        if stands is not False:
            run = Run(given, result)
            self.first, self._doubted = (run, None) if stands else (None, (form, run))
        return result

    def settle(self) -> None:
        """A denoiser call begins: take note of comparisons that are done; nobody waits for them."""
        outcome = self._verdicts.read() if self._verdicts is not None else None
        if outcome is not None:
            self._verdicts = None
            for form in {form for form, _ in outcome}:
                self._known[form] = all(same for (other, _), same in outcome.items() if other == form)

    def rest(self, full: bool) -> bool:
        """It is over: hold nothing. Whether there is anything to be had from the group."""
        if full and self._doubted is not None and self._verdicts is None:
            self._alone = 0 if self._doubts else self._alone + 1
            if self._alone >= _MOST_ALONE:
                self._known[self._doubted[0]] = False  # its twins get other values, if any
        if self._doubts and self._verdicts is None:
            forms, flags = zip(*self._doubts, strict=True)
            self._verdicts = Verdicts([(form, number) for number, form in enumerate(forms)], flags)
        self.first, self._doubted, self._doubts, self.answered = None, None, [], 0
        return not self._known or any(stands is not False for stands in self._known.values())


class _TwinHook(ModelHook):
    """On each of the twins."""

    def __init__(self, repeats: Repeats, group: Group) -> None:
        super().__init__()
        self.repeats, self.group = repeats, group

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        group, first, forward = self.group, self.group.first, self.fn_ref.original_forward
        if first is not None and len(args) == 1 and args[0] is first.given and not kwargs:
            answer = first.again()
            if answer is not None:
                group.answered += 1
                return answer
        elif self.repeats.active and not kwargs and len(args) == 1 and _may_repeat(args[0]):
            return group.run(module, forward, args[0])
        return forward(*args, **kwargs)


def _take_off(group: Group) -> None:
    for module in group.modules:
        detach(module, REPEAT_NAME)


# -- what can be a twin ------------------------------------------------------------------------------------------------


def _twins(model: nn.Module) -> dict[Any, list[nn.Module]]:
    found: dict[Any, list[nn.Module]] = {}
    for module in model.modules():
        key = _likeness(module)
        if key is not None:
            found.setdefault(key, []).append(module)
    return {key: modules for key, modules in found.items() if len(modules) > 1}


def _likeness(module: nn.Module) -> Any:
    """Equal for twins; None for what has weights, parts or more than plain attributes, and for torch's own modules,
    which are one operation."""
    if module._parameters or module._buffers or module._modules or type(module).__module__.startswith("torch.nn."):
        return None
    own = [(name, value) for name, value in vars(module).items() if name not in OWN_NAMES and name != "forward"]
    if not all(is_plain(value) for _, value in own) or foreign_hooks(module):  # they are why it may have a forward
        return None
    return type(module), module.training, tuple(own)


# -- what a run was given, and what it did -----------------------------------------------------------------------------


def _may_repeat(given: Any) -> bool:
    """Whether a run with this argument may stand for others."""
    if not isinstance(given, Tensor) or given.is_inference() or given.requires_grad:
        return False
    watched = _len_torch_dispatch_stack() or torch.compiler.is_compiling()
    return not watched and not torch.is_autocast_enabled(given.device.type)


def _watched(module: nn.Module, forward: Forward, given: Tensor) -> tuple[Any, bool]:
    """A run's result, and whether it depends on the argument alone, is new, dense, and worth a copy."""
    flow, before, frame = Flow([given]), attributes(module), Frame(0)
    flow.frames.append(frame)
    with flow, flow.reads:
        result = forward(given)
    pure = (
        isinstance(result, Tensor)
        and not (frame.spoilt or flow.blind or flow.heard or result.requires_grad)
        and flow.clock >= LEAST_OPERATIONS
        and flow.is_still(result)
        and flow.born(result) > 0
        and result.is_contiguous()
        and attributes(module) == before
    )
    return result, pure
