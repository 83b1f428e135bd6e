"""From ``--methods`` to rows: names, settings, sweeps, and the control that is always there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import yaml

from ..errors import ConfigError, unknown
from ..methods import list_methods, make_config, parse_settings
from ..methods.base import NamedConfig
from ..methods.naming import changed, named
from .peers import PACKAGES, PEERS, check_peer

CONTROL = "fewer-steps"
CONTROL_SHARES = (0.75, 0.5, 1 / 3, 0.25)
DEFAULT = (
    "none",
    "worldcache:computed=[0.25,0.34,0.5]",
    "taylorseer",
    "fbcache",
    "diffusers:first-block",
    "diffusers:taylorseer",
    "diffusers:mag",
    "cache-dit:dbcache",
    "cache-dit:dbcache+taylorseer",
)
"""Methods of a report that names none."""

_SHARES, _INTERVALS, _LIMITS = (0.2, 0.25, 0.34, 0.5), (2, 3, 4, 6), (0.03, 0.06, 0.12, 0.24)
KNOBS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "worldcache": ("computed", _SHARES),
    "powerlaw": ("computed", _SHARES),
    "interval": ("interval", _INTERVALS),
    "fora": ("interval", _INTERVALS),
    "taylorseer": ("interval", _INTERVALS),
    "hicache": ("interval", _INTERVALS),
    "fbcache": ("threshold", _LIMITS),
    "teacache": ("threshold", _LIMITS),
    "magcache": ("threshold", _LIMITS),
    "easycache": ("threshold", _LIMITS),
    "diffusers:first-block": ("threshold", _LIMITS),
    "diffusers:taylorseer": ("cache_interval", _INTERVALS),
    "diffusers:mag": ("threshold", _LIMITS),
    "diffusers:sea": ("threshold", _LIMITS),
    "cache-dit:dbcache": ("residual_diff_threshold", _LIMITS),
    "cache-dit:dbcache+taylorseer": ("residual_diff_threshold", _LIMITS),
}
"""Method -> its one natural knob, and the values that ``--sweep`` gives it."""

LANGUAGE_KNOBS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "elastic": ("threshold", (0.5, 0.8, 0.9, 0.95)),
    "window": ("refresh", (4, 8, 16, 32)),
    "flashblock": ("dirty", (1, 2, 3, 4)),
    "dkv": ("refresh", (2, 4, 8, 16)),
    "dllm-cache": ("response_interval", (2, 4, 7, 14)),
    "sparse-dllm": ("keep", (0.25, 0.5, 0.75)),
    "d2cache": ("masks", (16, 32, 64)),
}
"""The same, of methods for language models."""


@dataclass(frozen=True)
class Spec:
    """One row that was asked for.

    Attributes:
        name: unique in a report; the method with its settings.
        family: the name without what a sweep varies: its rows share it.
        method: name of the method or the peer.
        kind: ``method``, ``fewer-steps``, ``diffusers`` or ``cache-dit``.
        settings: as given.
        steps: sampler steps.
        config: of a method.
        missing: why it cannot run here at all (a package of the default set that is not installed).
    """

    name: str
    family: str
    method: str
    kind: str
    settings: dict[str, Any]
    steps: int
    config: NamedConfig | None = None
    missing: str | None = None


def split_methods(text: str) -> list[str]:
    """The entries of a comma-separated list; settings stay with their method.

    >>> split_methods("none,worldcache:max_skip=6,computed=[8,12],diffusers:mag:threshold=0.1,fora")
    ['none', 'worldcache:max_skip=6,computed=[8,12]', 'diffusers:mag:threshold=0.1', 'fora']
    """
    entries: list[str] = []
    for part in filter(None, (p.strip() for p in re.split(r",(?![^\[]*\])", text))):
        if entries and re.fullmatch(r"\w+=.*", part):
            entries[-1] += ("," if ":" in entries[-1] else ":") + part
        else:
            entries.append(part)
    return entries


def make_plan(methods: str | Sequence[Any] | None, steps: int, sweep: bool = False) -> list[Spec]:
    """The rows, in order, with the control at the end.

    Args:
        methods: a comma-separated list, or a list of entries and configuration objects; None takes :data:`DEFAULT`.
        steps: sampler steps of dense.
        sweep: give each method with a natural knob that was not set the values of :data:`KNOBS`.

    Raises:
        ConfigError: an unknown method, peer or field, a value out of range, or a peer that is not installed.
    """
    specs = read_entries(DEFAULT if methods is None else methods, steps, sweep)
    if methods is None:
        specs = [_excused(spec) for spec in specs]
    else:
        for spec in specs:
            if spec.kind in PACKAGES:
                check_peer(spec.method, spec.settings)
    return list({spec.name: spec for spec in [*specs, *_controls(steps)]}.values())


def read_entries(methods: str | Sequence[Any], steps: int, sweep: bool = False, kind: str = "denoiser") -> list[Spec]:
    """The rows that were asked for, in order; arguments and errors as for :func:`make_plan`.

    Args:
        steps: most steps that the control may be given.
        kind: of the methods: for a ``denoiser`` or a ``language`` model.
    """
    entries = split_methods(methods) if isinstance(methods, str) else methods
    if not entries:
        first = "none,worldcache,taylorseer" if kind == "denoiser" else "freecache,fast-dllm:dual,elastic"
        raise ConfigError(f"methods: none given, must be names with commas: {first}")
    specs: list[Spec] = []
    for entry in entries:
        given = isinstance(entry, NamedConfig)
        specs += [_of_config(entry, steps)] if given else _expand(entry, steps, sweep, kind)
    wrong = next((s for s in specs if s.config is not None and s.config.kind != kind), None)
    if wrong is not None:
        raise ConfigError(f"methods: {wrong.name} is a method for {wrong.config.kind} models, must be one for {kind}s")
    return specs


def _excused(spec: Spec) -> Spec:
    """A peer of the default set that is not installed becomes a row that says so."""
    if spec.kind not in PACKAGES:
        return spec
    try:
        check_peer(spec.method, spec.settings)
    except ConfigError as error:
        return replace(spec, missing=str(error))
    return spec


def _expand(entry: str, steps: int, sweep: bool, models: str) -> list[Spec]:
    method, kind, text = _head(entry, models)
    if kind == "file":
        return [_of_config(make_config(entry), steps, entry)]
    settings = _read(text)
    knob, values = _knob(method) if kind != CONTROL else ("steps", ())
    if sweep and knob and knob not in settings and "preset" not in settings:
        settings = {**settings, knob: list(values)} if values else settings
    swept = [key for key, value in settings.items() if isinstance(value, list) and not _takes_lists(method, kind, key)]
    if len(swept) > 1:
        raise ConfigError(f"methods: '{entry}' sweeps {' and '.join(swept)}, must be one field: a sweep has one knob")
    if not swept:
        return [_one(method, kind, settings, steps)]
    if not settings[swept[0]]:
        raise ConfigError(f"methods: '{entry}' sweeps {swept[0]} over nothing, must be values: {swept[0]}=[8,12,16]")
    return [_one(method, kind, {**settings, swept[0]: value}, steps, swept[0]) for value in settings[swept[0]]]


def _knob(method: str) -> tuple[str, tuple[Any, ...]]:
    return KNOBS.get(method) or LANGUAGE_KNOBS.get(method) or ("", ())


def _head(entry: str, models: str) -> tuple[str, str, str]:
    """Method, kind and settings of an entry."""
    if re.search(r"\.(ya?ml|json)$", entry):
        return entry, "file", ""
    package, _, rest = entry.partition(":")
    if package in PACKAGES and models == "denoiser":
        method, _, text = rest.partition(":")
        name = f"{package}:{method}"
        if name not in PEERS:
            raise ConfigError(unknown("peer", name, PEERS))
        return name, package, text
    if package == CONTROL:
        return CONTROL, CONTROL, rest
    known = list_methods(models)
    if package not in known:
        peers = PEERS if models == "denoiser" else ()
        raise ConfigError(unknown("method", package, [*known, CONTROL, *peers]))
    return package, "method", rest


def _read(text: str) -> dict[str, Any]:
    try:
        return parse_settings(text)
    except (ConfigError, yaml.YAMLError) as error:
        raise ConfigError(f"methods: {error}") from error


def _takes_lists(method: str, kind: str, key: str) -> bool:
    """Whether a list is one value of the field, not a sweep."""
    if kind != "method":
        return key in ("mag_ratios", "steps_computation_mask") or key.endswith("identifiers")
    return any(f.name == key and "tuple" in str(f.type) for f in fields(list_methods()[method]))


def _one(method: str, kind: str, settings: dict[str, Any], steps: int, swept: str = "") -> Spec:
    if kind == CONTROL:
        return control_of(settings, steps)
    knob = swept or _knob(method)[0]
    fixed = {key: value for key, value in settings.items() if key != knob}
    config = make_config(method, **settings) if kind == "method" else None
    return Spec(named(method, settings), named(method, fixed), method, kind, settings, steps, config)


def _of_config(config: NamedConfig, steps: int, name: str | None = None) -> Spec:
    """A configuration object; its name tells the fields that differ from the defaults."""
    if name is not None:
        name = re.split(r"[\\/]", name)[-1]  # a report holds no paths
        return Spec(name, name, config.method, "method", {}, steps, config)
    return replace(_one(config.method, "", changed(config), steps), kind="method", settings={}, config=config)


def control_of(settings: dict[str, Any], steps: int) -> Spec:
    """The sampler with fewer steps, of at most ``steps``; raises ConfigError where ``settings`` is not one number."""
    count = settings.get("steps")
    if set(settings) != {"steps"} or isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= steps:
        raise ConfigError(f"{CONTROL}: steps={count!r} is out of range, must be a whole number from 1 to {steps}")
    return Spec(f"{CONTROL}:{count}", CONTROL, CONTROL, CONTROL, settings, count)


def _controls(steps: int) -> list[Spec]:
    counts = dict.fromkeys(max(1, round(share * steps)) for share in CONTROL_SHARES)
    return [control_of({"steps": count}, steps) for count in counts if count < steps]
