"""The templates of the pages, and what every page shares: style, script, and words that may break."""

from __future__ import annotations

from typing import Any

import jinja2
from markupsafe import Markup

from .formats import breakable

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("diffcache.report", "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
_TEMPLATES.filters["breakable"] = breakable


def render_page(template: str, **values: Any) -> str:
    """A page as text; it refers to nothing outside of itself."""
    style, script = (Markup(_TEMPLATES.loader.get_source(_TEMPLATES, n)[0]) for n in ("style.css", "script.js"))
    return _TEMPLATES.get_template(template).render(style=style, script=script, **values)
