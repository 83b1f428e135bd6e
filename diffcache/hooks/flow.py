"""Which values of a forward pass are still: made from things that do not move from step to step, and from nothing else.

A tensor is still if it is the model's own (weights, buffers), an argument that stays the same for a whole trajectory,
or the result of an operation on still tensors alone. Everything else moves, and so does whatever cannot be seen: memory
that was not initialised (a kernel of somebody else may fill it), tensors that come from nowhere, random numbers, what
an operator made of operators returns (flex attention), and all that follows once the host has read a moving value,
because the model may take another path then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._ops import HigherOrderOperator
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.flop_counter import flop_registry

# Reads of the host that never reach the dispatcher on the CPU.
_READS = frozenset({Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__})
_SINGLE = (type(None), int, float, str, torch.dtype, torch.device)
# Operators of operators that neither write to what they are given nor tell the host a value.
_PURE = frozenset({"flex_attention"})
_UNFILLED = frozenset({"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"})


def leaves(value: Any) -> Iterator[Any]:
    """What is in tuples, lists and mappings (nested), in order; a mapping's keys as well."""
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from leaves(part)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield key
            yield from leaves(part)
    else:
        yield value


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors among :func:`leaves`. Asked for every operation: kept short."""
    found: list[Tensor] = []
    _collect(value, found)
    return found


def _collect(value: Any, found: list[Tensor]) -> None:
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, (tuple, list)):
        for part in value:
            _collect(part, found)
    elif not isinstance(value, _SINGLE) and isinstance(value, Mapping):
        for part in value.values():
            _collect(part, found)


def storage_of(tensor: Tensor) -> int | None:
    """What tells one memory from another, as long as somebody holds on to it; None where a tensor has none."""
    try:
        return tensor.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):
        return None


@dataclass
class _Memory:
    """One storage. The weak reference keeps its address from being used again."""

    reference: StorageWeakRef
    born: int
    still: bool
    written: int = 0
    moving: Tensor | None = None  # of a storage that is still in part: which of its elements move


@dataclass
class Frame:
    """A module call under way; ``spoilt`` once leaving it out would be noticed elsewhere."""

    begun: int
    spoilt: bool = False


@dataclass(frozen=True)
class _Kind:
    """What is known of an operation.

    Attributes:
        count: of its FLOPs, or None.
        whole: it is made of others and has no FLOPs of its own; it arrives so in inference mode.
        told: the host learns a value.
        random: it can draw random numbers.
    """

    count: Callable[..., int] | None
    whole: bool
    told: bool
    random: bool


@cache
def _kind(func: Any) -> _Kind:
    count = flop_registry.get(func._overloadpacket)
    told = torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags
    whole = count is None and func.has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd)
    return _Kind(count, whole, told, torch.Tag.nondeterministic_seeded in func.tags)


class Flow(TorchDispatchMode):
    """Follows every operation of one forward pass. Enter it together with :attr:`reads`.

    Args:
        still: tensors that do not move.

    Attributes:
        reads: the mode that sees what the host reads past the dispatcher.
        clock: number of operations so far.
        flops: of matrix products, convolutions and attention so far.
        blind: the host has read a moving value; nothing after it is still.
        heard: the host has read a still value: another conditioning may take another path.
        frames: module calls under way, outermost first; whoever watches puts them there.
        used: storages that still results were made from.
    """

    supports_higher_order_operators = True

    def __init__(self, still: Iterable[Tensor]) -> None:
        super().__init__()
        self.clock, self.flops = 0, 0
        self.blind = self.heard = False
        self.frames: list[Frame] = []
        self.used: set[int | None] = set()
        self.reads = _Reads(self)
        self._known: dict[int, _Memory] = {}
        for tensor in still:
            self._enrol(tensor, 0, True)

    # -- what is known ---------------------------------------------------------------------------------------------

    def is_still(self, tensor: Tensor) -> bool:
        """Whether every step would make the same values."""
        known = self._known.get(storage_of(tensor))
        if known is None or known.still or known.moving is None:
            return known is not None and known.still
        with _disable_current_modes():
            return not bool(_part(known.moving, tensor).any())

    def written(self, tensor: Tensor) -> int:
        """When the tensor's memory was last written to in place; 0 for never."""
        known = self._known.get(storage_of(tensor))
        return 0 if known is None else known.written

    def born(self, tensor: Tensor) -> int:
        """When the tensor's memory was made; 0 if before this pass."""
        known = self._known.get(storage_of(tensor))
        return 0 if known is None else known.born

    def move(self, value: Any) -> None:
        """Whatever holds ``value`` moves from here on."""
        for tensor in tensors_in(value):
            known = self._known.get(storage_of(tensor))
            if known is not None:
                known.still, known.moving = False, None

    def host_read(self, tensor: Any) -> None:
        """The host learns a value of ``tensor``."""
        if isinstance(tensor, Tensor) and self.is_still(tensor):
            self.heard = True
        else:
            self.blind = True
            self._disturb(-1)

    def _enrol(self, tensor: Tensor, born: int, still: bool) -> None:
        key = storage_of(tensor)
        if key is not None:
            self._known[key] = _Memory(StorageWeakRef(tensor.untyped_storage()), born, still)

    def _disturb(self, born: int) -> None:
        """Something happened that is not undone by leaving a call out, if the call began after ``born``."""
        for frame in self.frames:
            frame.spoilt = frame.spoilt or born <= frame.begun

    # -- operations ------------------------------------------------------------------------------------------------

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            if func.name() not in _PURE:
                self.host_read(None)
            return func(*args, **kwargs)  # nothing is known of its results, so they move
        kind = _kind(func)
        if kind.whole:
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        self._follow(func, kind, args, kwargs, result)
        return result

    def _follow(self, func: Any, kind: _Kind, args: Any, kwargs: Any, result: Any) -> None:
        self.clock += 1
        if kind.count is not None:
            self.flops += kind.count(*args, **kwargs, out_val=result)
        if func._opname == "lift_fresh":  # numbers that were written in Python
            self._enrol(args[0], self.clock, not self.blind)
        inputs = tensors_in((args, kwargs))
        still = all(map(self.is_still, inputs))
        if kind.told:
            for tensor in _shaping(func, args, inputs):
                self.host_read(tensor)
        random = kind.random and _draws(func, args, kwargs)
        if random:
            self._disturb(-1)
        still = still and not random and not self.blind
        old = set(map(storage_of, inputs))
        if still:
            self.used |= old
        if func._schema.is_mutable:
            self._write(func, args, kwargs, still)
        still = still and func._opname not in _UNFILLED
        for tensor in tensors_in(result):
            if storage_of(tensor) not in old:
                self._enrol(tensor, self.clock, still)

    def _write(self, func: Any, args: Any, kwargs: Any, still: bool) -> None:
        given = _named(func, args, kwargs)
        for argument in func._schema.arguments:
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            for tensor in tensors_in(given.get(argument.name)):
                known = self._known.get(storage_of(tensor))
                self._disturb(0 if known is None else known.born)
                if known is not None:
                    known.written = self.clock
                    if not still:
                        known.moving = self._moving_part(func, given, tensor, known)
                        known.still = False

    def _moving_part(self, func: Any, given: dict[str, Any], tensor: Tensor, known: _Memory) -> Tensor | None:
        """Which elements of a storage move after moving values were written to ``tensor``; None for all of them.

        A model may pack its text and its picture into one sequence and take the text out again (Cosmos3).
        """
        if not known.still and known.moving is None:
            return None
        moving = known.moving
        if moving is None:
            count = tensor.untyped_storage().nbytes() // tensor.element_size()
            moving = torch.zeros(count, dtype=torch.bool)  # on the host: nobody waits for the device to ask it
        if func._opname == "copy_":
            _part(moving, tensor).fill_(True)
        elif func._opname == "index_put_" and all(map(self._still_on_host, tensors_in(given["indices"]))):
            func(_part(moving, tensor), given["indices"], moving.new_ones(()))
        else:
            return None
        return moving

    def _still_on_host(self, indices: Tensor) -> bool:
        """Whether an index can be followed: on a device all that it may point to counts as moving."""
        return indices.device.type == "cpu" and self.is_still(indices)


def _part(elements: Tensor, tensor: Tensor) -> Tensor:
    """The entries of a list with one entry for each element of a storage that ``tensor`` shows."""
    return elements.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _named(func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    return dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs


def _draws(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operation that can draw random numbers does: attention without dropout does not."""
    known = next((a for a in func._schema.arguments if a.name == "dropout_p"), None)
    return known is None or _named(func, args, kwargs).get("dropout_p", known.default_value) != 0


def _shaping(func: Any, args: Any, inputs: list[Tensor]) -> list[Tensor]:
    """The inputs whose values the host learns, if only from the shape of the result."""
    if func._opname == "index":
        return [t for t in tensors_in(args[1]) if t.dtype in (torch.bool, torch.uint8)]
    return inputs


class _Reads(TorchFunctionMode):
    """Tells a :class:`Flow` of values that leave torch unseen."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self._flow = flow

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READS:
            self._flow.host_read(args[0])
        return func(*args, **(kwargs or {}))
