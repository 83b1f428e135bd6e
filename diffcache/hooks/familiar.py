"""Telling at a glance that a call of a denoiser looks like the last one of its branch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from .anatomy import Anatomy
from .conditioning import same_object, version

_ABSENT = object()


class Likeness:
    """What the calls of one branch have in common: the same conditioning, and the same forms of all else.

    It says yes only where the slow way (:class:`.conditioning.Conditioning`, :meth:`.anatomy.Anatomy.signature`) would
    say that nothing has changed; that needs nothing flattened or hashed.

    Attributes:
        signature: of the calls.
        batch: what is known of their samples, for the site.
    """

    __slots__ = ("_count", "_kinds", "_moving", "_placed", "_plain", "_still", "batch", "signature")

    def __init__(self, inputs: Mapping[str, Any], placed: int, signature: Any) -> None:
        self.signature, self.batch = signature, None
        self._count, self._placed = len(inputs), placed
        self._still: list[tuple[str, Tensor, int]] = []
        self._moving: list[tuple[str, tuple[Any, ...]]] = []
        self._plain: list[tuple[str, Any]] = []
        self._kinds: list[tuple[str, type]] = []

    @classmethod
    def of(cls, anatomy: Anatomy, inputs: Mapping[str, Any], placed: int) -> Likeness | None:
        """That of a call; None where an argument holds others within.

        Args:
            anatomy: of the denoiser.
            inputs: the arguments by name.
            placed: how many of them came by position.
        """
        if any(isinstance(value, (list, tuple, Mapping)) for value in inputs.values()):
            return None
        like = cls(inputs, placed, anatomy.signature(inputs))
        for name, value in inputs.items():
            like._add(name, value, name in anatomy.conditioning)
        return like

    def _add(self, name: str, value: Any, still: bool) -> None:
        if isinstance(value, Tensor) and still:
            self._still.append((name, value, version(value)))
        elif isinstance(value, Tensor):
            self._moving.append((name, (value.shape, value.dtype, value.device)))
        elif isinstance(value, (str, int)) or value is None:
            self._plain.append((name, value))
        else:  # its value tells nothing
            self._kinds.append((name, type(value)))

    def fits(self, inputs: Mapping[str, Any], placed: int) -> bool:
        """Whether another call is one of them."""
        if len(inputs) != self._count or placed != self._placed:
            return False
        get = inputs.get
        for name, seen, count in self._still:
            value = get(name)
            if value is not seen and not (isinstance(value, Tensor) and same_object(value, seen)):
                return False
            if (0 if value.is_inference() else value._version) != count:  # :func:`version`, in a call less
                return False
        for name, form in self._moving:
            value = get(name)
            if not isinstance(value, Tensor) or (value.shape, value.dtype, value.device) != form:
                return False
        for name, plain in self._plain:
            value = get(name, _ABSENT)
            if value is not plain and (type(value) is not type(plain) or value != plain):
                return False
        return all(type(get(name, _ABSENT)) is kind for name, kind in self._kinds) if self._kinds else True


class Call(partial):
    """A denoiser call that is about to run.

    Attributes:
        likeness: of its branch, where it fits.
    """

    likeness: Likeness | None = None
