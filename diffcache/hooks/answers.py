"""Results of modules that are held for one trajectory, to be given again: exact savings' memory (see :mod:`.exact`)."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from .flow import storage_of
from .given import Given
from .outputs import flatten
from .watch import Plan, Slot

_VERSION = attrgetter("_version")


class Answer:
    """A result that is held.

    Attributes:
        slot: whose result it is.
        turn: denoiser call in which it was made.
        last: forward pass in which its module last ran or was answered.
    """

    __slots__ = ("last", "slot", "template", "tensors", "turn", "versions")

    def __init__(self, slot: Slot, result: Any, turn: int, now: int) -> None:
        tensors, self.template = flatten(result)
        self.slot, self.turn, self.last = slot, turn, now
        self.tensors = [_held(t, slot.copies) for t in tensors]
        self.versions = list(map(_VERSION, self.tensors))

    def intact(self) -> bool:
        """Whether nobody has written to it."""
        return list(map(_VERSION, self.tensors)) == self.versions

    def give(self) -> Any:
        """The module's return value."""
        tensors = [t.clone() for t in self.tensors] if self.slot.copies else self.tensors
        return tensors[0] if self.template.kind is Tensor else self.template.rebuild(tensors)

    def equals(self, result: Any) -> Tensor | None:
        """Whether ``result`` holds the same bits, as a flag on the device; None if it is of another form."""
        tensors, template = flatten(result)
        if template != self.template or list(map(_form, tensors)) != list(map(_form, self.tensors)):
            return None
        return torch.stack([(a == b).all() for a, b in zip(self.tensors, tensors, strict=True)]).all()


def _held(tensor: Tensor, copy: bool) -> Tensor:
    """The tensor, or a copy; one that counts its versions, which those made in inference mode do not."""
    if tensor.is_inference():
        with torch.inference_mode(False), torch.no_grad():
            return tensor.clone()
    return tensor.detach().clone() if copy else tensor.detach()


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


class Verdicts:
    """Flags on their way from the device to the host; nobody waits for them.

    Args:
        keys: what each flag is about.
        flags: scalars on one device.
    """

    def __init__(self, keys: Sequence[Any], flags: Sequence[Tensor]) -> None:
        self._keys, self._event = keys, None
        stacked = torch.stack(list(flags))
        if stacked.is_cuda:
            self._flags = torch.empty(stacked.shape, dtype=torch.bool, pin_memory=True)
            self._flags.copy_(stacked, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._flags = stacked if stacked.device.type == "cpu" else stacked.cpu()

    def read(self) -> dict[Any, bool] | None:
        """The flags, or None if they have not arrived."""
        if self._event is not None and not self._event.query():
            return None
        return dict(zip(self._keys, map(bool, self._flags.numpy()), strict=True))


class ExactMemory:
    """Answers of one branch, for one trajectory, and what they saved.

    Memory: the sum, over the module calls that are answered, of ``numel(result) * element_size`` bytes.

    Attributes:
        calls: module calls answered from memory, and those that another one of the same denoiser call stood for.
        flops: of those calls (matrix products, convolutions, attention; a multiplication and an addition are 2).
        peak_bytes: most that was held at any time.
        turn: denoiser calls so far.
        now: forward passes so far; a site may run the denoiser more than once in a call.
        idle: whether it is known that nothing here is worth answering; so it stays for the trajectory.
    """

    def __init__(self) -> None:
        self.calls, self.flops, self.peak_bytes = 0, 0, 0
        self.turn, self.now, self.watches = 0, 0, 0
        self.edition, self.prepared, self.usable, self.idle = -1, 0, False, False
        self.forget()

    def forget(self) -> None:
        """Drop every answer; the numbers stay."""
        self.given: Given | None = None
        self.plan: Plan | None = None
        self.answers: dict[nn.Module, Answer] = {}
        self._doubts: list[tuple[Slot, Tensor]] = []
        self._verdicts: Verdicts | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        tensors = [t for answer in self.answers.values() for t in answer.tensors]
        return sum({storage_of(t): t.untyped_storage().nbytes() for t in tensors}.values())

    def keep(self, slot: Slot, result: Any) -> None:
        """Hold what a module has just returned."""
        self.answers[slot.module] = Answer(slot, result, self.turn, self.now)
        self.peak_bytes = max(self.peak_bytes, self.nbytes)

    def doubt(self, answer: Answer, result: Any) -> None:
        """Compare an answer with what its module returned in a later call; the outcome is known later."""
        if self._verdicts is None and answer.turn != self.turn:
            same = answer.equals(result)
            if same is None:
                self._judge(answer.slot, False)
            else:
                self._doubts.append((answer.slot, same))

    def settle(self) -> None:
        """Take note of comparisons that are done."""
        if self._doubts:
            self._verdicts = Verdicts(*zip(*self._doubts, strict=True))
            self._doubts = []
        outcome = self._verdicts.read() if self._verdicts is not None else None
        if outcome is not None:
            self._verdicts = None
            for slot, same in outcome.items():
                self._judge(slot, same)

    def _judge(self, slot: Slot, same: bool) -> None:
        slot.proved = same
        if not same:
            self.plan.slots.pop(slot.module, None)
            self.answers.pop(slot.module, None)
