"""Methods by name: a small typed configuration each, and the recipe that it stands for."""

from .base import MethodConfig, NoneConfig
from .forecast import PREDICTORS, ForecastConfig, IntervalConfig, PowerLawConfig, StepsConfig
from .registry import list_methods, load_config, make_config, parse_settings, put_once, read_value
from .worldcache import WorldCacheConfig

__all__ = [
    "PREDICTORS",
    "ForecastConfig",
    "IntervalConfig",
    "MethodConfig",
    "NoneConfig",
    "PowerLawConfig",
    "StepsConfig",
    "WorldCacheConfig",
    "list_methods",
    "load_config",
    "make_config",
    "parse_settings",
    "put_once",
    "read_value",
]
