"""From a method's settings to its policy."""

from __future__ import annotations

from ...errors import UnsupportedModelError
from ...methods.language import (
    D2CacheConfig,
    DKVConfig,
    DLLMCacheConfig,
    ElasticConfig,
    FastDLLMConfig,
    FlashBlockConfig,
    FreeCacheConfig,
    LanguageConfig,
    SparseConfig,
    VanillaConfig,
    WindowConfig,
)
from ..families import Facts
from .adaptive import DKV, Window
from .base import Policy, Task
from .block import ExactPrefix, FastDLLM, FreeCache
from .d2cache import D2Cache
from .elastic import Elastic
from .flashblock import FlashBlock
from .increments import DLLMCache
from .sparse import Sparse

_BIDIRECTIONAL: dict[type[LanguageConfig], type[Policy]] = {
    VanillaConfig: Policy,
    FastDLLMConfig: FastDLLM,
    FreeCacheConfig: FreeCache,
    ElasticConfig: Elastic,
    WindowConfig: Window,
    FlashBlockConfig: FlashBlock,
    DKVConfig: DKV,
    DLLMCacheConfig: DLLMCache,
    SparseConfig: Sparse,
    D2CacheConfig: D2Cache,
}

_BLOCK_CAUSAL: dict[type[LanguageConfig], type[Policy]] = {
    VanillaConfig: Policy,
    FastDLLMConfig: ExactPrefix,
    FreeCacheConfig: ExactPrefix,
    FlashBlockConfig: FlashBlock,
}


def refusal(config: LanguageConfig, facts: Facts) -> str | None:
    """Why a method does not run on a model, or None."""
    if isinstance(config, FlashBlockConfig) and facts.causal != (config.over == "exact"):
        right = "exact" if facts.causal else "dual, prefix or freecache (approximate twice: keys outside drift, too)"
        return f"flashblock over='{config.over}' does not run on a {facts.regime} model, which needs over={right}"
    if facts.regime in config.regimes:
        return None
    if facts.causal:
        return (
            f"{config.method} renews keys and values that drift, and those of a block-causal model are exact: "
            "use freecache (exact) or flashblock"
        )
    return f"{config.method} needs a block-causal model, this one is {facts.regime}"


def make_policy(config: LanguageConfig, task: Task) -> Policy:
    """The policy of one generation; raises UnsupportedModelError if the method does not run on the model."""
    reason = refusal(config, task.facts)
    if reason is not None:
        raise UnsupportedModelError(reason)
    table = _BLOCK_CAUSAL if task.facts.causal else _BIDIRECTIONAL
    return table[type(config)](config, task)
