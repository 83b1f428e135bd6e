"""The caches of other packages, each set up as its own documentation says, as rows of the report.

``diffusers:NAME`` are the cache hooks of diffusers, by the model's ``enable_cache`` (or ``apply_*`` where the class has
none); ``cache-dit:NAME`` is the package cache-dit, by ``cache_dit.enable_cache``.
"""

from __future__ import annotations

import ast
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

import torch

from ..errors import ConfigError, unknown
from ..hooks.anatomy import find_block_lists, find_denoisers
from .isolation import isolated

#: name -> (configuration, function for models without enable_cache), both in diffusers.hooks
DIFFUSERS = {
    "first-block": ("FirstBlockCacheConfig", "apply_first_block_cache"),
    "taylorseer": ("TaylorSeerCacheConfig", "apply_taylorseer_cache"),
    "mag": ("MagCacheConfig", "apply_mag_cache"),
    "pab": ("PyramidAttentionBroadcastConfig", "apply_pyramid_attention_broadcast"),
    "faster": ("FasterCacheConfig", "apply_faster_cache"),
    "sea": ("SeaCacheConfig", "apply_sea_cache"),
}
CACHE_DIT = ("dbcache", "dbcache+taylorseer")
PEERS = (*(f"diffusers:{name}" for name in DIFFUSERS), *(f"cache-dit:{name}" for name in CACHE_DIT))
PACKAGES = {"diffusers": "diffusers", "cache-dit": "cache_dit"}
#: what one of the two cache-dit rows adds
_ORDER = "taylorseer_order"

Settings = dict[str, Any]
#: generates once, densely as far as the peer allows, to measure what it needs to know
Generate = Callable[[], Any]


def check_peer(name: str, settings: Mapping[str, Any]) -> None:
    """Raises ConfigError for an unknown peer, one that is not installed, and unknown settings."""
    package = name.partition(":")[0]
    if name not in PEERS:
        raise ConfigError(unknown("peer", name, PEERS))
    if find_spec(PACKAGES[package]) is None:
        raise ConfigError(f"{name}: {package} is not installed: pip install 'diffcache[peers]'")
    known = _known(name)
    for key in settings:
        if key not in known:
            raise ConfigError(f"{name}: {unknown('field', key, known)}")


def _known(name: str) -> list[str]:
    package, _, method = name.partition(":")
    if package == "diffusers":
        return [f.name for f in fields(_diffusers_class(method))]
    import cache_dit

    return [f.name for f in fields(cache_dit.DBCacheConfig)] + ([_ORDER] if "taylorseer" in method else [])


def _diffusers_class(method: str) -> type:
    import diffusers.hooks

    found = getattr(diffusers.hooks, DIFFUSERS[method][0], None)
    if found is None:
        raise ConfigError(f"diffusers:{method}: the installed diffusers has no {DIFFUSERS[method][0]}")
    return found


@contextmanager
def peer_on(pipe: Any, name: str, settings: Mapping[str, Any]) -> Iterator[None]:
    """The pipeline with a peer's cache on it, for the block only; afterwards it is what it was, to the bit."""
    package, _, method = name.partition(":")
    enable = _enable_diffusers if package == "diffusers" else _enable_cache_dit
    with isolated(pipe), torch.no_grad():
        enable(pipe, method, dict(settings))
        yield


def complete(pipe: Any, name: str, settings: Mapping[str, Any], steps: int, generate: Generate) -> Settings:
    """The settings with what the peer's documentation asks to be set for this model and number of steps."""
    package, _, method = name.partition(":")
    model = next(iter(find_denoisers(pipe).values()))
    settings = dict(settings)
    if package == "cache-dit":
        settings.setdefault("num_inference_steps", steps)
        blocks = max(len(blocks) for blocks in find_block_lists(model).values())
        if blocks <= 8:  # the default of 8 leaves nothing to skip; its documentation names F1B0 for that
            settings.setdefault("Fn_compute_blocks", 1)
    elif method == "mag":
        settings.setdefault("num_inference_steps", steps)
        if "mag_ratios" not in settings:
            settings["mag_ratios"] = _measure_ratios(pipe, settings, generate)
    elif method == "taylorseer":
        settings.setdefault("taylor_factors_dtype", str(model.dtype).removeprefix("torch."))
    elif method == "pab" and not any(key.endswith("skip_range") and "block" in key for key in settings):
        settings["spatial_attention_block_skip_range"] = 2
    return settings


def _measure_ratios(pipe: Any, settings: Settings, generate: Generate) -> list[float]:
    """One run with ``calibrate=True``; diffusers prints the ratios, and asks to copy them."""
    told = io.StringIO()
    with peer_on(pipe, "diffusers:mag", {**settings, "calibrate": True}), redirect_stdout(told):
        generate()
    lists = [line for line in told.getvalue().splitlines() if line.startswith("[") and line.endswith("]")]
    numbers = [found for found in lists if not found.startswith("[MagCache]")]
    if not numbers:
        raise RuntimeError("MagCache's calibration run printed no ratios")
    return [round(float(ratio), 6) for ratio in ast.literal_eval(numbers[0])]


# -- diffusers ---------------------------------------------------------------------------------------------------------


def _enable_diffusers(pipe: Any, method: str, settings: Settings) -> None:
    import diffusers.hooks

    if isinstance(settings.get("taylor_factors_dtype"), str):
        settings["taylor_factors_dtype"] = getattr(torch, settings["taylor_factors_dtype"])
    if method in ("pab", "faster"):
        settings["current_timestep_callback"] = lambda: pipe.current_timestep
    config = _diffusers_class(method)(**settings)
    for model in find_denoisers(pipe).values():
        if hasattr(model, "enable_cache"):
            model.enable_cache(config)
        else:
            getattr(diffusers.hooks, DIFFUSERS[method][1])(model, config)


# -- cache-dit ---------------------------------------------------------------------------------------------------------


def _enable_cache_dit(pipe: Any, method: str, settings: Settings) -> None:
    import cache_dit

    _quiet(cache_dit)
    order = settings.pop(_ORDER, 1)
    options: dict[str, Any] = {"cache_config": cache_dit.DBCacheConfig(**settings)}
    if method.endswith("taylorseer"):
        options["calibrator_config"] = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order)
    prefixes = cache_dit.supported_pipelines()[1]
    if any(type(pipe).__name__.startswith(prefix.rstrip("*")) for prefix in prefixes):
        cache_dit.enable_cache(pipe, **options)
        return
    for model in find_denoisers(pipe).values():  # an unknown pipeline: its interface for the transformer alone
        cache_dit.enable_cache(model, **options)


def _quiet(module: Any) -> None:
    import logging

    for name in [n for n in logging.root.manager.loggerDict if n.split(".")[0].lower() in ("cache_dit", "cache-dit")]:
        logging.getLogger(name).setLevel(logging.ERROR)
