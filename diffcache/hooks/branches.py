"""Which branch of a segment a call belongs to: by its label, or else by its conditioning, never by counting calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .branch import Branch
from .conditioning import Conditioning

_MOST = 8


class Branches(dict[Any, Branch]):
    """The branches of one segment, in the order of their first calls.

    Args:
        new: (name, conditioning) -> a branch.
    """

    def __init__(self, new: Callable[[str, Conditioning], Branch]) -> None:
        super().__init__()
        self._new = new

    def familiar(self, label: str | None, inputs: Mapping[str, Any], placed: int) -> Branch | None:
        """The branch of a call, if a glance at its arguments tells: see :class:`.familiar.Likeness`."""
        if label is not None:
            found = self.get(label)
            known = None if found is None else found.likeness
            return found if known is not None and known.fits(inputs, placed) else None
        for found in self.values():
            if found.likeness is not None and found.likeness.fits(inputs, placed):
                return found
        return None

    def of(self, label: str | None, conditioning: Conditioning, step: int) -> Branch:
        """The branch of a call; a new one if the label or the conditioning has not been seen in this segment."""
        if label is not None:
            found = self.get(label)
            if found is not None and not _matches(found, conditioning):
                found.forget()
                found.conditioning.adopt(conditioning)
                found.fall_back(step, "conditioning changed")
            return found or self._open(label, label, conditioning)
        for found in self.values():
            if found.conditioning.same_objects(conditioning):
                return found
        for found in self.values():
            if found.conditioning.same_content(conditioning):
                found.conditioning.adopt(conditioning)
                return found
        name = "all" if not self else f"branch {len(self)}"
        return self._open((len(self), name), name, conditioning)

    def _open(self, key: Any, name: str, conditioning: Conditioning) -> Branch:
        if len(self) >= _MOST:
            # Conditioning that never repeats: hold no history for it.
            next(iter(self.values())).forget()
        self[key] = self._new(name, conditioning)
        return self[key]


def _matches(branch: Branch, conditioning: Conditioning) -> bool:
    if branch.conditioning.same_objects(conditioning):
        return True
    if branch.conditioning.same_content(conditioning):
        branch.conditioning.adopt(conditioning)
        return True
    return False
