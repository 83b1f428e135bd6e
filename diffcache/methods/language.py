"""Methods for diffusion language models: which rows a step computes, which keys it sees, when all is refreshed.

Only their settings are here; what they do is in :mod:`diffcache.llm.policies`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
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
    """Every step computes every row: the control. Memory of one branch: nothing."""

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
        behind: positions behind the block that are computed with it; None: to the end of the canvas, as in the paper.
            Those beyond keep the keys of the first step: fewer rows than any other method here, and ours.
    """

    method: ClassVar[str] = "freecache"
    summary: ClassVar[str] = "language: keys and values of finished blocks are frozen (FreeCache)"
    regimes: ClassVar[tuple[str, ...]] = ("bidirectional", "block-causal")
    presets: ClassVar[dict[str, dict[str, Any]]] = {"block": {"behind": 0}}

    settle: bool = True
    behind: int | None = None

    def validate(self) -> None:
        check_flag("settle", self.settle)
        if self.behind is not None:
            check_number("behind", self.behind, 0, NEVER, whole=True)


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


@dataclass(frozen=True, kw_only=True)
class FlashBlockConfig(LanguageConfig):
    """FlashBlock (arXiv 2602.05305): attention outside the block is kept with its log-sum-exp, and merged.

    It is computed anew for a sequence of which ``dirty`` tokens of the block were decoded since, at the first step of
    a block, and when keys outside were written again. A calibrated mask of ``heads`` decides instead of ``dirty``.
    On block-causal video every token changes at every step, so that ``dirty`` counts steps there.
    Memory of one branch: ``4 * layers * block * heads * (head_dim + 1)``, whatever the length, and keys and values:
    ``2 * layers * tokens * kv_heads * head_dim * element_size``.

    Args:
        dirty: decoded tokens after which the part outside is computed anew; 1 only reuses it while nothing was decoded.
        over: the rows that a step computes: ``exact`` on block-causal models; ``dual``, ``prefix`` or ``freecache`` on
            bidirectional ones, where the keys outside drift as well, so that it is approximate twice.
        heads: file that ``diffcache calibrate`` or :func:`diffcache.llm.calibrate_heads` made: which heads are
            computed at which step of a block, whatever was decoded. Or None.
    """

    method: ClassVar[str] = "flashblock"
    summary: ClassVar[str] = "language: attention outside the block is kept and merged (FlashBlock)"
    site: ClassVar[str] = "external"
    regimes: ClassVar[tuple[str, ...]] = ("bidirectional", "block-causal")
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "dual": {"over": "dual"},
        "prefix": {"over": "prefix"},
        "freecache": {"over": "freecache"},
    }

    dirty: int = 2
    over: str = "exact"
    heads: str | None = None

    def validate(self) -> None:
        check_number("dirty", self.dirty, 0, NEVER, whole=True)
        check_choice("over", self.over, ["exact", "dual", "prefix", "freecache"])
        if self.heads is not None and not isinstance(self.heads, (str, Path)):
            raise ConfigError(f"heads: {self.heads!r} is not the path of a calibrated mask")
        if self.heads is not None:
            object.__setattr__(self, "heads", str(self.heads))

    def exact_on(self, regime: str) -> bool:
        return regime == "block-causal" and self.dirty <= 1 and self.heads is None


@dataclass(frozen=True, kw_only=True)
class WindowConfig(LanguageConfig):
    """Window-Diffusion (arXiv 2601.20332): active masks are computed, buffered ones are seen, those beyond are absent.

    Every ``refresh`` steps all rows are computed, and as soon as an active mask lies beyond the window; between, the
    first ``active`` masks and what was decoded since, which see the decoded tokens and the first ``window`` masks.
    Decodes over the whole canvas, whatever ``block_length`` is.
    Memory of one branch: ``2 * layers * tokens * kv_heads * head_dim * element_size``.

    Args:
        active: masks that are computed and may be decoded.
        window: masks that are seen, the active ones among them.
        refresh: steps from one full pass to the next; 1 computes every step in full.
        drop_far: whether the full pass leaves out the masks beyond the window, too.
    """

    method: ClassVar[str] = "window"
    summary: ClassVar[str] = (
        "language: computes the first masks, sees a window, refreshes every so often (Window-Diffusion)"
    )

    active: int = 16
    window: int = 64
    refresh: int = 32
    drop_far: bool = False

    def validate(self) -> None:
        for name in ("active", "refresh"):
            check_number(name, getattr(self, name), 1, NEVER, whole=True)
        check_number("window", self.window, self.active, NEVER, whole=True)
        check_flag("drop_far", self.drop_far)


@dataclass(frozen=True, kw_only=True)
class DKVConfig(LanguageConfig):
    """dKV-Cache (arXiv 2505.15781), decode variant: a token's keys are cached one step after it was decoded.

    A step computes what is masked and what was decoded at the step before.
    Memory of one branch: ``2 * layers * tokens * kv_heads * head_dim * element_size``.

    Args:
        refresh: a full pass every so many steps of a block; 1 computes every step in full.
    """

    method: ClassVar[str] = "dkv"
    summary: ClassVar[str] = "language: tokens are cached one step after they were decoded (dKV-Cache)"

    refresh: int = 8

    def validate(self) -> None:
        check_number("refresh", self.refresh, 1, NEVER, whole=True)


@dataclass(frozen=True, kw_only=True)
class SparseConfig(LanguageConfig):
    """Sparse-dLLM (arXiv 2508.02558): a block sees itself and those keys outside that matter most to it.

    The first two steps of a block are full passes; the second one ranks the keys by ``q . k`` with the mean query of
    the block. Memory of one branch: ``2 * layers * tokens * kv_heads * head_dim * element_size`` at those steps, and
    ``2 * layers * (keep * (tokens - block) + block) * kv_heads * head_dim * element_size`` besides.

    Args:
        keep: share of the keys outside the block that is kept, in (0, 1].
        pool: width of the max-pooling of the importance along positions; odd, 1 for none.
    """

    method: ClassVar[str] = "sparse-dllm"
    summary: ClassVar[str] = "language: a block sees the keys that matter most to it (Sparse-dLLM)"
    pads: ClassVar[bool] = False

    keep: float = 0.5
    pool: int = 3

    def validate(self) -> None:
        check_number("keep", self.keep, 0.0, 1.0, whole=False)
        check_number("pool", self.pool, 1, 1025, whole=True)
        if self.pool % 2 == 0:
            raise ConfigError(f"pool: {self.pool!r} is out of range, must be odd")


@dataclass(frozen=True, kw_only=True)
class ElasticConfig(LanguageConfig):
    """Elastic-Cache (arXiv 2510.14973): refreshes from the layer on at which attention drifts.

    A step computes the first ``window`` masks, what was decoded at the step before, and the most attended tokens. Where
    the attention of those last ones is less like that of the step before than ``threshold``, every row of the deeper
    layers is computed. Decodes over the whole canvas: ``block_length`` has no effect. Reads the device once a layer.
    Memory of one branch: ``layers * tokens * (hidden + (heads + 2 * kv_heads) * head_dim) * element_size``.

    Args:
        threshold: least cosine similarity (gamma); more refreshes more often. Below -1 never, above 1 always.
        window: masks that are computed and may be decoded.
        drift: similarity across ``head`` (as released) or across ``key`` (as written in the paper). What is a good
            threshold for one is not for the other.
        track: most attended tokens that each layer watches.
        cache_masks: whether masks beyond the window stay cached; without, all masks are computed.
    """

    method: ClassVar[str] = "elastic"
    summary: ClassVar[str] = "language: refreshes the layers above where attention drifts (Elastic-Cache)"

    threshold: float = 0.9
    window: int = 16
    drift: str = "head"
    track: int = 1
    cache_masks: bool = True

    def validate(self) -> None:
        check_number("threshold", self.threshold, -2.0, 2.0, whole=False)
        check_choice("drift", self.drift, ["head", "key"])
        for name in ("window", "track"):
            check_number(name, getattr(self, name), 1, NEVER, whole=True)
        check_flag("cache_masks", self.cache_masks)


@dataclass(frozen=True, kw_only=True)
class DLLMCacheConfig(LanguageConfig):
    """dLLM-Cache (arXiv 2506.06295): prompt and response are refreshed at intervals, and some response rows between.

    Cached are keys, values, and what attention and feed-forward add to the hidden states. Between refreshes the values
    of all response rows are computed, and the rows whose values changed most run through the layer.
    Memory of one branch: ``2 * layers * tokens * (kv_heads * head_dim + hidden) * element_size``.

    Args:
        prompt_interval, response_interval: steps between their refreshes; 1 and 1 compute every step in full.
        ratio: share of the response rows that run between refreshes, in [0, 1].
    """

    method: ClassVar[str] = "dllm-cache"
    summary: ClassVar[str] = "language: refresh intervals, and the rows whose values changed most (dLLM-Cache)"

    prompt_interval: int = 50
    response_interval: int = 7
    ratio: float = 0.25

    def validate(self) -> None:
        for name in ("prompt_interval", "response_interval"):
            check_number(name, getattr(self, name), 1, NEVER, whole=True)
        check_number("ratio", self.ratio, 0.0, 1.0, whole=False)


@dataclass(frozen=True, kw_only=True)
class D2CacheConfig(LanguageConfig):
    """d2Cache (arXiv 2509.23094): computes the likeliest next masks and the tokens that attention flows through.

    Rows of a step: ``masks`` masked positions by confidence times nearness to known tokens, what was just decoded, the
    nucleus of attention rollout, and small gaps between them.
    Memory of one branch: ``2 * layers * tokens * kv_heads * head_dim * element_size``, and in a step
    ``4 * (layers + heads) * rows * tokens`` more.

    Args:
        nucleus: share of the rollout's mass, in [0, 1].
        masks: masked positions.
        sigma: width of the nearness, in positions.
        gap: gaps up to this many positions are filled.
    """

    method: ClassVar[str] = "d2cache"
    summary: ClassVar[str] = "language: computes likely masks and what attention flows through (d2Cache)"

    nucleus: float = 0.1
    masks: int = 32
    sigma: float = 10.0
    gap: int = 4

    def validate(self) -> None:
        check_number("nucleus", self.nucleus, 0.0, 1.0, whole=False)
        check_number("masks", self.masks, 1, NEVER, whole=True)
        check_number("sigma", self.sigma, 1e-3, 1e6, whole=False)
        check_number("gap", self.gap, 0, NEVER, whole=True)


def check_flag(name: str, value: Any) -> None:
    """Raises ConfigError unless the value is True or False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name}: {value!r} is out of range, must be True or False")
