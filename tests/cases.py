"""The methods that the laws are checked with: every named method, every predictor, every site."""

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
    "fora": ("fora", dict(interval=3)),
    "taylorseer": ("taylorseer", dict(interval=3, order=2)),
    "hicache": ("hicache", dict(interval=3)),
    "interval-block": ("interval", dict(interval=3, site="block", predictor="linear")),
    "fbcache-body": ("fbcache", dict(threshold=10.0, max_skip=3)),
    "teacache-body": ("teacache", dict(threshold=1e9, max_skip=3, polynomial=(1.0, 0.0))),
    "magcache-body": ("magcache", dict(ratios=(1.0,) * 12)),
    "steps": ("steps", dict(steps=(0, 1, 2, 5, 8), predictor="linear")),
}

#: methods whose placement does not depend on the data
_LISTENING = ("worldcache-guarded", "worldcache-faithful", "fbcache-body", "teacache-body")
PLACED = {k: v for k, v in SKIPPING.items() if k not in _LISTENING}

#: every predictor on a placement of its own, site output
FORECASTS: dict[str, Case] = {
    name: ("interval", dict(interval=3, predictor=name, order=2, warmup=3)) for name in PREDICTORS
}

BODY_FORECASTS: dict[str, Case] = {
    f"{name}-body": (method, {**settings, "site": "body"}) for name, (method, settings) in FORECASTS.items()
}
