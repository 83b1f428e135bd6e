"""The methods that the laws are checked with: every named method, every predictor, both sites."""

from __future__ import annotations

from typing import Any

from diffcache.methods import PREDICTORS

Case = tuple[str, dict[str, Any]]

#: methods that do skip on 12 random steps
SKIPPING: dict[str, Case] = {
    "worldcache": ("worldcache", dict(computed=0.4, threshold=float("inf"))),
    "worldcache-guarded": ("worldcache", dict(computed=0.4, threshold=0.5)),
    "worldcache-faithful": ("worldcache", dict(faithful=True, warmup=3, threshold=5.0)),
    "interval": ("interval", dict(interval=3)),
    "interval-body": ("interval", dict(interval=3, site="body")),
    "powerlaw": ("powerlaw", dict(computed=0.4)),
    "powerlaw-body": ("powerlaw", dict(computed=0.4, site="body")),
    "steps": ("steps", dict(steps=(0, 1, 2, 5, 8), predictor="linear")),
}

#: methods whose placement does not depend on the data
PLACED = {k: v for k, v in SKIPPING.items() if k not in ("worldcache-guarded", "worldcache-faithful")}

#: every predictor on a placement of its own, site output
FORECASTS: dict[str, Case] = {
    name: ("interval", dict(interval=3, predictor=name, order=2, warmup=3)) for name in PREDICTORS
}

BODY_FORECASTS: dict[str, Case] = {
    f"{name}-body": (method, {**settings, "site": "body"}) for name, (method, settings) in FORECASTS.items()
}
