"""Sizes of memory as people write them."""

from __future__ import annotations

import re
from math import ceil
from typing import Any

_UNITS = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip


def read_size(value: Any) -> int | None:
    """Bytes from a whole number of them or from text; None if it is neither, or not above 0.

    >>> read_size("200MB"), read_size("1.5 GiB"), read_size(4096), read_size("much")
    (200000000, 1610612736, 4096, None)
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value if value > 0 else None
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", value, re.I) if isinstance(value, str) else None
    if found is None or found[2].lower() not in _UNITS:
        return None
    return int(float(found[1]) * _UNITS[found[2].lower()]) or None


def size_text(count: int) -> str:
    """Bytes as text that :func:`read_size` takes back for at least as many.

    >>> size_text(184320), size_text(999), size_text(31_000_000)
    ('184.4 kB', '999 B', '31 MB')
    """
    large = (("GB", 10**9), ("MB", 10**6), ("kB", 10**3))
    unit, scale = next(((unit, scale) for unit, scale in large if count >= scale), ("B", 1))
    return f"{ceil(count * 10 / scale) / 10:g} {unit}"
