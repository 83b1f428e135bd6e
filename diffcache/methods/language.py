"""Methods for diffusion language models: which rows a step computes, which keys it sees, when all is refreshed.

Only their settings are here; what they do is in :mod:`diffcache.llm.policies`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import ConfigError
from ..schedules import NEVER
from .base import NamedConfig
from .checks import check_choice, check_number


@dataclass(frozen=True, kw_only=True)
class LanguageConfig(NamedConfig):
    """What every method for diffusion language models has.

    Args:
        warmup: first steps of a generation that compute every row.
    """

    kind: ClassVar[str] = "language"
    #: what is cached: ``kv`` (keys and values), ``external`` (attention outside the block), or nothing
    site: ClassVar[str] = "kv"
    #: whether it runs on block-causal models, and on bidirectional ones
    regimes: ClassVar[tuple[str, ...]] = ("bidirectional",)
    #: whether left-padded prompts can be honoured
    pads: ClassVar[bool] = True

    warmup: int = 0

    def __post_init__(self) -> None:
        check_number("warmup", self.warmup, 0, NEVER, whole=True)
        self.validate()

    def exact_on(self, regime: str) -> bool:
        """Whether it changes no value on models of that regime."""
        return regime == "block-causal"


@dataclass(frozen=True, kw_only=True)
class VanillaConfig(LanguageConfig):
    """Every step computes every row: the control."""

    method: ClassVar[str] = "vanilla"
    summary: ClassVar[str] = "language: every step computes every row (control)"
    site: ClassVar[str] = "none"
    regimes: ClassVar[tuple[str, ...]] = ("bidirectional", "block-causal")

    def exact_on(self, regime: str) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class FreeCacheConfig(LanguageConfig):
    """FreeCache (arXiv 2505.21467): keys and values of the prompt and of finished blocks are frozen.

    A step computes from the block under way to the end of the canvas. On a block-causal model it computes the block,
    and is exact. Memory of one branch: ``2 * layers * tokens * kv_heads * head_dim * element_size``.

    Args:
        settle: whether the first step of a block computes the block before it once more, now that it holds no mask.
    """

    method: ClassVar[str] = "freecache"
    summary: ClassVar[str] = "language: keys and values of finished blocks are frozen (FreeCache)"
    regimes: ClassVar[tuple[str, ...]] = ("bidirectional", "block-causal")

    settle: bool = True

    def validate(self) -> None:
        check_flag("settle", self.settle)


@dataclass(frozen=True, kw_only=True)
class FastDLLMConfig(LanguageConfig):
    """Fast-dLLM (arXiv 2505.22618): every block begins with a full pass; its other steps see cached keys and values.

    Memory of one branch: ``2 * layers * tokens * kv_heads * head_dim * element_size``.

    Args:
        cache: ``prefix`` computes from the block to the end of the canvas, ``dual`` the block alone.
        before, behind: of ``dual``, positions around the block that are computed with it (dInfer's vicinity refresh).
        every: a full pass every so many steps of a block, too; 0 for none.
    """

    method: ClassVar[str] = "fast-dllm"
    summary: ClassVar[str] = "language: a full pass for each block, then the block alone (Fast-dLLM)"
    regimes: ClassVar[tuple[str, ...]] = ("bidirectional", "block-causal")
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "prefix": {"cache": "prefix"},
        "dual": {"cache": "dual"},
        "vicinity": {"cache": "dual", "before": 16, "behind": 16, "warmup": 4},
    }

    cache: str = "dual"
    before: int = 0
    behind: int = 0
    every: int = 0

    def validate(self) -> None:
        check_choice("cache", self.cache, ["prefix", "dual"])
        for name in ("before", "behind", "every"):
            check_number(name, getattr(self, name), 0, NEVER, whole=True)


def check_flag(name: str, value: Any) -> None:
    """Raises ConfigError unless the value is True or False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name}: {value!r} is out of range, must be True or False")
