"""Figures, settings and pictures in the form that the page takes."""

from __future__ import annotations

import base64
import io
import json
import re
from typing import Any

from markupsafe import Markup, escape
from PIL import Image

from .metrics import METRICS
from .statistics import EQUAL, Interval

WIDEST = 1600  # pixels of an embedded picture


def figure_text(over: Interval, key: str) -> Markup:
    """``56.3`` with ``± 1.2`` in small."""
    kind = METRICS[key]
    if key.endswith("psnr") and over.mean >= EQUAL:
        return Markup("equal")
    text = f"{over.mean:.{kind.digits}f}"
    if over.half > 0:  # neither one seed nor the same for all
        text += f' <span class="pm">\u00b1 {over.half:.{kind.digits}f}</span>'
    return Markup(text)


def breakable(text: str) -> Markup:
    """Text that may be broken inside a row's name, where its parts meet."""
    return Markup(re.sub(r"([:,])(?=\S)", r"\1<wbr>", str(escape(text))))


def share_text(share: float) -> str:
    """A share in percent; 100 % is said of all alone.

    >>> share_text(1.0), share_text(0.9996), share_text(0.75)
    ('100%', '>99.9%', '75.0%')
    """
    if share == 1:
        return "100%"
    return ">99.9%" if share >= 0.9995 else f"{share:.1%}"


def bytes_text(count: int) -> str:
    """``0.18 MB``."""
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.0f} kB"


def settings_text(config: dict[str, Any]) -> str:
    """A configuration as JSON; long lists (calibrated ratios) by their length."""
    plain = json.loads(json.dumps(config, default=str))
    return json.dumps({key: _brief(value) for key, value in plain.items()}, indent=1)


def _brief(value: Any) -> Any:
    return f"{len(value)} numbers" if isinstance(value, list) and len(value) > 8 else value


def data_uri(image: Image.Image) -> str:
    """A picture as text: PNG, or JPEG where it is large."""
    if image.width > WIDEST:
        image = image.resize((WIDEST, max(1, round(image.height * WIDEST / image.width))), Image.Resampling.LANCZOS)
    buffer, kind = io.BytesIO(), "jpeg" if image.width * image.height > 400_000 else "png"
    if kind == "jpeg":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "#808080"), image.convert("RGBA")).convert("RGB")
    image.save(buffer, kind, **({"quality": 92} if kind == "jpeg" else {"optimize": True}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
