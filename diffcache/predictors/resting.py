"""How cached values rest between the steps: in which dtype, and on which device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

#: names of dtypes that values may rest in. float8 is not among them: without scales of its own a value beyond 448 is
#: lost, and the others keep one digit.
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class Home(NamedTuple):
    """Where a value belongs, and as what it is used."""

    dtype: torch.dtype
    device: torch.device


def home_of(value: Tensor) -> Home:
    """The home of a tensor as it is."""
    return Home(value.dtype, value.device)


@dataclass(frozen=True)
class Rest:
    """Where and as what values rest.

    Attributes:
        dtype: None is the values' own. A value that is as narrow or narrower stays as it is, and so does one that is
            not of floating point.
        offload: whether values of another device rest on the CPU (pinned if they come from a GPU). Copies there and
            back are queued on the device's current stream, which keeps them in order; the host waits for none.
    """

    dtype: torch.dtype | None = None
    offload: bool = False

    @cached_property
    def plain(self) -> bool:
        """Whether every value rests as it is."""
        return self.dtype is None and not self.offload

    def place(self, home: Home) -> Home:
        """Where a value of ``home`` rests, and as what."""
        narrow = self.dtype is not None and home.dtype.is_floating_point and self.dtype.itemsize < home.dtype.itemsize
        away = self.offload and home.device.type != "cpu"
        return Home(self.dtype if narrow else home.dtype, torch.device("cpu") if away else home.device)

    def moves(self, value: Tensor) -> bool:
        """Whether the value rests as something else, or elsewhere."""
        if self.plain:
            return False
        home = home_of(value)
        return self.place(home) != home

    def room(self, value: Tensor, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
        """Memory to rest in, not yet filled."""
        dtype, device = self.place(home_of(value))
        pinned = value.device.type == "cuda" and device.type == "cpu"
        return torch.empty_like(value, dtype=dtype, device=device, pin_memory=pinned, memory_format=memory_format)

    def put(self, value: Tensor, room: Tensor) -> None:
        """Copy the value to where it rests; its dtype changes on its own device."""
        value = value.detach()
        if room.device == value.device:
            room.copy_(value)
        else:
            room.copy_(value.to(room.dtype), non_blocking=True)

    def keep(self, value: Tensor) -> Tensor:
        """A copy of the value, at rest."""
        if not self.moves(value):
            return value.detach().clone()
        room = self.room(value)
        self.put(value, room)
        return room

    def rounded(self, value: Tensor) -> Tensor:
        """The value with the digits that it would have at rest: what is compared with one that has rested."""
        return value if self.dtype is None else value.to(self.place(home_of(value)).dtype).to(value.dtype)


def waken(rested: Tensor, device: torch.device) -> Tensor:
    """A rested value on the device where it is used, still in the dtype of its rest; itself if it lies there."""
    return rested if rested.device == device else rested.to(device, non_blocking=True)


def fetch(rested: Tensor, home: Home) -> Tensor:
    """A rested value as what it was; itself if it never became anything else."""
    there = waken(rested, home.device)
    return there if there.dtype is home.dtype else there.to(home.dtype)
