"""Every transformer denoiser class that diffusers exports has a tiny model here, and the page on support is true."""

from __future__ import annotations

import re
from functools import cache

import diffusers
import diffusers.models
import pytest

from diffcache import UnsupportedModelError, accelerate_model, supports
from diffcache.methods import make_config

from .denoisers import DENOISERS
from .denoisers.conformance import outcome
from .denoisers.exported import denoiser_classes, exclusion, timed_classes
from .denoisers.running import METHODS, model_of
from .denoisers.table import PATH, page, row, works


def test_every_exported_denoiser_has_a_tiny_model():
    missing = [name for name in denoiser_classes() if name not in DENOISERS]
    assert not missing, (
        f"diffusers {diffusers.__version__} exports denoisers without a builder in tests/denoisers: {missing}"
    )


def test_every_tiny_model_is_of_an_exported_denoiser():
    assert set(DENOISERS) <= set(denoiser_classes())
    assert all(type(model_of(name)).__name__ == name for name in DENOISERS)


def test_nothing_is_left_out_without_a_reason():
    left_out = [name for name in timed_classes() if name not in DENOISERS]
    assert all(exclusion(name) for name in left_out)
    assert not [name for name in DENOISERS if exclusion(name)]


@cache
def rows() -> dict[str, str]:
    """The rows on the page, by class."""
    lines = (line for line in PATH.read_text().splitlines() if line.startswith("| "))
    return {name: line for line in lines if (name := line.split(" | ")[0].removeprefix("| ")) in denoiser_classes()}


def test_nineteen_of_twenty_work():
    """As the page says, whose rows are measured below."""
    for site in METHODS:
        assert sum(works(line, site) for line in rows().values()) >= 0.95 * len(denoiser_classes()), site


@pytest.mark.parametrize("name", DENOISERS)
def test_supports_says_what_was_measured(name):
    for site, way in METHODS.items():
        found = supports(model_of(name), make_config(way.method, **way.settings))
        assert found.status == ("works" if outcome(name, site).works else "refused"), site
        never = supports(model_of(name), make_config(way.method, **{**way.settings, "max_skip": 0}))
        assert never.status == ("exact" if outcome(name, site).exact else "refused"), site
    assert supports(type(model_of(name)), "worldcache").status == "works"
    assert supports(type(model_of(name)), "none").status == "exact"


@pytest.mark.parametrize("name", [name for name in timed_classes() if "ControlNet" in name or "UNet" in name])
def test_what_only_serves_a_denoiser_is_refused_by_class(name):
    answer = supports(getattr(diffusers.models, name))
    assert answer.status == "refused"
    assert re.search("ControlNet|U-Net", answer.reason)


def test_a_control_net_is_refused_as_a_model():
    net = diffusers.FluxControlNetModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    with pytest.raises(UnsupportedModelError, match="ControlNet"):
        accelerate_model(net, "interval")


@pytest.mark.parametrize("name", DENOISERS)
def test_the_page_says_what_was_measured(name):
    """After a change: ``python -m tests.denoisers.table``."""
    assert rows()[name] == row(name)


def test_the_page_names_every_class_and_counts_right():
    found = rows()
    assert list(found) == list(denoiser_classes())
    working = {site: sum(works(line, site) for line in found.values()) for site in METHODS}
    assert PATH.read_text() == page(found, working)
